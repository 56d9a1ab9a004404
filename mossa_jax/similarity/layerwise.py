"""One function for every layer of kept states, the layers dealt over the devices: no transfers while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mossa_jax.errors import Refusal


def check(states: jax.Array, valid: np.ndarray) -> None:
    """Raises Refusal 3 unless states are floating [M, K, n, D] and valid is [n] bool."""
    if states.ndim != 4 or not jnp.issubdtype(states.dtype, jnp.floating):
        raise Refusal(3, f"states are {states.dtype}{list(states.shape)}; give floating [models, layers, rows, width]")
    if valid.shape != states.shape[2:3] or valid.dtype != bool:
        raise Refusal(3, f"valid is {valid.dtype}{list(valid.shape)}; give one bool for each of {states.shape[2]} rows")


def mesh_of(states: jax.Array) -> Mesh | None:
    """The mesh on which the states lie, None on a single device."""
    mesh = states.sharding.mesh if isinstance(states.sharding, NamedSharding) else None
    return mesh if mesh is not None and mesh.size > 1 else None


def kept_rows(states: jax.Array, valid: jax.Array) -> jax.Array:
    """[n] bool: the valid rows that are finite in every model and layer."""
    return valid & jnp.isfinite(states).all((0, 1, 3))


def over_layers(
    function: Callable[[jax.Array, jax.Array], Any], states: jax.Array, kept: jax.Array, mesh: Mesh | None
) -> Any:
    """Runs `function(states of one layer [M, n, D], kept [n])` for every layer; to be called under `jax.jit`.

    On a mesh the rows' axis is given up for the layers' (an all-to-all, no device ever holds more than its share of
    whole layers), so that a function may sort, factorise and compare rows as if it were alone.

    Args:
        function: returns a pytree of arrays.
        states: [M, K, n, D], sharded anyhow.
        kept: [n] bool.
        mesh: over which layers are dealt, or None.

    Returns:
        The function's pytree, each array with K layers as its first axis.
    """
    layers = states.shape[1]

    def run(states: jax.Array, kept: jax.Array) -> Any:
        def one(k: jax.Array) -> Any:
            return function(lax.dynamic_index_in_dim(states, k, axis=1, keepdims=False), kept)

        return lax.map(one, jnp.arange(states.shape[1]))

    if mesh is None:
        return run(states, kept)
    states = jnp.pad(states, ((0, 0), (0, -layers % mesh.size), (0, 0), (0, 0)))
    dealt = jax.shard_map(
        run, mesh=mesh, in_specs=(P(None, mesh.axis_names), P()), out_specs=P(mesh.axis_names), check_vma=False
    )
    return jax.tree.map(lambda a: a[:layers], dealt(states, kept))


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """The same arrays whole on every device, so that every process can read them."""
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, P())) if mesh else tree
