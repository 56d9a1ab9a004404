"""Transformed kept states, so that a measure sees more than the few directions with most of the variance.

One massive dimension or one component can decide CKA (Davari et al. 2022, "Reliability of CKA as a similarity measure
in deep learning"). Each variant maps states [M, K, n, D] to states of the same shape, which `compare_states` and
`measure_states` take as they are. Intervals and nulls come with them, with the transformation held fixed: it is not
fitted again for each row left out. Rows that do not count, or are not finite somewhere, pass through unchanged.

Shape letters: M models, K layers, n rows, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Bool, Float

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.similarity import gram, layerwise
from mossa_jax.similarity.checks import check_states, mesh_of
from mossa_jax.similarity.estimators import variance_missing
from mossa_jax.similarity.measures import subspaces


def standardised(states: Float[Array, "M K n D"], valid: np.ndarray | jax.Array) -> jax.Array:
    """Centres every dimension and divides it by its own standard deviation over the rows that count.

    A dimension without variance (its spread is rounding of its mean) becomes 0 in all rows, which leaves it out.

    Args:
      states: [M, K, n, D] float32 or bfloat16, possibly sharded on a mesh.
      valid: [n] bool.

    Returns:
      [M, K, n, D] float32, sharded as `states`.

    Raises:
      Refusal: 3 if shapes do not fit.
    """
    return _apply(states, valid, _standardise)


def without_top_components(
    states: Float[Array, "M K n D"], valid: np.ndarray | jax.Array, count: int = 1
) -> Float[Array, "M K n D"]:
    """Centres rows and subtracts their projection on the state's `count` top principal components.

    If nothing but rounding is left, the state becomes constant 0, and similarities with it are undefined.

    Args:
      states: [M, K, n, D] float32 or bfloat16, possibly sharded on a mesh.
      valid: [n] bool.
      count: components to remove, at least 1 and fewer than n and D.

    Returns:
      [M, K, n, D] float32, sharded as `states`.

    Raises:
      Refusal: 2 for a count out of range; 3 if shapes do not fit.
    """
    states = jnp.asarray(states)
    if states.ndim == 4 and not 0 < count < min(states.shape[2:]):
        raise Refusal(
            BAD_CONFIG, f"count is {count}; give at least 1 and fewer than {min(states.shape[2:])} components"
        )
    return _apply(states, valid, _remover(count))


def unit_rows(states: Float[Array, "M K n D"], valid: np.ndarray | jax.Array) -> jax.Array:
    """Divides every row by its norm, so that Euclidean neighbours are those of the cosine, as in Huh et al. 2024.

    A row of zeros stays zero. Arguments, result and refusals are those of `standardised`.
    """
    return _apply(states, valid, divide_by_norm)


Transform = Callable[[Float[Array, "M n D"], Bool[Array, " n"], float], Float[Array, "M n D"]]
"""(states of one layer, rows that count, epsilon of the stored dtype) -> float32 states."""


def _standardise(x: jax.Array, kept: jax.Array, eps: float) -> jax.Array:
    models, n, width = x.shape
    # [M D, n, 1]: each dimension is centred, scaled and tested for variance as a state of its own, so that a small
    # dimension beside a massive one keeps its digits.
    columns = gram.centre(jnp.swapaxes(x, 1, 2).reshape(models * width, n, 1), kept)
    square, count = jnp.square(columns.rows).sum(1), kept.sum()  # [M D, 1]
    # [M D]. `mean_square` is in the unit before the last scaling; the squares are brought back to it.
    scale = jnp.ldexp(jnp.ones(()), columns.exponent)
    is_flat = variance_missing(square[:, 0] * scale**2, columns.mean_square, count, eps)[:, None]
    # [M D, 1], the population deviation; scaling cancels, since the rows have the same unit.
    deviation = jnp.sqrt(square / jnp.maximum(count, 1))
    out = jnp.where(is_flat, 0, columns.rows[..., 0] / jnp.where(is_flat, 1, deviation))  # [M D, n]
    return jnp.swapaxes(out.reshape(models, width, n), 1, 2)


# The same function object for the same count: it is a static argument of the program, which is compiled once.
@functools.cache
def _remover(count: int) -> Transform:
    def transform(x: jax.Array, kept: jax.Array, eps: float) -> jax.Array:
        centred = gram.centre(x, kept)
        # [M, n, D] each, before and after
        rest = subspaces.without_top(centred.rows, count)
        rows = kept.sum()
        # [M] each
        before, after = (jnp.square(a).sum((1, 2)) for a in (centred.rows, rest))
        scale = jnp.ldexp(jnp.ones(()), centred.exponent)
        is_flat = variance_missing(before * scale**2, centred.mean_square, rows, eps)
        # Removed components leave rounding behind, as a subtracted mean does. A remainder of that size is no variance.
        is_flat |= variance_missing(after, before / jnp.maximum(rows, 1), rows, eps)
        return jnp.where(is_flat[:, None, None], 0, rest)

    return transform


def divide_by_norm(x: Float[Array, "M n D"], kept: Bool[Array, " n"], eps: float = 0.0) -> Float[Array, "M n D"]:
    """Divides every row that counts by its norm; the others become zero. `eps` is not used."""
    x = jnp.where(kept[:, None], x.astype(jnp.float32), 0)
    # Divided by the largest entry first, so that no square overflows or vanishes. [M, n, 1]
    peak = jnp.abs(x).max(-1, keepdims=True)
    x = x / jnp.where(peak > 0, peak, 1)
    return x / jnp.where(peak > 0, jnp.linalg.norm(x, axis=-1, keepdims=True), 1)


def _apply(states: jax.Array, valid: np.ndarray | jax.Array, transform: Transform) -> jax.Array:
    valid = np.asarray(valid)
    states = jnp.asarray(states)
    check_states(states, valid)
    mesh = mesh_of(states)
    return _transformed(
        states,
        valid,
        transform=transform,
        eps=float(jnp.finfo(states.dtype).eps),
        mesh=mesh,
        sharding=states.sharding if mesh else None,
    )


@functools.partial(jax.jit, static_argnames=("transform", "eps", "mesh", "sharding"))
def _transformed(
    states: Float[Array, "M K n D"],
    valid: Bool[Array, " n"],
    *,
    transform: Transform,
    eps: float,
    mesh: Mesh | None,
    sharding: Sharding | None,
) -> jax.Array:
    def layer(x: jax.Array, kept: jax.Array) -> jax.Array:
        # [M, n, D]. A row that is not finite stays as it is, so that a later comparison drops and counts it again.
        return jnp.where(kept[:, None], transform(x, kept, eps), x.astype(jnp.float32))

    # Layers are dealt over the devices to be transformed, and then go back to the sharding of the states.
    kept = layerwise.counted_rows(states, valid)
    transformed = jnp.swapaxes(layerwise.over_layers(layer, states, kept, mesh), 0, 1)  # [M, K, n, D]
    return lax.with_sharding_constraint(transformed, sharding) if mesh else transformed
