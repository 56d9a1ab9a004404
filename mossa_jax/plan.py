"""Programs compiled ahead of time for accelerators that are not here: what fits, before anything is paid for."""

from __future__ import annotations

import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax import mesh as mesh_lib
from mossa_jax.config import Mesh
from mossa_jax.llama.adapters import AXES, target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import choose
from mossa_jax.llama.model import abstract_state
from mossa_jax.llama.weights import check_mesh, shardings
from mossa_jax.rundir import BAD_CONFIG, Refusal
from mossa_jax.states.forward import forward

# Generation -> (GiB of memory a chip; which cores make a chip, where the compiler must be told).
_CHIPS = {"v4": (32, "megacore"), "v5e": (16, None), "v5p": (95, "megacore"), "v6e": (32, None)}


def topology_devices(name: str) -> list[jax.Device]:
    """Devices of a TPU slice that need not exist, e.g. "v5e:4x4", "v5p:2x2x4".

    Raises:
      Refusal: 2 for an unknown topology, or without the package libtpu.
    """
    from jax.experimental import topologies

    generation = name.split(":")[0]
    if generation not in _CHIPS:
        raise Refusal(BAD_CONFIG, f"--topology={name}: generation must be one of {', '.join(_CHIPS)}, as in v5e:4x4")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing runs, so others need not be kept out
    megacore = _CHIPS[generation][1]
    options = {"chip_config_name": megacore} if megacore else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # whatever the plugin raises: no libtpu, or a shape that does not exist
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refusal(
            BAD_CONFIG, f"--topology={name} cannot be described ({first}); pip install libtpu, and a shape like v5e:4x4"
        ) from None


def plan_forward(
    arch: Architecture,
    devices: list[jax.Device],
    mesh: Mesh,
    *,
    name: str,
    dtype: str,
    models: int,
    rank: int,
    rows: int,
    row_length: int,
    prompts: int,
    pool: str = "last",
) -> dict[str, Any]:
    """Compiles the layerwise forward pass of `states` for `devices`.

    Args:
      arch: the base model's.
      devices: of a topology.
      mesh: devices per axis; the adapter axis is folded into `fsdp`, as in the comparison.
      name: of the model, for refusals.
      dtype: of the base.
      models, rank: adapters (q and v) that run at once, and their rank.
      rows, row_length: packed rows in a batch (rounded up to the fsdp axis), and their positions.
      prompts: of a task, whose pooled states are kept.
      pool: as in `states`.

    Returns:
      Sizes in bytes a chip (`base`, `arguments`, `temporary`, `total`), `attention` (the body that was chosen),
      `compile_seconds`.
    """
    grid = mesh_lib.make_mesh(mesh, adapters=False, devices=devices)
    check_mesh(arch, grid, name)
    rows = mesh_lib.round_up(rows, grid.shape["fsdp"])

    def shaped(shape, names, dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh_lib.sharding(grid, shape, names))

    base = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract_state(arch, jnp.dtype(dtype)),
        shardings(arch, grid),
    )
    adapters = {}
    for target in ("q_proj", "v_proj"):
        d_in, d_out = target_sizes(arch)[target]
        sizes = {"a": (d_in, rank), "b": (rank, d_out), "scale": ()}
        adapters[target] = {k: shaped((models, arch.layers, *size), AXES[k], jnp.float32) for k, size in sizes.items()}
    per_row = 16  # prompts that share a row: only the width of small index arrays
    batch = {
        field: shaped((rows, row_length), ("rows", None), jnp.int32) for field in ("tokens", "positions", "segments")
    }
    batch |= {field: shaped((rows, per_row), ("rows", None), jnp.int32) for field in ("ends", "ids")}
    kept = shaped((models, arch.layers + 2, prompts, arch.hidden), ("adapter", None, "rows", None), jnp.float32)
    start = time.monotonic()
    compiled = forward.lower(arch, pool, kept.sharding, base, adapters, batch, kept).compile()
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    own = sum(
        leaf.dtype.itemsize * int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in jax.tree.leaves(base)
    )
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return {
        "base": own,
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "total": total,
        "attention": choose(grid, jnp.dtype(dtype)),
        "compile_seconds": round(seconds, 1),
    }


def chip_bytes(topology: str) -> int:
    """Memory of one chip of a topology, in bytes."""
    return _CHIPS[topology.split(":")[0]][0] * 2**30
