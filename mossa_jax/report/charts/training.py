"""The training loss of E and of every specialist."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

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
    dash: Literal["solid", "dash", "dot"] = "solid"


_TUNED = _Kind("multi-task model (E)", "tuned", 2.8)
_TUNED_SEED = _Kind("E, further seeds", "tuned", 1.4, "dash")
_CONTROL = _Kind("specialists", "control", 0.8)
_CONTROL_SEED = _Kind("specialists, further seeds", "control", 0.8, "dash")
_TWIN = _Kind("twins (permuted answers)", "twin", 0.8, "dot")


class _Curve(NamedTuple):
    """A curve of K points.

    Attributes:
      first_step: [K] the first step behind each point.
      step: [K] the last one.
      loss: [K] mean over these steps.
      records: [K] how many records were averaged.
    """

    first_step: np.ndarray
    step: np.ndarray
    loss: np.ndarray
    records: np.ndarray


def training_chart(inputs: ReportInputs) -> Chart | None:
    """Builds a curve per tuned model; None if no curve was recorded."""
    curves = inputs.curves
    step, loss = curves["step"].to_numpy(float), curves["loss"].to_numpy(float)
    averaged = {
        str(model): _averaged(step[places], loss[places]) for model, places in curves.groupby("model").indices.items()
    }
    averaged = {model: curve for model, curve in averaged.items() if len(curve.step)}
    if not averaged:
        return None
    # E is drawn last, on top of the others.
    order = sorted(averaged, key=lambda model: (model == TUNED, model.startswith(f"{TUNED}."), model))
    cluster_of = {task: str(cluster) for task, cluster in cells_of(inputs).cluster_of.items()}
    pairs = {model: _line_pair(model, averaged[model], cluster_of) for model in order}
    marks: list[Mark] = [pairs[model][0] for model in order]
    marks += [pairs[model][1] for model in reversed(order)]
    is_averaged = any(curve.records.max() > 1 for curve in averaged.values())
    steps = max(int(curve.step[-1]) for curve in averaged.values())
    panel = Panel(
        Axis("training step", low=0, high=1.02 * steps),
        Axis("loss per answer token (nats)", low=0),
        tuple(marks),
        note=f"each point is a mean over {'several records' if is_averaged else 'the steps since the point before'}",
    )
    columns = {name: np.concatenate([averaged[model][i] for model in order]) for i, name in enumerate(_Curve._fields)}
    return Chart(
        name="training",
        title="Training",
        caption="Training loss of the multi-task model and of every specialist over training steps",
        views=(View((panel,)),),
        data=pd.DataFrame({"model": np.repeat(order, [len(averaged[model].step) for model in order]), **columns}),
        request="Follow a model",
        height=4.0,
    )


def _averaged(step: np.ndarray, loss: np.ndarray) -> _Curve:
    """Averages neighbouring records of a curve to `MOST_POINTS` points at most, weighted by the steps behind each."""
    order = np.argsort(step, kind="stable")
    order = order[np.isfinite(loss[order])]
    step, loss = step[order].astype(int), loss[order]
    if not len(step):
        return _Curve(step, step, loss, step)
    before = np.concatenate([[0], step[:-1]])
    weight = np.maximum(step - before, 1)
    points = min(MOST_POINTS, len(step))
    starts = -(-np.arange(points) * len(step) // points)
    ends = np.append(starts[1:], len(step))
    means = np.add.reduceat(loss * weight, starts) / np.add.reduceat(weight, starts)
    return _Curve(before[starts] + 1, step[ends - 1], means, ends - starts)


def _kind_of(model: str, tasks: Collection[str]) -> _Kind:
    if model == TUNED:
        return _TUNED
    # A task may be named like a twin or a seed.
    if model in tasks:
        return _CONTROL
    suffix = model.rpartition(".")[2]
    if model.startswith(f"{TUNED}.seed"):
        return _TUNED_SEED
    if suffix == "twin":
        return _TWIN
    return _CONTROL_SEED if "." in model and suffix.startswith("seed") else _CONTROL


def _line_pair(model: str, curve: _Curve, cluster_of: dict[str, str]) -> tuple[Line, Line]:
    """Builds the line of a model that is always there, and the one that stands out on request."""
    kind = _kind_of(model, cluster_of)
    name = _TUNED.name if model == TUNED else model
    about = lines(name, cluster_of.get(model, cluster_of.get(model.rpartition(".")[0], "")))
    hover = [
        f"{about}\n{f'steps {first} to' if first < last else 'step'} {last}: loss {fixed(loss)} nats per answer token"
        for first, last, loss in zip(*(column.tolist() for column in curve[:3]), strict=True)
    ]
    line = Line(
        name=kind.name,
        role=kind.role,
        x=curve.step,
        y=curve.loss,
        hover=hover,
        dash=kind.dash,
        width=kind.width,
    )
    role = kind.role if model == TUNED else "ink"
    return line, replace(line, name=name, role=role, width=max(2.6, kind.width + 0.6), on_request=name)
