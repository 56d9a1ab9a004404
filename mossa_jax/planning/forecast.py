"""Forecasts a run on some hardware, stage by stage: memory per chip, operations, transfers, hours and money.

Programs are compiled if that is possible without the hardware; otherwise their memory and transfers come from
formulas. Times are lower bounds: the products at a stated use of the peak or, if they take longer, the transfers
between chips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from mossa_jax.devices.memory import SHARE, bytes_on_device
from mossa_jax.planning import programs
from mossa_jax.planning.sizes import BatchLayout
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
      returns them; and their sums `hours`, `chip_hours`, `operations`, `fits`, `price` (None if it is not known).
    """
    rows = [plan_stage(run, stage, compile_programs) for stage in run.stages(stages)]
    chip_hours = sum(row["chip_hours"] for row in rows)
    return {
        "config": run.config.name,
        "model": run.model,
        "topology": run.hardware.name,
        "chips": run.hardware.chips,
        "use": run.use,
        "work": run.work.record(),
        "rows": rows,
        "hours": sum(row["hours"] for row in rows),
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
      `compiled` (False: by formula); `compile_seconds`; `flops` and `recomputed` of one run, and `used`, the share of
      the chips' work that counts; `collectives` (None if not known); `received` (bytes per chip and run);
      `products_seconds`, `transfer_seconds` and `seconds` of one run; `runs`; `hours`; `chip_hours`.
    """
    hardware, layout = run.hardware, stage.layout
    is_compiled = compile_programs and bool(hardware.devices)
    remat, figures = _measure(run, stage, is_compiled)
    program = stage.program(remat)
    base = next(iter(program.resident or program.arguments))
    received, transfer_seconds = _transfers(run, stage, stage.transfers(remat), figures["collectives"])
    products_seconds = stage.flops / (run.use * stage.useful_share * hardware.chips * hardware.peak)
    seconds = max(products_seconds, transfer_seconds) + stage.read_bytes / hardware.bandwidth
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
        "room": room,
        "fits": figures["total"] <= room,
        "flops": stage.flops,
        "recomputed": stage.flops * stage.recomputed_share * remat,
        "used": stage.useful_share,
        "received": received,
        "products_seconds": products_seconds,
        "transfer_seconds": transfer_seconds,
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


def _transfers(
    run: PlannedRun, stage: Stage, by_axis: Mapping[str, float], collectives: Sequence[Mapping[str, Any]] | None
) -> tuple[float, float]:
    """Returns the bytes that a chip receives in one run, and the seconds that they take.

    Args:
      run: that the stage belongs to.
      stage: of the run.
      by_axis: bytes by mesh axis, by formula.
      collectives: of the compiled program; None if they are not known.
    """
    hardware = run.hardware
    if collectives is None:
        received = sum(by_axis.values())
        seconds = sum(size / hardware.receive_rate(_span(stage.layout, axis)) for axis, size in by_axis.items())
    else:
        received = sum(transfer["bytes"] for transfer in collectives)
        seconds = received / hardware.link
    return received, seconds * stage.filled_share


def _span(layout: BatchLayout, axis: str) -> int:
    """Returns how many neighbouring chips a transfer along an axis spans; the last axis of the mesh is the closest."""
    return {"tensor": layout.mesh.tensor, "fsdp": layout.mesh.fsdp * layout.mesh.tensor}[axis]
