"""Programs compiled ahead of time for accelerators that are not here: what fits, before anything is paid for.

Beside it stands the arithmetic of a whole experiment: FLOPs of a training step by formula, and the hours they take.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import fields
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax import mesh as mesh_lib
from mossa_jax.collectives import collectives
from mossa_jax.config import Mesh, Schedule, Tasks, Tuning
from mossa_jax.llama.adapters import AXES, target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import choose
from mossa_jax.llama.model import abstract_state
from mossa_jax.llama.weights import check_mesh, shardings
from mossa_jax.rundir import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.states.forward import forward
from mossa_jax.tasks.flan_names import MISC, select
from mossa_jax.tokens.packing import TrainingRows
from mossa_jax.tuning import population
from mossa_jax.tuning.flops import step_flops
from mossa_jax.tuning.slots import plan_slots

# Generation -> (GiB of memory; bfloat16 FLOP/s; which cores make a chip, where the compiler must be told).
_CHIPS = {
    "v4": (32, 275e12, "megacore"),
    "v5e": (16, 197e12, None),
    "v5p": (95, 459e12, "megacore"),
    "v6e": (32, 918e12, None),
}
# What the TPU compiler says of a program that is too large: all of it, or its temporary part; and the room there is.
_TOO_LARGE = re.compile(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm")
_TEMPORARY_TOO_LARGE = re.compile(r"HLO temporaries \(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)")


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
    megacore = _CHIPS[generation][2]
    options = {"chip_config_name": megacore} if megacore else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # whatever the plugin raises: no libtpu, or a shape that does not exist
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refusal(
            BAD_CONFIG, f"--topology={name} cannot be described ({first}); pip install libtpu, and a shape like v5e:4x4"
        ) from None


def chip_bytes(topology: str) -> int:
    """Memory of one chip of a topology, in bytes."""
    return _CHIPS[topology.split(":")[0]][0] * 2**30


def chip_flops(topology: str) -> float:
    """Peak of one chip of a topology in bfloat16, in FLOP/s (Google's published figures)."""
    return _CHIPS[topology.split(":")[0]][1]


def _shaped(grid: jax.sharding.Mesh, shape: Sequence[int], names: Sequence[str | None], dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh_lib.sharding(grid, shape, names))


def _base_shapes(arch: Architecture, grid: jax.sharding.Mesh, dtype: str) -> Any:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract_state(arch, jnp.dtype(dtype)),
        shardings(arch, grid),
    )


def _bytes(tree: Any) -> int:
    """What one device holds of arrays with these shapes and shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves)


def _adapter_shapes(
    arch: Architecture, grid: jax.sharding.Mesh, models: int, rank: int, targets: Sequence[str], names: Sequence[str]
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    found = {}
    for target in targets:
        d_in, d_out = target_sizes(arch)[target]
        sizes = {"a": (d_in, rank), "b": (rank, d_out), "scale": ()}
        found[target] = {
            name: _shaped(grid, (models, arch.layers, *sizes[name]), AXES[name], jnp.float32) for name in names
        }
    return found


def _compile(lowered: Any, arguments: Any) -> tuple[dict[str, Any], str]:
    """Compiles; returns sizes in bytes a chip with the seconds that it took, and the program's text.

    The text is empty where it cannot be had. Of a program that the compiler itself finds too large only the compiler's
    figures are known, with the `room` that it found on a chip.
    """
    start = time.monotonic()
    found = {"arguments": _bytes(arguments)}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        whole, temporary = (pattern.search(str(error)) for pattern in (_TOO_LARGE, _TEMPORARY_TOO_LARGE))
        if not (whole or temporary):
            raise
        size, room = (
            int(float(part[:-1]) * 1024 ** (1 + "KMGT".index(part[-1]))) for part in (whole or temporary).groups()
        )
        total = size if whole else size + found["arguments"]
        found |= {"temporary": total - found["arguments"], "total": total, "room": room}
        return found | {"compile_seconds": round(time.monotonic() - start, 1)}, ""
    memory = compiled.memory_analysis()
    found |= {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "total": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
    }
    found["compile_seconds"] = round(time.monotonic() - start, 1)
    try:
        return found, compiled.as_text()
    except jax.errors.JaxRuntimeError:  # jaxlib cannot read every instruction that libtpu writes
        return found, ""


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
      Sizes in bytes a chip (`base`, `arguments`, `temporary`, `total`), `mesh` (devices per axis), `attention` (the
      body that was chosen), `compile_seconds`.
    """
    grid = mesh_lib.make_mesh(mesh, adapters=False, devices=devices)
    check_mesh(arch, grid, name)
    rows = mesh_lib.round_up(rows, grid.shape["fsdp"])
    base = _base_shapes(arch, grid, dtype)
    adapters = _adapter_shapes(arch, grid, models, rank, ("q_proj", "v_proj"), tuple(AXES))
    per_row = 16  # prompts that share a row: only the width of small index arrays
    widths = dict.fromkeys(("tokens", "positions", "segments"), row_length) | dict.fromkeys(("ends", "ids"), per_row)
    batch = {field: _shaped(grid, (rows, width), ("rows", None), jnp.int32) for field, width in widths.items()}
    shape = (models, arch.layers + 2, prompts, arch.hidden)
    kept = _shaped(grid, shape, ("adapter", None, "rows", None), jnp.float32)
    lowered = forward.lower(arch, pool, kept.sharding, base, adapters, batch, kept)
    found, _ = _compile(lowered, (base, adapters, batch, kept))
    return {"base": _bytes(base), "mesh": dict(grid.shape), "attention": choose(grid, jnp.dtype(dtype))} | found


