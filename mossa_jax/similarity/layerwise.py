"""Runs one function on every layer of kept states, with the layers dealt over the devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

Tree = TypeVar("Tree")


def counted_rows(states: Float[Array, "M K n D"], valid: Bool[Array, " n"]) -> Bool[Array, " n"]:
    """Returns which rows count: the valid ones that are finite in every model and layer."""
    return valid & jnp.isfinite(states).all((0, 1, 3))


def over_layers(
    function: Callable[[jax.Array, Any], Any],
    states: Float[Array, "M K n D"],
    kept: Any,
    mesh: Mesh | None,
) -> Any:
    """Runs `function(states of one layer [M, n, D], kept)` for every layer; to be called under `jax.jit`.

    On a mesh an all-to-all exchanges the sharding of the rows for one of the layers. No device ever holds more than its
    share of whole layers, and the function may sort, factorise and compare rows without any transfers.

    Args:
      function: returns a pytree of arrays.
      states: [M, K, n, D], in any sharding.
      kept: [n] bool, the rows that count; or a pytree with all that the function needs beside the states.
      mesh: the mesh that layers are dealt over, or None.

    Returns:
      The function's pytree, each array with the K layers as its first axis.
    """
    layers = states.shape[1]

    def run(states: jax.Array, kept: Any) -> Any:
        # One layer after the other, so that only one layer's temporaries are in memory.
        def one_layer(k: jax.Array) -> Any:
            return function(lax.dynamic_index_in_dim(states, k, axis=1, keepdims=False), kept)

        return lax.map(one_layer, jnp.arange(states.shape[1]))

    if mesh is None:
        return run(states, kept)
    # [M, K', n, D]: padded with layers of zeros to a multiple of the devices, so that each takes the same number.
    states = jnp.pad(states, ((0, 0), (0, -layers % mesh.size), (0, 0), (0, 0)))
    # Layers are dealt first over the devices that share columns, then over those that share rows: one all-to-all each.
    # Asked for both at once, XLA gives every device the whole array first.
    inner = tuple(name for name in mesh.axis_names if name == "tensor")
    outer = tuple(name for name in mesh.axis_names if name != "tensor")
    states = lax.with_sharding_constraint(states, NamedSharding(mesh, P(None, inner, outer)))
    spec = P(None, (*inner, *outer))
    # The specification asks for whole layers per device; `jit` inserts the all-to-all that brings them there.
    dealt = jax.shard_map(run, mesh=mesh, in_specs=(spec, P()), out_specs=P(spec[1]), check_vma=False)
    # Results of the padding are cut off again.
    return jax.tree.map(lambda a: a[:layers], dealt(states, kept))


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """Replicates the arrays over the mesh, so that every process can read them; to be called under `jax.jit`."""
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, P())) if mesh else tree
