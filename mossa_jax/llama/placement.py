"""Places the leaves of a model's state on a mesh, by the one table of shardings in `devices.mesh`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.model import abstract_state, logical_axes


def leaf_name(path: tuple) -> str:
    """Returns the dotted name of a leaf of the model's state, e.g. "blocks.attention.q_proj.weight"."""
    # A path has keys of several types (dict keys, attributes); `value` is the array inside an `nnx.Param`.
    parts = (getattr(key, "key", getattr(key, "name", key)) for key in path)
    return ".".join(str(part) for part in parts if part != "value")


def check_mesh(arch: Architecture, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, name: str) -> None:
    """Refuses a mesh on which the model's heads or feed-forward columns cannot be spread evenly.

    Fewer key/value heads than devices on the tensor axis are fine where they divide it (70B's 8 on 16): several devices
    then keep a copy of the same head.

    Args:
      arch: the model's.
      mesh: the devices; they need not exist.
      name: of the model, for the refusal.

    Raises:
      Refusal: 2, naming the axis, the count, and the sizes that would fit.
    """
    tensor = mesh.shape["tensor"]
    counts = {"num_attention_heads": arch.heads, "intermediate_size": arch.feed_forward}
    # If the axis is a multiple of the key/value heads, each head has several devices; otherwise it must divide them.
    if tensor % arch.kv_heads:
        counts["num_key_value_heads"] = arch.kv_heads
    for field, count in counts.items():
        if count % tensor:
            # Sizes of the tensor axis that pass all of the above, for the message.
            fitting = [n for n in range(1, arch.heads + 1) if not (arch.heads % n or arch.feed_forward % n)]
            fitting = [n for n in fitting if not (arch.kv_heads % n and n % arch.kv_heads)]
            raise Refusal(
                BAD_CONFIG,
                f"config.mesh.tensor={tensor} does not divide {field}={count} of {name}; "
                f"use one of {', '.join(map(str, fitting))}",
            )


def shardings(arch: Architecture, mesh: jax.sharding.Mesh) -> nnx.State:
    """Returns the sharding of every leaf of the model's state."""
    logical = logical_axes(arch)

    def sharding_of(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
        names = logical[leaf_name(path)]
        # Half a head is of no use to a device: each gets a copy of all key/value heads.
        if arch.kv_heads % mesh.shape["tensor"]:
            names = tuple(None if name == "kv_heads" else name for name in names)
        return mesh_lib.sharding(mesh, leaf.shape, names)

    # The dtype plays no part in a sharding.
    return jax.tree.map_with_path(sharding_of, abstract_state(arch, np.float32))


def abstract_base(arch: Architecture, mesh: jax.sharding.Mesh, dtype: DTypeLike) -> nnx.State:
    """Describes the model's state on `mesh` as shapes, dtypes and shardings."""
    return mesh_lib.abstract_tree(abstract_state(arch, jnp.dtype(dtype)), shardings(arch, mesh))