def plan_tuning(
    arch: Architecture,
    devices: list[jax.Device],
    mesh: Mesh,
    *,
    name: str,
    dtype: str,
    slots: int,
    rows: int,
    row_length: int,
    rank: int,
    targets: Sequence[str],
    answers: int,
    remat: bool = True,
    parts: int = 1,
) -> dict[str, Any]:
    """Compiles the population's training step for `devices`.

    Args:
      arch: the base model's.
      devices: of a topology.
      mesh: devices per axis.
      name: of the model, for refusals.
      dtype: of the base.
      slots: models that are trained at once (rounded up to the adapter axis, as in a run).
      rows, row_length: packed rows a model and step, and their positions.
      rank, targets: of the adapters.
      answers: the most answer tokens in a row.
      remat, parts: as in `tuning.population.make_step`.

    Returns:
      Sizes in bytes a chip (`base`, `arguments`, `temporary`, `total`), `mesh` (devices per axis), `slots`,
      `attention` (the body that was chosen), `compile_seconds`, `flops` (`step_flops` of all slots together, over all
      chips) and `collectives` (None where the program's text cannot be had).

    Raises:
      Refusal: 2 when rows cannot be spread evenly.
    """
    grid = mesh_lib.make_mesh(mesh, devices=devices)
    check_mesh(arch, grid, name)
    even = grid.shape["fsdp"] * parts
    if rows % even:
        raise Refusal(
            BAD_CONFIG,
            f"rows={rows} a model and step: {grid.shape['fsdp']} devices on the fsdp axis and parts={parts} need a "
            f"multiple of {even}",
        )
    slots = mesh_lib.round_up(slots, grid.shape["adapter"])
    sizes = {"rows": rows, "row_length": row_length, "rank": rank, "targets": targets, "answers": answers}
    shapes = tuning_shapes(arch, grid, dtype=dtype, slots=slots, **sizes)
    step = population.make_step(arch, population.optimizer_for(Tuning(), Schedule()), grid, remat, parts)
    found, text = _compile(step.lower(*shapes), shapes)
    flops = step_flops(arch, **sizes, remat=remat)
    return {
        "base": _bytes(shapes[0]),
        "mesh": dict(grid.shape),
        "slots": slots,
        "attention": choose(grid, jnp.dtype(dtype)),
        **found,
        "flops": {part: slots * count for part, count in flops.items()},
        "collectives": collectives(text, dict(grid.shape)) if text else None,
    }


