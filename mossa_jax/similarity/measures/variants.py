"""Transformed kept states, so that a measure does not only see the few directions with most of the variance.

CKA can be decided by one massive dimension or one component (Davari et al. 2022). Each variant takes and gives states
[M, K, n, D]; `compare_states` and `measure_states` take them as they are, so intervals and nulls come too (of the
transformation as fixed: it is not fitted anew for each row left out). Rows that do not count, or are not finite
somewhere, pass through unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from mossa_jax.errors import Refusal
from mossa_jax.similarity import gram, layerwise
from mossa_jax.similarity.estimators import variance_missing
from mossa_jax.similarity.measures import subspaces


def standardised(states: jax.Array, valid: np.ndarray | jax.Array) -> jax.Array:
    """Every dimension centred and divided by its own standard deviation over the rows that count.

    A dimension without variance (its spread is rounding of its mean) is 0 in all rows, which is to leave it out.

    Args:
        states: [M, K, n, D] float32 or bfloat16, possibly sharded on a mesh.
        valid: [n] bool.

    Returns:
        [M, K, n, D] float32, sharded as `states`.

    Raises:
        Refusal: code 3 where shapes do not fit.
    """
    return _apply(states, valid, _standardise)


def without_top_components(states: jax.Array, valid: np.ndarray | jax.Array, count: int = 1) -> jax.Array:
    """Centred rows less their projection on the state's `count` top principal components.

    Where nothing but rounding is left, the state becomes constant 0, and similarities with it undefined.

    Args:
        states: [M, K, n, D] float32 or bfloat16, possibly sharded on a mesh.
        valid: [n] bool.
        count: components to remove, at least 1 and fewer than n and D.

    Returns:
        [M, K, n, D] float32, sharded as `states`.

    Raises:
        Refusal: code 2 for a count out of range; 3 where shapes do not fit.
    """
    states = jnp.asarray(states)
    if states.ndim == 4 and not 0 < count < min(states.shape[2:]):
        raise Refusal(2, f"count is {count}; give at least 1 and fewer than {min(states.shape[2:])} components")
    return _apply(states, valid, _remover(count))


def unit_rows(states: jax.Array, valid: np.ndarray | jax.Array) -> jax.Array:
    """Every row divided by its norm: Euclidean neighbours are then those of the cosine, as in Huh et al. 2024.

    A row of zeros stays one. Same arguments, result and refusals as `standardised`.
    """
    return _apply(states, valid, _divide_by_norm)


# One layer's states [M, n, D], kept [n], epsilon of the stored dtype -> [M, n, D] float32.
Transform = Callable[[jax.Array, jax.Array, float], jax.Array]


def _standardise(x: jax.Array, kept: jax.Array, eps: float) -> jax.Array:
    models, n, width = x.shape
    # Each dimension is centred, scaled and judged as a state of its own.
    columns = gram.centre(jnp.swapaxes(x, 1, 2).reshape(models * width, n, 1), kept)
    square, count = jnp.square(columns.rows).sum(1), kept.sum()
    scale = jnp.ldexp(jnp.ones(()), columns.exponent)
    flat = variance_missing(square[:, 0] * scale**2, columns.mean_square, count, eps)[:, None]
    deviation = jnp.sqrt(square / jnp.maximum(count, 1))
    out = jnp.where(flat, 0, columns.rows[..., 0] / jnp.where(flat, 1, deviation))
    return jnp.swapaxes(out.reshape(models, width, n), 1, 2)


@functools.cache
def _remover(count: int) -> Transform:
    def transform(x: jax.Array, kept: jax.Array, eps: float) -> jax.Array:
        centred = gram.centre(x, kept)
        rest = subspaces.without_top(centred.rows, count)
        rows = kept.sum()
        before, after = (jnp.square(a).sum((1, 2)) for a in (centred.rows, rest))
        scale = jnp.ldexp(jnp.ones(()), centred.exponent)
        flat = variance_missing(before * scale**2, centred.mean_square, rows, eps)
        # What was removed leaves its rounding behind, as an offset does.
        flat |= variance_missing(after, before / jnp.maximum(rows, 1), rows, eps)
        return jnp.where(flat[:, None, None], 0, rest)

    return transform


def _divide_by_norm(x: jax.Array, kept: jax.Array, eps: float) -> jax.Array:
    x = jnp.where(kept[:, None], x.astype(jnp.float32), 0)
    peak = jnp.abs(x).max(-1, keepdims=True)
    x = x / jnp.where(peak > 0, peak, 1)
    return x / jnp.where(peak > 0, jnp.linalg.norm(x, axis=-1, keepdims=True), 1)


def _apply(states: jax.Array, valid: np.ndarray | jax.Array, transform: Transform) -> jax.Array:
    valid = np.asarray(valid)
    states = jnp.asarray(states)
    layerwise.check(states, valid)
    mesh = layerwise.mesh_of(states)
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
    states: jax.Array,
    valid: jax.Array,
    *,
    transform: Transform,
    eps: float,
    mesh: Mesh | None,
    sharding: NamedSharding | None,
) -> jax.Array:
    def layer(x: jax.Array, kept: jax.Array) -> jax.Array:
        return jnp.where(kept[:, None], transform(x, kept, eps), x.astype(jnp.float32))

    kept = layerwise.kept_rows(states, valid)
    found = jnp.swapaxes(layerwise.over_layers(layer, states, kept, mesh), 0, 1)
    return lax.with_sharding_constraint(found, sharding) if mesh else found
