"""Programs compiled ahead of time for accelerators that are not here: what fits, before anything is paid for.

Beside it stands the arithmetic of a whole experiment: FLOPs of a training step by formula, and the hours they take.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import fields
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp

from mossa_jax import mesh as mesh_lib
from mossa_jax.collectives import collectives
from mossa_jax.config import Config, Mesh, Schedule, Tasks, Tuning, recompute
from mossa_jax.llama.adapters import AXES, target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import choose
from mossa_jax.llama.model import abstract_state, shareable
from mossa_jax.llama.weights import check_mesh, shardings
from mossa_jax.rundir import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.similarity import moments
from mossa_jax.similarity.streamed import stream_batch
from mossa_jax.states.forward import Pass, forward
from mossa_jax.tasks.flan_names import MISC, select
from mossa_jax.tokens.packing import WORTH, TrainingRows
from mossa_jax.tuning import population
from mossa_jax.tuning.flops import step_flops
from mossa_jax.tuning.memory import SHARE, bytes_on_device, compiler_bytes, program_bytes
from mossa_jax.tuning.slots import plan_slots
from mossa_jax.workbench import base_tokenizer

# Generation -> (GiB of memory; bfloat16 FLOP/s; which cores make a chip, where the compiler must be told).
_CHIPS = {
    "v4": (32, 275e12, "megacore"),
    "v5e": (16, 197e12, None),
    "v5p": (95, 459e12, "megacore"),
    "v6e": (32, 918e12, None),
}


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
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := compiler_bytes(error, bytes_on_device(arguments))) is None:
            raise
        return found | {"compile_seconds": round(time.monotonic() - start, 1)}, ""
    found = program_bytes(compiled) | {"compile_seconds": round(time.monotonic() - start, 1)}
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
    lead: int = 0,
) -> dict[str, Any]:
    """Compiles the pass of a comparison for `devices`: the layerwise forward pass with its kept states, or with pool
    `all` the same with streamed moments of neighbouring models.

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
      lead: ids that all prompts share.

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
    made = Pass(arch, pool, lead, 0, 0, grid)
    shared = _lead_shapes(arch, grid, dtype, models, lead) if lead else None
    layers = arch.layers + 2
    if pool == "all":
        pairs = tuple((model, model + 1) for model in range(models - 1))
        begin = jax.jit(jax.vmap(lambda shift: moments.start(shift, pairs, mesh=grid)))
        shifts = _shaped(grid, (layers, models, arch.hidden), (None, None, None), jnp.float32)
        where = begin.lower(shifts).compile().output_shardings
        state = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            jax.eval_shape(begin, shifts), where,
        )  # fmt: skip
        lowered = stream_batch.lower(made, base, adapters, batch, shared, state)
    else:
        state = _shaped(grid, (models, layers, prompts, arch.hidden), ("adapter", None, "rows", None), jnp.float32)
        lowered = forward.lower(made, base, adapters, batch, shared, state)
    found, _ = _compile(lowered, (base, adapters, batch, shared, state))
    return {
        "base": bytes_on_device(base),
        "mesh": dict(grid.shape),
        "attention": "xla" if lead else choose(grid, jnp.dtype(dtype)),
    } | found


