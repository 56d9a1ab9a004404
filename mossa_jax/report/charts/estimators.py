"""Biased against debiased CKA: what finite samples add to the biased value."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import EXPERIMENTALS
from mossa_jax.report import palette
from mossa_jax.report.charts.grammar import Axis, Chart, Panel, Points, Rule, View
from mossa_jax.report.charts.levels import SYMBOLS
from mossa_jax.report.charts.parts import Cells, cells_of
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import fixed


def estimators_chart(inputs: ReportInputs) -> Chart | None:
    """Builds a point per task and layer, a panel per model; None if no cell has both estimators."""
    cells = cells_of(inputs)
    data = pd.concat([_frame(cells, model) for model in EXPERIMENTALS], ignore_index=True)
    if data.empty:
        return None
    return Chart(
        name="estimators",
        title="What finite samples add: biased against debiased CKA",
        caption="Biased CKA over debiased CKA, a point per task and layer, with the line of equal values",
        views=(View(tuple(_panel(cells, model, data) for model in EXPERIMENTALS), columns=2),),
        data=data,
        width=4.4,
        height=4.0,
    )


def _frame(cells: Cells, model: str) -> pd.DataFrame:
    """Returns the cells of one model that have both estimators."""
    biased, debiased = (cells.matrix(model, name) for name in ("biased", "debiased"))
    at = np.argwhere(np.isfinite(biased) & np.isfinite(debiased))
    rows, columns = at[:, 0], at[:, 1]
    tasks = [cells.tasks[row] for row in rows]
    return pd.DataFrame(
        {
            "model": model,
            "task": tasks,
            "cluster": [cells.cluster_of[task] for task in tasks],
            "layer": [cells.layers[column] for column in columns],
            "debiased": debiased[rows, columns],
            "biased": biased[rows, columns],
            "n": cells.matrix(model, "debiased", "n")[rows, columns],
        }
    )


def _panel(cells: Cells, model: str, data: pd.DataFrame) -> Panel:
    part = data[data["model"] == model]
    row_of = {task: row for row, task in enumerate(cells.tasks)}
    column_of = {layer: column for column, layer in enumerate(cells.layers)}
    texts = cells.texts(model, "debiased")
    hover = [
        f"{texts[row_of[row.task]][column_of[row.layer]]}\nbiased: {fixed(row.biased)}, "
        f"higher by {fixed(row.biased - row.debiased, signed=True)}"
        for row in part.itertuples()
    ]
    points = Points(
        name=palette.MODEL_NAMES[model],
        role=model,
        x=part["debiased"].to_numpy(),
        y=part["biased"].to_numpy(),
        hover=hover,
        symbol=SYMBOLS[model],
        size=4.0,
        opacity=0.5,
    )
    # Both panels share their axes, so that they can be compared.
    low = min(0.0, float(data["debiased"].min()), float(data["biased"].min()))
    x, y = Axis("debiased CKA", low=low, high=1.03), Axis("biased CKA", low=low, high=1.03)
    name = palette.MODEL_NAMES[model]
    marks = (Rule(axis="diagonal", dash="dash", label="equal"), points)
    return Panel(x, y, marks, title=name, empty="No cell has both estimators.")
