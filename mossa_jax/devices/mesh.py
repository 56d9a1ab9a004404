"""Meshes, and the one table from logical axes to mesh axes.

All placement is by name. Arrays name the meaning of their axes, as in `("layers", "embed", "heads")`, and `RULES` gives
each meaning a mesh axis. The mesh axes are of type Auto: XLA's partitioner derives all other shardings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mossa_jax.config import Mesh as MeshConfig
from mossa_jax.errors import BAD_CONFIG, Refusal

AXES = ("adapter", "fsdp", "tensor")

# Logical axis -> mesh axis; None keeps an axis whole on every device.
RULES: dict[str, str | None] = {
    "adapter": "adapter",
    "rows": "fsdp",
    "embed": "fsdp",
    "kept": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "feed_forward": "tensor",
    "vocab": "tensor",
    "layers": None,
    "rank": None,
    "positions": None,
}


def make_mesh(
    config: MeshConfig, adapters: bool = True, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """Returns a mesh with the axes ('adapter', 'fsdp', 'tensor') over all devices.

    Args:
      config: devices per axis; at most one axis is -1 and takes the rest.
      adapters: False merges the adapter axis into `fsdp`, for stages that run a single model.
      devices: all devices of all processes by default.

    Raises:
      Refusal: 2 when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices), adapters)
    grid = np.asarray(devices).reshape(sizes)
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def axis_sizes(config: MeshConfig, devices: int, adapters: bool = True) -> list[int]:
    """Returns the number of devices on each of `AXES`.

    Args:
      config: as in `make_mesh`.
      devices: number of devices.
      adapters: as in `make_mesh`.

    Raises:
      Refusal: 2, as in `make_mesh`.
    """
    sizes = [config.adapter, config.fsdp, config.tensor]
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) > 1 or known < 1 or devices % known:
        raise Refusal(
            BAD_CONFIG,
            f"config.mesh={config.adapter},{config.fsdp},{config.tensor} (adapter,fsdp,tensor) does not fit "
            f"{devices} devices; use at most one -1 and divisors of {devices}",
        )
    sizes = [devices // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != devices:
        raise Refusal(
            BAD_CONFIG,
            f"config.mesh={config.adapter},{config.fsdp},{config.tensor} uses {int(np.prod(sizes))} of "
            f"{devices} devices; set one axis to -1",
        )
    return sizes if adapters else [1, sizes[0] * sizes[1], sizes[2]]


def single_device() -> jax.sharding.Mesh:
    """Returns the mesh of this process's first device, where every axis has size one."""
    return make_mesh(MeshConfig(1, 1, 1), devices=jax.local_devices()[:1])


def sharding(mesh: jax.sharding.Mesh, shape: Sequence[int], names: Sequence[str | None]) -> NamedSharding:
    """Returns the sharding of an array.

    Args:
      mesh: the devices.
      shape: of the array.
      names: the logical axis of each axis; None keeps it whole. An axis whose size does not divide also stays whole.
    """
    axes = []
    for size, name in zip(shape, names, strict=True):
        axis = RULES[name] if name is not None else None
        axes.append(axis if axis is not None and size % mesh.shape[axis] == 0 else None)
    return NamedSharding(mesh, P(*axes))


def specs(mesh: jax.sharding.Mesh, *arrays: tuple[Sequence[int], Sequence[str | None]]) -> tuple[P, ...]:
    """Returns the specifications of arrays, each given as (shape, names), for `jax.shard_map`; as in `sharding`."""
    return tuple(sharding(mesh, shape, names).spec for shape, names in arrays)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds completely."""
    return NamedSharding(mesh, P())


def place(mesh: jax.sharding.Mesh, array: np.ndarray, names: Sequence[str | None]) -> jax.Array:
    """Turns a host array, the same on every process, into a global array; each process copies only its own shards."""
    target = sharding(mesh, array.shape, names)
    return jax.make_array_from_callback(array.shape, target, lambda index: array[index])


def round_up(size: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def abstract(
    mesh: jax.sharding.Mesh, shape: Sequence[int], names: Sequence[str | None], dtype: DTypeLike
) -> jax.ShapeDtypeStruct:
    """Returns the shape, dtype and sharding of the array that `place` would make."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh, shape, names))


def abstract_tree(tree: Any, shardings: Any) -> Any:
    """Returns a tree of shapes and dtypes, with the shardings of a tree of the same structure."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )
