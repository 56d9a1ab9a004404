"""The first rows of the first models of a task's states, where they lie: on the mesh, spread as before."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mossa_jax.devices.mesh import round_up, sharding
from mossa_jax.states.keep import STATE_AXES

# Rows are cut at a multiple of this: tasks then share a program, and the rows still spread over the devices.
_MULTIPLE = 128


def rows_of(kept: int, most: int) -> int:
    """Returns how many rows a sample of at most `most` prompts takes of `kept` rows."""
    return min(kept, round_up(most, _MULTIPLE))


def first_rows(
    mesh: jax.sharding.Mesh,
    states: Float[Array, "M K n D"],
    models: int,
    rows: int,
    *more: Float[Array, "m K n D"],
) -> Float[Array, "S K rows D"]:
    """Copies the first rows of the first models, with all models of further arrays behind them.

    Args:
      mesh: that the states are spread over.
      states: [M, K, n, D].
      models: how many of the M.
      rows: how many of the n.
      more: states of other models over the same prompts, [m, K, n', D].
    """
    return _first_rows(mesh, models, rows, states, *more)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _first_rows(mesh: jax.sharding.Mesh, models: int, rows: int, states: jax.Array, *more: jax.Array) -> jax.Array:
    parts = jnp.concatenate([states[:models, :, :rows], *(each[:, :, :rows] for each in more)])
    # Left to the compiler, rows that do not divide might be copied to every device.
    return jax.lax.with_sharding_constraint(parts, sharding(mesh, parts.shape, STATE_AXES))
