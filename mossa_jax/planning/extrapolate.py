"""What a finished pilot says about a larger run: hours and money from measured times, beside those by formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mossa_jax.config import MINIATURE
from mossa_jax.devices.chips import TPUS
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.llama.adapters import target_sizes
from mossa_jax.planning.hardware import Hardware
from mossa_jax.planning.measured import GROUPS, MeasuredRun
from mossa_jax.planning.stages import PlannedRun

MARGIN = 0.15
"""Assumed: by how much the same stage takes longer or shorter another time, on the same hardware."""

OTHER_CHIP = 1.5
"""Assumed: by what factor a share of the peak may differ between two kinds of chips."""

_GUESS = 2.0  # by what factor the times that are only scaled may be wrong


def extrapolate(pilot: MeasuredRun, run: PlannedRun, plan: Mapping[str, Any], price: float) -> dict[str, Any]:
    """Forecasts a run from the times of a pilot.

    A stage of the pilot took some times as long as its plan by formula says; the same stage of the run takes as many
    times as long as its own plan, except where it waits for transfers between chips, which a pilot on one chip does not
    show. Compiling takes what it took the pilot: the programs do not become more. Loading and saving grow with the
    bytes, reading data with the examples, analyses and report with the tasks.

    Args:
      pilot: the measured run.
      run: to forecast.
      plan: of `run`, with all its stages, as `forecast.plan_run` returns it, and with `analyses` if these are planned.
      price: of one chip for one hour; 0 if it is not known.

    Returns:
      JSON-ready: `pilot` (path, model, hardware, tasks); `rows`, each with `stage`, of the pilot `seconds`,
      `formula_seconds` and `share` (None if not known), `factor` (None for a stage without a formula), of the run
      `formula_hours` (None likewise), `hours`, `low` and `high`; their sums `hours`, `low`, `high`, with the same times
      `chips` as `chip_hours` and in money as `price` (None if it is not known), each [expected, low, high];
      `warnings`.

    Raises:
      Refusal: 3 if the pilot ran on another kind of device, or lacks a stage that the run has.
    """
    is_same_chip = has_same_chips(pilot, run.hardware)
    is_same_model = pilot.planned.arch == run.arch
    warnings = []
    if not is_same_chip:
        warnings.append(
            f"measured on {pilot.hardware.name}, planned for {run.hardware.name}: shares of the peak are taken over, "
            f"and may be wrong by a factor of {OTHER_CHIP:g}"
        )
    rows = [_stage(pilot, group, run, plan, is_same_model, is_same_chip) for group in GROUPS if _rows(plan, group)]
    rows += _rest(pilot, run, plan, is_same_model)
    sums = [sum(row[name] for row in rows) for name in ("hours", "low", "high")]
    chip_hours = [run.hardware.chips * hours for hours in sums]
    return {
        "pilot": {
            "path": pilot.path,
            "model": pilot.planned.model,
            "hardware": pilot.hardware.name,
            "tasks": pilot.planned.work.tasks,
        },
        "same_model": is_same_model,
        "rows": rows,
        **dict(zip(("hours", "low", "high"), sums, strict=True)),
        "chip_hours": chip_hours,
        "price": [price * hours for hours in chip_hours] if price else None,
        "warnings": warnings,
    }


def has_same_chips(pilot: MeasuredRun, hardware: Hardware) -> bool:
    """Returns whether a pilot ran on the same kind of chip as the hardware has.

    Args:
      pilot: the measured run.
      hardware: to plan for.

    Raises:
      Refusal: 3 if even the kind of device is another.
    """
    measured, planned = (each.name.partition(":")[0] for each in (pilot.hardware, hardware))
    kinds = ["TPU" if chip in TPUS else "CPU" if chip == "cpu" else "GPU" for chip in (measured, planned)]
    if kinds[0] != kinds[1]:
        raise Refusal(
            BAD_INPUT,
            f"--measured={pilot.path} ran on {pilot.hardware.name}, which says nothing about {hardware.name}; give a "
            f"pilot on a {kinds[1]}, or plan for a {kinds[0]}, as in --topology={pilot.hardware.name}",
        )
    return measured == planned


def _rows(plan: Mapping[str, Any], group: str) -> list[Mapping[str, Any]]:
    return [row for row in plan["rows"] if row["stage"] in GROUPS[group]]


def _stage(
    pilot: MeasuredRun, group: str, run: PlannedRun, plan: Mapping[str, Any], is_same_model: bool, is_same_chip: bool
) -> dict[str, Any]:
    """Returns the row of a stage that has a formula."""
    if group not in pilot.stages:
        raise Refusal(
            BAD_INPUT,
            f"--measured={pilot.path} has no stage {group}, which the planned run has; give a pilot that has it "
            "(tuning.score_prompts above 0)",
        )
    stage, rows = pilot.stages[group], _rows(plan, group)

    def hours(factor: float) -> float:
        """The hours if products and reading take `factor` times as long as by formula."""
        seconds = 0.0
        for row in rows:
            products, transfers = row["products_seconds"], row["transfer_seconds"]
            reading = row["seconds"] - max(products, transfers)
            seconds += row["runs"] * (max(factor * products, transfers) + factor * reading)
        return seconds / 3600

    margin = max(MARGIN, stage.drift)
    chip = 1.0 if is_same_chip else OTHER_CHIP
    # Larger matrices usually fill a chip better. At best they reach the share that formulas assume.
    best = stage.factor if is_same_model else min(stage.factor, 1.0)
    return {
        "stage": group,
        "seconds": stage.seconds,
        "formula_seconds": stage.formula_seconds,
        "share": stage.share,
        "factor": stage.factor,
        "formula_hours": sum(row["hours"] for row in rows),
        "hours": hours(stage.factor),
        "low": hours(best / chip) * (1 - margin),
        "high": hours(stage.factor * chip) * (1 + margin),
    }


def _rest(pilot: MeasuredRun, run: PlannedRun, plan: Mapping[str, Any], is_same_model: bool) -> list[dict[str, Any]]:
    """Returns the rows of what has no formula, scaled from the pilot."""
    old, new = pilot.planned, run
    tasks = new.work.tasks / old.work.tasks
    examples = _examples(new) / _examples(old)
    saved = _adapter_bytes(new) / _adapter_bytes(old)
    useful = {name: stage["useful"] for name, stage in pilot.table.items()}
    analyses = sum(
        seconds for name, seconds in useful.items() if name not in (*GROUPS, "data", "report", "pretraining")
    )
    compiling = pilot.lost("compile")
    rows = [
        _scaled("compiling", compiling, 1.0),
        _scaled("loading", pilot.lost("load"), _base_bytes(new) / _base_bytes(old)),
        _scaled("saving", pilot.lost("export", "checkpoint"), saved),
        _scaled("data", useful.get("data", 0.0) - pilot.data_start + pilot.lost("input"), examples),
        _scaled("analyses", analyses, tasks),
        _scaled("report", useful.get("report", 0.0), tasks),
        _scaled("the rest", pilot.lost("other") + pilot.outside + pilot.data_start, 1.0),
    ]
    if new.config.base == MINIATURE:
        rows.append(_scaled("pretraining", useful.get("pretraining", 0.0), 1.0))
    compiled = plan["compilation"]["seconds"]
    if compiled is not None:
        rows[0]["high"] = max(rows[0]["high"], compiled / 3600)
    if not is_same_model and "analyses" in plan:
        # Wider models cost more than more tasks do.
        row, by_formula = rows[4], plan["analyses"]["hours"]
        row["formula_hours"] = by_formula
        row["hours"], row["high"] = max(row["hours"], by_formula), max(row["high"], _GUESS * by_formula)
    return [row for row in rows if row["hours"] > 0]


def _scaled(name: str, seconds: float, ratio: float) -> dict[str, Any]:
    hours = seconds * ratio / 3600
    return {
        "stage": name,
        "seconds": seconds,
        "formula_seconds": None,
        "share": None,
        "factor": None,
        "formula_hours": None,
        "hours": hours,
        "low": hours / _GUESS,
        "high": hours * _GUESS,
    }


def _examples(run: PlannedRun) -> float:
    """Counts the examples and prompts that a run reads."""
    return sum(run.work.controls) + run.work.mixture + run.work.tasks * run.work.prompts


def _base_bytes(run: PlannedRun) -> float:
    return run.arch.matrix_parameters * jnp.dtype(run.config.dtype).itemsize


def _adapter_bytes(run: PlannedRun) -> float:
    """Returns a figure in proportion to the bytes of all adapters that a run saves."""
    tuning, sizes = run.config.tuning, target_sizes(run.arch)
    each = run.arch.layers * tuning.rank * sum(sum(sizes[target]) for target in tuning.targets)
    return each * (len(run.work.controls) + run.work.experimental_models)