def _lead_shapes(arch: Architecture, grid: jax.sharding.Mesh, dtype: str, models: int, lead: int) -> dict[str, Any]:
    """What `states.forward.lead_of` gives, as shapes."""
    keys = _shaped(
        grid, (models, arch.layers, lead, arch.kv_heads, arch.head_dim), (None, None, None, "kv_heads", None),
        jnp.dtype(dtype),
    )  # fmt: skip
    sums = _shaped(grid, (models, arch.layers + 2, arch.hidden), (None, None, None), jnp.float32)
    return {"keys_values": (keys, keys), "sums": sums, "count": _shaped(grid, (), (), jnp.int32)}


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
    remat: str = "on",
    room: int = 0,
    parts: int = 1,
    lead: int = 0,
    reach: int = 0,
    adapters: bool = True,
) -> dict[str, Any]:
    """Compiles the population's training step for `devices`.

    Args:
      arch: the base model's.
      devices: of a topology.
      mesh: devices per axis.
      name: of the model, for refusals.
      dtype: of the base.
      slots: models that are trained at once; arrays have a multiple of the adapter axis of them, as in a run.
      rows, row_length: packed rows a model and step, and their positions.
      rank, targets: of the adapters.
      answers: the most answer tokens in a row.
      remat: as `tuning.remat`; `auto` where a step without recomputation takes more than its share of `room`.
      room: memory of a chip in bytes, for `auto`.
      parts, lead, reach: as in `tuning.population.make_step`.
      adapters: False folds the adapter axis into `fsdp`, as a run does for E.

    Returns:
      Sizes in bytes a chip (`base`, `arguments`, `temporary`, `total`), `mesh` (devices per axis), `slots`, `places`
      (slots with the empty ones), `rows`, `spread` (devices that rows are spread over), `lead`, `attention` (the body
      that was compiled), `remat` (whether it recomputes), `compile_seconds` (of one program), `flops` (`step_flops`
      of all slots together, over all chips) and `collectives` (None where the program's text cannot be had).

    Raises:
      Refusal: 2 when rows cannot be spread as the attention needs it.
    """
    about = {"name": name, "dtype": dtype, "rows": rows, "parts": parts, "lead": lead, "adapters": adapters}
    grid, body = tuning_mesh(arch, devices, mesh, **about)
    places = mesh_lib.round_up(slots, grid.shape["adapter"])
    sizes = {"rows": rows, "row_length": row_length, "rank": rank, "targets": targets, "answers": answers}
    shapes = tuning_shapes(arch, grid, dtype=dtype, slots=places, **sizes)
    optimizer = population.optimizer_for(Tuning(), Schedule())

    def compiled(recomputed: bool) -> tuple[dict[str, Any], str]:
        step = population.make_step(arch, optimizer, grid, recomputed, parts, lead, reach)
        return _compile(step.lower(*shapes), shapes)

    recomputed = recompute(remat) is True
    found, text = compiled(recomputed)
    if recompute(remat) is None and found["total"] > SHARE * min(room, found.get("room", room)):
        recomputed = True
        found, text = compiled(recomputed)
    flops = step_flops(arch, **sizes, remat=recomputed)
    return {
        "base": bytes_on_device(shapes[0]),
        "mesh": dict(grid.shape),
        "slots": slots,
        "places": places,
        "rows": rows,
        "spread": grid.shape["fsdp"] if rows % grid.shape["fsdp"] == 0 else 1,
        "lead": lead,
        "attention": body,
        "remat": recomputed,
        **found,
        "flops": {part: slots * count for part, count in flops.items()},
        "collectives": collectives(text, dict(grid.shape)) if text else None,
    }


def tuning_mesh(
    arch: Architecture,
    devices: list[jax.Device],
    mesh: Mesh,
    *,
    name: str,
    dtype: str,
    rows: int,
    parts: int,
    lead: int,
    adapters: bool,
) -> tuple[jax.sharding.Mesh, str]:
    """The mesh of a training step, and the body of attention that it takes. Arguments as of `plan_tuning`.

    Raises:
      Refusal: 2 when the model or the rows cannot be spread over it.
    """
    grid = mesh_lib.make_mesh(mesh, adapters=adapters, devices=devices)
    check_mesh(arch, grid, name)
    body = population.attention_body(grid, dtype, lead)
    population.check_rows(f"{name}, {'controls' if adapters else 'E'}", rows, parts, grid, body)
    return grid, body


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


_LLAMA2_IDS = 133  # that the template `llama2` puts in front of the content, BOS among them, with Llama-2's tokenizer


def leading_ids(config: Config, arch: Architecture, shape_alone: bool, tokens: float) -> tuple[float, int]:
    """What a template adds to the paper's controls.

    Args:
      config: `base`, `tokens` count.
      arch: the base model's.
      shape_alone: there is no tokenizer.
      tokens: of all controls, one pass, without what a template adds.

    Returns:
      (positions of all controls, one pass, with it; how many ids stand once at the head of every row, 0 where they
      are not shared).

    Raises:
      Refusal: 2 for template `chat` without a tokenizer.
    """
    if config.tokens.template == "none":
        return tokens, 0
    if shape_alone and config.tokens.template != "llama2":
        raise Refusal(BAD_CONFIG, f"template {config.tokens.template!r} needs a tokenizer; give --base, not --shape")
    ids = _LLAMA2_IDS if shape_alone else len(base_tokenizer(config).head)
    rows = sum(paper_rows()[0])
    whole = tokens + ids * rows
    if not config.tokens.share_prefix or not shareable(arch) or ids * rows <= WORTH * whole:
        return whole, 0
    length = config.tokens.row_length
    return tokens * length / (length - ids), ids


def plan_hours(
    flops: float, topology: str, chips: int, *, slots: int, batch: int, tokens: float, epochs: float, use: float,
    slot_use: float = 0.0, places: int = 0, tuned_use: float = 1.0,
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
      places: slots with those that are always empty, where there are such.
      tuned_use: share of the chips that E's rows are spread over.

    Returns:
      `controls`, `tuned` and `together`, each {"tokens", "flops", "slot_use", "chip_hours", "hours"}.
    """
    rows, mixture = paper_rows()
    steps = [max(1, round(epochs * tokens * own / sum(rows) / batch)) for own in rows]
    slot_use = slot_use or plan_slots(steps, slots).utilisation * slots / max(places, slots)
    shares = {"controls": (1.0, slot_use), "tuned": (mixture / sum(rows), tuned_use)}
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
