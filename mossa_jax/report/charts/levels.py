"""CKA of E and of the base with the specialists over layers (the paper's figures 2 and 7)."""

from __future__ import annotations

import pandas as pd

from mossa_jax.findings.curves import EXPERIMENTALS, HEADLINE, REPORTED_ESTIMATORS
from mossa_jax.report import palette
from mossa_jax.report.charts.grammar import Axis, Chart, Line, Mark, Panel, View, boxes
from mossa_jax.report.charts.parts import ESTIMATOR, FOLLOW, Cells, ceiling_lines, layer_axis, lines, section_spans
from mossa_jax.report.inputs import ReportInputs

_SHIFTS = {"pretrained": -0.2, "tuned": 0.2}
_COLUMNS = ["experimental", "task", "cluster", "held_out", "layer", "estimator", "cka", "low", "high", "n", "undefined"]


def layers_chart(inputs: ReportInputs) -> Chart | None:
    """Builds box plots over the competent tasks of the mixture, per layer and model."""
    cells = Cells(inputs)
    rows = cells.rows()
    return Chart(
        name="layers",
        title="Similarity to the specialists, layer by layer",
        caption="Box plots of CKA over tasks at each layer, pre-trained beside tuned",
        views=_views(inputs, cells, rows, "No task of the mixture has a defined cell."),
        data=_data(inputs, [cells.tasks[row] for row in rows]),
        choices={"estimator": ESTIMATOR},
        request=FOLLOW,
        paper=2,
        width=max(7.0, min(16.0, 2.0 + 0.34 * len(cells.layers))),
    )


def held_out_chart(inputs: ReportInputs) -> Chart | None:
    """Builds the same over the tasks held out of the mixture; None without any."""
    cells = Cells(inputs)
    rows = cells.rows(held_out=True)
    if not rows:
        return None
    return Chart(
        name="held_out",
        title="Tasks held out of the mixture",
        caption="Box plots of CKA at each layer over the tasks held out of the mixture",
        views=_views(inputs, cells, rows, "No held-out task has a defined cell."),
        data=_data(inputs, [cells.tasks[row] for row in rows]),
        choices={"estimator": ESTIMATOR},
        request=FOLLOW,
        paper=7,
        width=max(7.0, min(16.0, 2.0 + 0.34 * len(cells.layers))),
    )


def _views(inputs: ReportInputs, cells: Cells, rows: list[int], empty: str) -> tuple[View, ...]:
    views = []
    for estimator in REPORTED_ESTIMATORS:
        marks: list[Mark] = [*section_spans(inputs.analysis, cells.layers)]
        marks += [level_boxes(cells, rows, model, estimator) for model in EXPERIMENTALS]
        marks += ceiling_lines(inputs.analysis, cells.layers, estimator)
        marks += [line for row in rows for line in _followed(cells, row, estimator)]
        y = Axis(f"CKA with the task's specialist ({estimator})", low=0.0, high=1.03)
        panel = Panel(layer_axis(cells.layers), y, tuple(marks), note=palette.counted(len(rows), "task"), empty=empty)
        views.append(View((panel,), choices={"estimator": estimator}))
    return tuple(views)


def level_boxes(cells: Cells, rows: list[int], model: str, estimator: str = HEADLINE) -> Mark:
    """Builds the boxes of one model over some tasks."""
    columns = range(len(cells.layers))
    return boxes(
        [cells.matrix(model, estimator)[rows, column] for column in columns],
        [[lines(cells.about(row), cells.cell(row, column, model, estimator)) for row in rows] for column in columns],
        name=palette.MODEL_NAMES[model],
        role=model,
        shift=_SHIFTS[model],
    )


def _followed(cells: Cells, row: int, estimator: str) -> list[Line]:
    """Builds the lines of one task, which a reader asks for."""
    return [
        Line(
            name=f"{cells.tasks[row]}, {palette.MODEL_NAMES[model]}",
            role=model,
            x=range(len(cells.layers)),
            y=cells.matrix(model, estimator)[row],
            dash="dot",
            on_request=cells.tasks[row],
        )
        for model in EXPERIMENTALS
    ]


def _data(inputs: ReportInputs, tasks: list[str]) -> pd.DataFrame:
    """Returns the cells behind the chart."""
    table = inputs.table
    own = table[
        (table["control"] == table["task"]) & table["experimental"].isin(EXPERIMENTALS) & table["task"].isin(tasks)
    ]
    return own[_COLUMNS].reset_index(drop=True)