def tuning_shapes(
    arch: Architecture,
    grid: jax.sharding.Mesh,
    *,
    dtype: str,
    slots: int,
    rows: int,
    row_length: int,
    rank: int,
    targets: Sequence[str],
    answers: int,
) -> tuple:
    """What `tuning.population.make_step`'s step takes, as shapes with the shardings that a run would give them.

    Args: as of `plan_tuning`, with a mesh for its config.

    Returns:
      (base, scale, total, state, batch, active).
    """
    by_slot = lambda dtype: _shaped(grid, (slots,), ("adapter",), dtype)  # noqa: E731
    adapters = _adapter_shapes(arch, grid, slots, rank, targets, ("a", "b"))
    scale = {t: part["scale"] for t, part in _adapter_shapes(arch, grid, slots, rank, targets, ("scale",)).items()}
    transformation = population.optimizer_for(Tuning(), Schedule()).transformation()
    moments = jax.tree.map(
        lambda leaf: _shaped(grid, leaf.shape, ("adapter",) + (None,) * (leaf.ndim - 1), leaf.dtype),
        jax.eval_shape(jax.vmap(transformation.init), adapters),
    )
    guards = {name: by_slot(kind) for name, kind in population.GUARDS.items()}
    state = {"adapters": adapters, "moments": moments, "guards": guards, "step": by_slot(jnp.int32)}
    widths = dict.fromkeys(("tokens", "segments", "positions"), row_length) | dict.fromkeys(
        ("predict", "labels"), answers
    )
    batch = {
        field.name: _shaped(grid, (slots, rows, widths[field.name]), ("adapter", "rows", None), jnp.int32)
        for field in fields(TrainingRows)
    }
    return _base_shapes(arch, grid, dtype), scale, by_slot(jnp.int32), state, batch, by_slot(jnp.bool_)


def paper_rows() -> tuple[list[int], int]:
    """Training rows of each of the paper's 60 controls, and of E, in our reading (`tasks.flan_names`)."""
    caps = Tasks()
    clusters: dict[str, list[int]] = {}
    for task in select("paper"):
        if task.cluster != MISC:
            clusters.setdefault(task.cluster, []).append(min(task.rows, caps.max_train))
    return list(chain(*clusters.values())), sum(min(sum(rows), caps.max_per_cluster) for rows in clusters.values())


def plan_hours(
    flops: float, topology: str, chips: int, *, slots: int, batch: int, tokens: float, epochs: float, use: float,
    slot_use: float = 0.0,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """What tuning the paper's experiment takes, 60 controls and E, at a given use of the chips.

    Args:
      flops: model FLOPs a token (`step_flops`).
      topology, chips: whose peak is used, and how many there are.
      slots, batch: controls trained at once, and tokens a model and step.
      tokens: of all controls together, one pass; E's share is that of its rows, and a control's that of its own.
      epochs: passes.
      use: model FLOPs over the chips' peak, over the whole run.
      slot_use: share of the slots' steps in which a model is trained; 0: of `tuning.slots.plan_slots`. E has all chips
        for itself.

    Returns:
      `controls`, `tuned` and `together`, each {"tokens", "flops", "slot_use", "chip_hours", "hours"}.
    """
    rows, mixture = paper_rows()
    steps = [max(1, round(epochs * tokens * own / sum(rows) / batch)) for own in rows]
    shares = {"controls": (1.0, slot_use or plan_slots(steps, slots).utilisation), "tuned": (mixture / sum(rows), 1.0)}
    found = {}
    for name, (share, used) in shares.items():
        work = flops * epochs * tokens * share
        hours = work / (use * used * chips * chip_flops(topology)) / 3600
        found[name] = {
            "tokens": epochs * tokens * share,
            "flops": work,
            "slot_use": used,
            "chip_hours": hours * chips,
            "hours": hours,
        }
    together = {part: found["controls"][part] + found["tuned"][part] for part in ("tokens", "flops", "hours")}
    return found | {"together": together | {"chip_hours": together["hours"] * chips}}


def check_fits(what: str, total: int, room: int, remedy: str) -> None:
    """Refuses a program that needs more bytes a chip, `total`, than there are, `room`.

    Raises:
      Refusal: 3, with the number of missing bytes.
    """
    if total > room:
        raise Refusal(
            BAD_INPUT, f"{what} does not fit: {total - room} bytes a chip are missing ({total} of {room}); {remedy}"
        )
