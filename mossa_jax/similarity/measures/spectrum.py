"""The effective dimension of states: components that hold a share of the variance, participation ratio, dominance.

Shape letters: M models, K layers, n rows, D width, m = min(n, D).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.similarity import gram, layerwise
from mossa_jax.similarity.checks import check_states, mesh_of
from mossa_jax.similarity.estimators import MIN_ROWS, variance_missing
from mossa_jax.similarity.measures import subspaces


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Effective dimension of M models' states at K layers; NaN exactly where `undefined` is not empty.

    Attributes:
      components: [M, K] the least number of principal components that hold `share` of the variance (the MOSSA paper's
        Figure 5 for 0.99). At most n - 1: with few rows it says more about the rows than about the state.
      participation_ratio: [M, K] `(tr S)^2 / tr S^2` of the covariance.
      top_component: [M, K] share of the variance along the first principal component.
      top_dimension: [M, K] share of the variance in the single dimension that has most of it.
      undefined: [M, K] the reason in words, or "".
      n: rows that counted.
      dropped: valid rows left out, in all models and layers at once, because one of them was not finite.
    """

    components: Float[np.ndarray, "M K"]
    participation_ratio: Float[np.ndarray, "M K"]
    top_component: Float[np.ndarray, "M K"]
    top_dimension: Float[np.ndarray, "M K"]
    undefined: np.ndarray
    n: int
    dropped: int


def spectrum(
    states: Float[Array, "M K n D"],
    valid: np.ndarray | jax.Array,
    share: float = 0.99,
    models: int | None = None,
    rows: int | None = None,
) -> Spectrum:
    """Computes the effective dimension of every state, from the eigenvalues of its Gram or covariance matrix.

    The smaller of the two matrices is used.

    Args:
      states: [M, K, n, D] float32 or bfloat16 pooled states, possibly sharded on a mesh.
      valid: [n] bool, False on padding and on prompts left out; the same on every process.
      share: of the variance that `components` hold, 0 < share < 1.
      models: only the first so many models; all by default. The others are not copied.
      rows: all valid rows are among the first so many; n by default.

    Returns:
      The figures of every state.

    Raises:
      Refusal: 2 for a share out of range; 3 if shapes do not fit.
    """
    if not 0 < share < 1:
        raise Refusal(BAD_CONFIG, f"share is {share}; give a share of the variance between 0 and 1")
    valid = np.asarray(valid)
    states = jnp.asarray(states)
    check_states(states, valid)
    kept, along, within, mean_square, exponent = (
        np.asarray(a)
        for a in _variances(
            states, valid, models=models or len(states), rows=rows or states.shape[2], mesh=mesh_of(states)
        )
    )
    n = int(kept.sum())
    # An eigenvalue below 0 is rounding.
    along = np.maximum(along.astype(np.float64), 0)  # [K, M, m]
    total = along.sum(-1)
    # [K, M], in the unit of the centred rows
    mean_square = mean_square.astype(np.float64) * 4.0 ** -exponent.astype(np.float64)
    undefined = np.full(total.shape, "", dtype=object)
    undefined[variance_missing(total, mean_square, n, float(jnp.finfo(states.dtype).eps))] = "no variance"
    if n < MIN_ROWS:
        undefined[:] = f"{n} finite rows; at least {MIN_ROWS} are needed"
    # [K, M]; NaN makes every figure of an undefined state NaN.
    scale = np.where(undefined == "", total, np.nan)
    with np.errstate(invalid="ignore"):
        # Components before the share is reached, and the one that reaches it.
        components = (np.cumsum(along, -1) < share * total[..., None]).sum(-1) + np.where(undefined == "", 1, np.nan)
        values = {
            "components": components,
            "participation_ratio": scale**2 / np.square(along).sum(-1),
            "top_component": along[..., 0] / scale,
            "top_dimension": within.astype(np.float64).max(-1) / scale,
        }
    # Layers come first from the devices, [K, M]; models come first in the result.
    return Spectrum(
        **{name: a.T for name, a in values.items()}, undefined=undefined.T, n=n, dropped=int(valid.sum()) - n
    )


@functools.partial(jax.jit, static_argnames=("models", "rows", "mesh"))
def _variances(
    states: Float[Array, "M K n D"], valid: Bool[Array, " n"], *, models: int, rows: int, mesh: Mesh | None
) -> tuple[jax.Array, ...]:
    """Computes the variances of all layers, times n.

    Returns:
      The rows that count [n]; variances along components [K, M, m] and within dimensions [K, M, D]; `mean_square` and
      `exponent` [K, M] as in `gram.Centred`.
    """

    def layer(x: jax.Array, kept: jax.Array) -> tuple[jax.Array, ...]:
        # [M, n, D]; rows that do not count are zero and add nothing.
        x, mean_square, exponent = gram.centre(x, kept)
        return subspaces.variances(x), jnp.square(x).sum(1), mean_square, exponent

    states, valid = states[:models, :, :rows], valid[:rows]
    kept = layerwise.counted_rows(states, valid)
    return layerwise.replicate((kept, *layerwise.over_layers(layer, states, kept, mesh)), mesh)
