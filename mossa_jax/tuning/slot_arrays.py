"""Moves the arrays of slots between the host and the devices.

Shape letters: A places (slots, rounded up to the mesh's adapter axis), L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama import adapters as adapters_lib
from mossa_jax.llama.adapters import Adapters, HostAdapters
from mossa_jax.tuning.population import Metrics, Scale


class SlotArrays:
    """The arrays of slots on a mesh, and the programs that bring them back to the host."""

    def __init__(self, mesh: jax.sharding.Mesh, places: int):
        """Prepares programs for a number of places, A."""
        self.mesh, self._places = mesh, places
        replicated = mesh_lib.replicated(mesh)
        # Slots lie on the devices of different processes, and no process can read what is not on its own devices. These
        # programs leave a copy on every device.
        self._replicate = jax.jit(lambda tree: tree, out_shardings=replicated)
        self._select = jax.jit(_sum_where, out_shardings=replicated)

    def place(self, values: np.ndarray) -> jax.Array:
        """Places a value per slot, [A]."""
        return mesh_lib.place(self.mesh, values, ("adapter",))

    def place_scale(self, scale: Float[np.ndarray, " L"], targets: Sequence[str]) -> Scale:
        """Places the same LoRA scales for every slot and target, [A, L] each."""
        # [L] -> [A, L]. All targets share one array, since nothing ever writes to it.
        stacked = np.ascontiguousarray(np.broadcast_to(scale, (self._places, len(scale))))
        return dict.fromkeys(targets, mesh_lib.place(self.mesh, stacked, adapters_lib.AXES["scale"]))

    def fetch(self, metrics: Metrics) -> dict[str, Any]:
        """Returns metrics [A] of all slots on the host of every process."""
        return jax.tree.map(np.asarray, self._replicate(metrics))

    def fetch_adapter(self, adapters: Adapters, slot: int) -> HostAdapters:
        """Returns one slot's `a` and `b` on the host of every process."""
        # The slot is an array argument, so that one program serves all slots.
        return jax.tree.map(np.asarray, self._select(adapters, self.place(np.arange(self._places) == slot)))


def _sum_where(tree: Adapters, is_selected: Bool[jax.Array, " A"]) -> Adapters:
    """Selects one slot of arrays [A, ...] by a masked sum, so that no device ever holds the other slots' values."""

    def select(leaf: jax.Array) -> jax.Array:
        # [A] -> [A, 1, ...], then [A, ...] -> [...]. All other terms are zero, also where a neighbour's value is NaN.
        return jnp.where(is_selected.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0).sum(axis=0)

    return jax.tree.map(select, tree)
