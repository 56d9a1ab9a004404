"""Forecasts a run on some hardware, stage by stage: memory per chip, operations, transfers, hours and money.

Programs are compiled if that is possible without the hardware; otherwise their memory and transfers come from
formulas. Times are lower bounds: the products at a stated use of the peak or, if they take longer, the transfers
between chips. Compilation comes on top, once per run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import ceil
from typing import Any, NamedTuple

from mossa_jax.devices.memory import SHARE, bytes_on_device
from mossa_jax.planning import programs
from mossa_jax.planning.hardware import Hardware
from mossa_jax.planning.stages import PlannedRun, Stage


def plan_run(run: PlannedRun, stages: Sequence[str], price: float, compile_programs: bool = True) -> dict[str, Any]:
    """Plans some stages of a run.

    Args:
      run: to plan.
      stages: names of the stages.
      price: of one chip for one hour; 0 if it is not known.
      compile_programs: as in `plan_stage`.

    Returns:
      A JSON-ready plan: `config`, `model`, `topology`, `chips`, `use`, `work`; `rows`, one per stage, as `plan_stage`
      returns them; `compilation`: the `programs` that the run compiles and the `seconds` that it takes (None if they
      are not known); `no_compiler` ("" if there is one); the sums `hours` and `chip_hours`, compilation included as far
      as it is known, and `operations`, `fits`, `price` (None if it is not known).
    """
    rows = [plan_stage(run, stage, compile_programs) for stage in run.stages(stages)]
    seconds = [row["programs"] * row["compile_seconds"] for row in rows if row["compile_seconds"] is not None]
    compile_seconds = sum(seconds) if len(seconds) == len(rows) else None
    hours = sum(row["hours"] for row in rows) + sum(seconds) / 3600
    chip_hours = hours * run.hardware.chips
    return {
        "config": run.config.name,
        "model": run.model,
        "topology": run.hardware.name,
        "chips": run.hardware.chips,
        "use": run.use,
        "work": run.work.record(),
        "rows": rows,
        "compilation": {"programs": sum(row["programs"] for row in rows), "seconds": compile_seconds},
        "no_compiler": run.hardware.no_compiler,
        "hours": hours,
        "chip_hours": chip_hours,
        "operations": sum(row["flops"] * row["runs"] for row in rows),
        "fits": all(row["fits"] for row in rows),
        "price": price * chip_hours or None,
    }


def plan_stage(run: PlannedRun, stage: Stage, compile_programs: bool = True) -> dict[str, Any]:
    """Plans one stage of a run.

    Args:
      run: that the stage belongs to.
      stage: one of `run.stages()`.
      compile_programs: False uses formulas, even if programs can be compiled.

    Returns:
      `stage`; `mesh` (devices per axis), `models` (that run at once), `rows`, `row_length`, `parts`; `attention`,
      `remat`; bytes per chip: `base`, `shards`, `arguments`, `temporary`, `beside`, `total`, `room`; `fits`;
      `compiled` (False: by formula); `programs`, as many as this one that the run compiles; `compile_seconds` of one of
      them (None if they are not known); `flops` and `recomputed` of one run, and `used`, the share of the chips' work
      that counts; `collectives` (None if not known); `received` (bytes per chip and run) and `gathered` (those of
      all-gathers alone, by mesh axes); `products_seconds`, `transfer_seconds` and `seconds` of one run; `runs`;
      `hours`; `chip_hours`.
    """
    hardware, layout = run.hardware, stage.layout
    is_compiled = compile_programs and bool(hardware.devices)
    remat, figures = _measure(run, stage, is_compiled)
    program = stage.program(remat)
    base = next(iter(program.resident or program.arguments))
    is_known = figures["collectives"] is not None
    received = _received(stage, figures["collectives"] if is_known else _by_formula(stage, remat), hardware)
    products_seconds = stage.flops / (run.use * stage.useful_share * hardware.chips * hardware.peak)
    seconds = max(products_seconds, received.seconds) + stage.read_bytes / hardware.bandwidth
    hours = stage.runs * seconds / 3600
    room = min(figures.pop("room", hardware.memory), hardware.memory)
    return {
        "stage": stage.name,
        "mesh": dict(program.grid.shape),
        "models": stage.models,
        "rows": layout.batch.rows,
        "row_length": layout.batch.row_length,
        "parts": layout.parts,
        "attention": program.attention,
        "remat": remat,
        "base": bytes_on_device(base),
        **figures,
        "compiled": is_compiled,
        # `remat=auto` compiles a step without recomputation before it turns that on.
        "programs": stage.programs + (stage.remat is None and remat),
        "room": room,
        "fits": figures["total"] <= room,
        "flops": stage.flops,
        "recomputed": stage.flops * stage.recomputed_share * remat,
        "used": stage.useful_share,
        "received": received.size,
        "gathered": received.gathered,
        "products_seconds": products_seconds,
        "transfer_seconds": received.seconds,
        "seconds": seconds,
        "runs": stage.runs,
        "hours": hours,
        "chip_hours": hours * hardware.chips,
    }


def _measure(run: PlannedRun, stage: Stage, is_compiled: bool) -> tuple[bool, dict[str, Any]]:
    """Returns whether the stage's blocks are recomputed, and its figures as `programs.compile_program` names them."""

    def figures_of(remat: bool) -> dict[str, Any]:
        program = stage.program(remat)
        if is_compiled:
            return programs.compile_program(program)
        shards, beside = program.argument_bytes, program.bytes_beside
        temporary = ceil(stage.temporary_bytes(remat))
        return {
            "shards": shards,
            "beside": beside,
            "arguments": shards,
            "temporary": temporary,
            "total": shards + temporary + beside,
            "compile_seconds": None,
            "collectives": None,
        }

    remat = stage.remat is True
    figures = figures_of(remat)
    room = min(run.hardware.memory, figures.get("room", run.hardware.memory))
    if stage.remat is None and figures["total"] > SHARE * room:
        return True, figures_of(True)
    return remat, figures


def _by_formula(stage: Stage, remat: bool) -> list[dict[str, Any]]:
    """Returns the transfers of one run by formula, as `collectives` lists those of a compiled program."""
    return [{"kind": kind, "axes": axis, "bytes": size} for (kind, axis), size in stage.transfers(remat).items()]


class _Received(NamedTuple):
    """What a chip receives in one run of a stage.

    Attributes:
      size: bytes.
      gathered: bytes of all-gathers alone, by mesh axes.
      seconds: that all of it takes.
    """

    size: float
    gathered: dict[str, float]
    seconds: float


def _received(stage: Stage, transfers: Sequence[Mapping[str, Any]], hardware: Hardware) -> _Received:
    """Sums the transfers of one run.

    Args:
      stage: that runs.
      transfers: of its program, as `collectives` lists them.
      hardware: that it runs on.
    """
    grid = asdict(stage.layout.mesh)
    gathered: dict[str, float] = {}
    size = seconds = 0.0
    for transfer in transfers:
        received = transfer["bytes"]
        size += received
        seconds += received / hardware.receive_rate(grid, transfer["axes"].split("+"))
        if transfer["kind"] == "all-gather" and received:
            gathered[transfer["axes"]] = gathered.get(transfer["axes"], 0.0) + received
    return _Received(size, gathered, stage.filled_share * seconds)
