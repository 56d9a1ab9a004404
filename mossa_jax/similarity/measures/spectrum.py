"""How many dimensions a state uses: components for a share of the variance, participation ratio, dominance."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mossa_jax.errors import Refusal
from mossa_jax.similarity import gram, layerwise
from mossa_jax.similarity.estimators import MIN_ROWS, variance_missing
from mossa_jax.similarity.measures import subspaces


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Effective dimension of M models' states at K layers; NaN exactly where `undefined` is not empty.

    Attributes:
        components: [M, K] the least number of principal components that hold `share` of the variance (the MOSSA
            paper's Figure 5 for 0.99). At most n - 1: with few rows it says more about the rows than about the state.
        participation_ratio: [M, K] `(tr S)^2 / tr S^2` of the covariance.
        top_component: [M, K] share of the variance along the first principal component.
        top_dimension: [M, K] share of the variance in the single dimension that has most of it.
        undefined: [M, K] the reason in words, or "".
        n: rows that counted.
        dropped: valid rows left out, in all models and layers at once, as one of them was not finite.
    """

    components: np.ndarray
    participation_ratio: np.ndarray
    top_component: np.ndarray
    top_dimension: np.ndarray
    undefined: np.ndarray
    n: int
    dropped: int


def spectrum(states: jax.Array, valid: np.ndarray | jax.Array, share: float = 0.99) -> Spectrum:
    """Effective dimension of every state, from the eigenvalues of the smaller of its Gram and covariance.

    Args:
        states: [M, K, n, D] float32 or bfloat16 pooled states, possibly sharded on a mesh.
        valid: [n] bool, False for padding and for prompts left out; the same on every process.
        share: of the variance that `components` hold, 0 < share < 1.

    Raises:
        Refusal: code 2 for a share out of range; 3 where shapes do not fit.
    """
    if not 0 < share < 1:
        raise Refusal(2, f"share is {share}; give a share of the variance between 0 and 1")
    valid = np.asarray(valid)
    states = jnp.asarray(states)
    layerwise.check(states, valid)
    kept, along, within, mean_square, exponent = (
        np.asarray(a) for a in _variances(states, valid, mesh=layerwise.mesh_of(states))
    )
    n = int(kept.sum())
    # What an eigenvalue lies below 0 is rounding.
    along = np.maximum(along.astype(np.float64), 0)
    total = along.sum(-1)
    mean_square = mean_square.astype(np.float64) * 4.0 ** -exponent.astype(np.float64)
    undefined = np.full(total.shape, "", dtype=object)
    undefined[variance_missing(total, mean_square, n, float(jnp.finfo(states.dtype).eps))] = "no variance"
    if n < MIN_ROWS:
        undefined[:] = f"{n} finite rows; at least {MIN_ROWS} are needed"
    scale = np.where(undefined == "", total, np.nan)
    with np.errstate(invalid="ignore"):
        components = (np.cumsum(along, -1) < share * total[..., None]).sum(-1) + np.where(undefined == "", 1, np.nan)
        found = {
            "components": components,
            "participation_ratio": scale**2 / np.square(along).sum(-1),
            "top_component": along[..., 0] / scale,
            "top_dimension": within.astype(np.float64).max(-1) / scale,
        }
    return Spectrum(
        **{name: a.T for name, a in found.items()}, undefined=undefined.T, n=n, dropped=int(valid.sum()) - n
    )


@functools.partial(jax.jit, static_argnames=("mesh",))
def _variances(states: jax.Array, valid: jax.Array, *, mesh: Mesh | None) -> tuple[jax.Array, ...]:
    """Kept rows; [K, M, m] along components; [K, M, D] within dimensions; mean_square, exponent of `gram.Centred`."""

    def layer(x: jax.Array, kept: jax.Array) -> tuple[jax.Array, ...]:
        x, mean_square, exponent = gram.centre(x, kept)
        return subspaces.variances(x), jnp.square(x).sum(1), mean_square, exponent

    kept = layerwise.kept_rows(states, valid)
    return layerwise.replicated((kept, *layerwise.over_layers(layer, states, kept, mesh)), mesh)
