"""Own specialist against others, layer by layer: is E near this task's specialist, or near any?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mossa_jax.findings.controls import OTHER, OWN, TWIN, kind_matrix
from mossa_jax.findings.curves import EXPERIMENTALS, REPORTED_ESTIMATORS
from mossa_jax.findings.layer_means import layer_means
from mossa_jax.findings.units import unit_name
from mossa_jax.findings.wording import counted
from mossa_jax.report import palette
from mossa_jax.report.charts.grammar import Axis, Chart, Choice, Line, Mark, Panel, View
from mossa_jax.report.charts.parts import ESTIMATOR, Cells, cells_of, layer_axis, lines
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import NONE, between, fixed

MODEL = Choice("Model", {name: palette.MODEL_NAMES[name] for name in reversed(EXPERIMENTALS)})
"""The model whose similarities are compared; figures show E."""

_KINDS = {"twin": TWIN, "other": OTHER}
_SYMBOLS = {"twin": "circle", "other": "square"}


def specificity_chart(inputs: ReportInputs) -> Chart | None:
    """Builds own minus twin and own minus other specialists over layers; None if neither was compared."""
    cells = cells_of(inputs)
    rows = cells.rows()
    layers = [layer for layer in cells.layers if layer.isdigit()]
    frames = [
        _means(cells, rows, layers, kind, model, estimator)
        for model in MODEL.options
        for estimator in REPORTED_ESTIMATORS
        for kind in _KINDS
    ]
    data = pd.concat(frames, ignore_index=True)
    data = data[data["n_tasks"] > 0].reset_index(drop=True)
    if data.empty:
        return None
    unit = unit_name([cells.cluster_of[cells.tasks[row]] for row in rows])
    return Chart(
        name="specificity",
        title="Own specialist against others",
        caption="CKA with a task's own specialist minus that with its twin or with specialists of other clusters",
        views=tuple(
            View((_panel(data, layers, model, name, unit),), choices={"model": model, "estimator": name})
            for model in MODEL.options
            for name in REPORTED_ESTIMATORS
        ),
        data=data,
        choices={"model": MODEL, "estimator": ESTIMATOR},
        height=3.8,
    )


def _means(cells: Cells, rows: list[int], layers: list[str], kind: str, model: str, estimator: str) -> pd.DataFrame:
    """Averages own minus foreign over units at every layer, as the finding of specificity does."""
    present = set(cells.sound.tasks)
    tasks = [cells.tasks[row] for row in rows if cells.tasks[row] in present]
    own, foreign = (
        kind_matrix(cells.sound, model, other, layers, tasks, estimator).to_numpy() for other in (OWN, _KINDS[kind])
    )
    gap = own - foreign
    mean, low, high = layer_means(gap, [cells.cluster_of[task] for task in tasks])
    numbers = {"value": mean, "low": low, "high": high, "n_tasks": np.isfinite(gap).sum(0)}
    return pd.DataFrame({"model": model, "estimator": estimator, "against": kind, "layer": layers, **numbers})


def _panel(data: pd.DataFrame, layers: list[str], model: str, estimator: str, unit: str) -> Panel:
    marks: list[Mark] = []
    for kind, name in palette.FOREIGN_NAMES.items():
        keep = (data["model"] == model) & (data["estimator"] == estimator) & (data["against"] == kind)
        part = data[keep].set_index("layer").reindex(layers)
        if not part["value"].notna().any():
            continue
        hover = [
            lines(
                f"layer {row.Index}, {palette.MODEL_NAMES[model]}, {estimator}",
                f"{name}: {fixed(row.value, signed=True)}",
                "too few for an interval"
                if (ends := between(row.low, row.high, signed=True)) == NONE
                else f"95 % {ends}",
                f"mean over {unit}, {counted(int(row.n_tasks), 'task')}" if row.n_tasks > 0 else "",
            )
            for row in part.itertuples()
        ]
        x, low, high = range(len(layers)), part["low"].to_numpy(), part["high"].to_numpy()
        y = part["value"].to_numpy()
        line = Line(name=name, role=kind, x=x, y=y, low=low, high=high, hover=hover, symbol=_SYMBOLS[kind])
        marks.append(line)
    y = Axis(f"difference of CKA, {palette.MODEL_NAMES[model]} ({estimator})", zero=True)
    empty = f"No other control was compared with the {palette.MODEL_NAMES[model]} model."
    return Panel(layer_axis(layers), y, tuple(marks), empty=empty)
