"""The training loss of E and of every specialist."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mossa_jax.config import TUNED
from mossa_jax.report.charts.grammar import Axis, Chart, Line, Mark, Panel, View
from mossa_jax.report.charts.parts import cells_of, lines
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import fixed

MOST_POINTS = 200
"""The most points of a curve; longer ones are averaged over neighbouring records."""


@dataclass(frozen=True)
class _Kind:
    """How curves of one kind are named and drawn."""

    name: str
    role: str
    width: float
    is_dashed: bool = False


_TUNED = _Kind("multi-task model (E)", "tuned", 2.8)
_TUNED_SEED = _Kind("E, further seeds", "tuned", 1.4, True)
_CONTROL = _Kind("specialists", "control", 0.8)
_CONTROL_SEED = _Kind("specialists, further seeds", "control", 0.8, True)
_TWIN = _Kind("twins (permuted answers)", "twin", 0.8, True)


def training_chart(inputs: ReportInputs) -> Chart | None:
    """Builds a curve per tuned model; None if no curve was recorded."""
    curves = inputs.curves
    if curves.empty:
        return None
    smoothed = {str(model): _averaged(rows) for model, rows in curves.groupby("model", sort=True)}
    smoothed = {model: rows for model, rows in smoothed.items() if len(rows)}
    if not smoothed:
        return None
    is_averaged = any(rows["records"].max() > 1 for rows in smoothed.values())
    cluster_of = {task: str(cluster) for task, cluster in cells_of(inputs).cluster_of.items()}
    # E is drawn last, on top of the others.
    order = sorted(smoothed, key=lambda model: (model == TUNED, model.startswith(f"{TUNED}."), model))
    marks: list[Mark] = [_line(model, smoothed[model], cluster_of) for model in order]
    marks += [_line(model, smoothed[model], cluster_of, is_followed=True) for model in reversed(order)]
    steps = max(int(rows["step"].max()) for rows in smoothed.values())
    panel = Panel(
        Axis("training step", low=0, high=1.02 * steps),
        Axis("loss per answer token (nats)", low=0),
        tuple(marks),
        note=f"each point is a mean over {'several records' if is_averaged else 'the steps since the point before'}",
    )
    return Chart(
        name="training",
        title="Training",
        caption="Training loss of the multi-task model and of every specialist over training steps",
        views=(View((panel,)),),
        data=pd.concat([smoothed[model].assign(model=model) for model in order], ignore_index=True)[
            ["model", "first_step", "step", "loss", "records"]
        ],
        request="Follow a model",
        height=4.0,
    )


def _averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """Averages neighbouring records of a curve to `MOST_POINTS` points at most, weighted by the steps behind each.

    Args:
      rows: of one model, columns `step` and `loss`.

    Returns:
      Columns `first_step`, `step`, `loss` and `records` (how many were averaged).
    """
    step, loss = rows["step"].to_numpy(float), rows["loss"].to_numpy(float)
    order = np.argsort(step, kind="stable")
    order = order[np.isfinite(loss[order])]
    if not order.size:
        return pd.DataFrame(columns=["first_step", "step", "loss", "records"])
    step, loss = step[order].astype(int), loss[order]
    before = np.concatenate([[0], step[:-1]])
    weight = np.maximum(step - before, 1)
    points = min(MOST_POINTS, len(step))
    starts = -(-np.arange(points) * len(step) // points)
    return pd.DataFrame(
        {
            "first_step": before[starts] + 1,
            "step": step[np.append(starts[1:], len(step)) - 1],
            "loss": np.add.reduceat(loss * weight, starts) / np.add.reduceat(weight, starts),
            "records": np.diff(np.append(starts, len(step))),
        }
    )


def _kind_of(model: str) -> _Kind:
    if model == TUNED:
        return _TUNED
    suffix = model.rpartition(".")[2]
    if model.startswith(f"{TUNED}.seed"):
        return _TUNED_SEED
    if suffix == "twin":
        return _TWIN
    return _CONTROL_SEED if "." in model and suffix.startswith("seed") else _CONTROL


def _line(model: str, rows: pd.DataFrame, cluster_of: dict[str, str], is_followed: bool = False) -> Line:
    kind = _kind_of(model)
    about = lines(_TUNED.name if model == TUNED else model, cluster_of.get(model.partition(".")[0], ""))
    hover = [
        f"{about}\nsteps {first} to {step}: loss {fixed(loss)} nats per answer token"
        if first < step
        else f"{about}\nstep {step}: loss {fixed(loss)} nats per answer token"
        for first, step, loss in zip(rows["first_step"], rows["step"], rows["loss"], strict=True)
    ]
    return Line(
        name=model if is_followed else kind.name,
        role="ink" if is_followed and model != TUNED else kind.role,
        x=rows["step"].to_numpy(),
        y=rows["loss"].to_numpy(),
        hover=hover,
        dash="dash" if kind.is_dashed else "solid",
        width=2.6 if is_followed else kind.width,
        on_request=("E" if model == TUNED else model) if is_followed else "",
    )
