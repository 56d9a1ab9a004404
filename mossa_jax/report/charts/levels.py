"""CKA of E and of the base with the specialists over layers (the paper's figures 2 and 7)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import EXPERIMENTALS, HEADLINE, REPORTED_ESTIMATORS
from mossa_jax.findings.wording import counted
from mossa_jax.report import palette
from mossa_jax.report.charts.grammar import MIN_BOX, Axis, Chart, Choice, Line, Mark, Panel, View, boxes
from mossa_jax.report.charts.parts import (
    ESTIMATOR,
    FOLLOW,
    Cells,
    by_estimator,
    ceiling_lines,
    cells_of,
    cka_axis,
    figure_width,
    layer_axis,
    section_spans,
)
from mossa_jax.report.inputs import ReportInputs

SHOW_LEVELS = Choice("Show", {"levels": "similarity of both models", "change": "tuned − pre-trained"})
"""Whether a chart shows the similarity of both models, or the change between them."""

CHANGE_LABEL = "d: tuned − pre-trained CKA"

_SHIFTS = {"pretrained": -0.2, "tuned": 0.2}


def layers_chart(inputs: ReportInputs) -> Chart | None:
    """Builds box plots over the competent tasks of the mixture, per layer and model."""
    cells = cells_of(inputs)
    rows = cells.rows()
    empty = "No task of the mixture has a defined cell."
    return Chart(
        name="layers",
        title="Similarity to the specialists, layer by layer",
        caption="Box plots of CKA over tasks at each layer, pre-trained beside tuned",
        views=tuple(
            View((_levels_panel(inputs, cells, rows, name, empty),), choices={"estimator": name})
            for name in REPORTED_ESTIMATORS
        ),
        data=level_data(cells, rows),
        choices={"estimator": ESTIMATOR},
        request=FOLLOW,
        paper=2,
        width=figure_width(cells.layers),
    )


def held_out_chart(inputs: ReportInputs) -> Chart | None:
    """Builds the same, and the change, over the tasks held out of the mixture; None without any."""
    cells = cells_of(inputs)
    rows = cells.rows(held_out=True)
    if not rows:
        return None
    empty = "No held-out task has a defined cell."
    return Chart(
        name="held_out",
        title="Tasks held out of the mixture",
        caption="Box plots over the tasks held out of the mixture at each layer: CKA of both models, or the change",
        views=tuple(
            View((panel(inputs, cells, rows, estimator, empty),), choices={"show": show, "estimator": estimator})
            for show, panel in (("levels", _levels_panel), ("change", _change_panel))
            for estimator in REPORTED_ESTIMATORS
        ),
        data=pd.concat(
            [level_data(cells, rows), *(cells.frame(rows, "change", name) for name in REPORTED_ESTIMATORS)],
            ignore_index=True,
        ),
        choices={"show": SHOW_LEVELS, "estimator": ESTIMATOR},
        request=FOLLOW,
        paper=7,
        width=figure_width(cells.layers),
    )


def _levels_panel(inputs: ReportInputs, cells: Cells, rows: list[int], estimator: str, empty: str) -> Panel:
    marks: list[Mark] = [*section_spans(by_estimator(inputs.analysis, estimator), cells.layers)]
    marks += level_marks(cells, rows, estimator)
    marks += ceiling_lines(inputs.analysis, cells.layers, estimator)
    marks += [line for row in rows for line in followed_lines(cells, row, estimator)]
    values = np.concatenate([cells.matrix(model, estimator)[rows] for model in EXPERIMENTALS])
    y = cka_axis(f"CKA with the task's specialist ({estimator})", values)
    return Panel(layer_axis(cells.layers), y, tuple(marks), note=counted(len(rows), "task"), empty=empty)


def _change_panel(inputs: ReportInputs, cells: Cells, rows: list[int], estimator: str, empty: str) -> Panel:
    marks: list[Mark] = [*section_spans(by_estimator(inputs.analysis, estimator), cells.layers)]
    marks += change_marks(cells, rows, estimator)
    marks += [change_line(cells, row, estimator) for row in rows]
    y = Axis(f"{CHANGE_LABEL} ({estimator})", zero=True)
    return Panel(layer_axis(cells.layers), y, tuple(marks), note=counted(len(rows), "task"), empty=empty)


def level_marks(cells: Cells, rows: list[int], estimator: str = HEADLINE) -> list[Mark]:
    """Draws base and E over some tasks: as boxes, or as a line per task where there are too few for boxes."""
    if len(rows) < MIN_BOX:
        return [line for row in rows for line in lines_without_box(cells, row, estimator)]
    return [
        boxes(
            cells.matrix(model, estimator)[rows].T,
            _columns(cells.texts(model, estimator), rows, len(cells.layers)),
            name=palette.MODEL_NAMES[model],
            role=model,
            shift=_SHIFTS[model],
        )
        for model in EXPERIMENTALS
    ]


def change_marks(cells: Cells, rows: list[int], estimator: str = HEADLINE, faint: bool = False) -> list[Mark]:
    """Draws the change of some tasks: as boxes, or as a line per task where there are too few for boxes.

    Args:
      cells: of the report.
      rows: of the tasks.
      estimator: of the similarity.
      faint: whether they stand behind something else.
    """
    values, texts = cells.difference(estimator), cells.texts("change", estimator)
    if len(rows) >= MIN_BOX:
        columns = _columns(texts, rows, len(cells.layers))
        return [boxes(values[rows].T, columns, name="tasks", faint=faint, width=0.5)]
    return [
        Line(
            name="tasks",
            x=range(len(cells.layers)),
            y=values[row],
            hover=texts[row],
            faint=faint,
            symbol="diamond",
            width=1.2,
        )
        for row in rows
    ]


def _columns(texts: list[list[str]], rows: list[int], width: int) -> list[list[str]]:
    """Turns the texts of some tasks into one list per layer."""
    return [[texts[row][column] for row in rows] for column in range(width)]


def followed_lines(cells: Cells, row: int, estimator: str = HEADLINE) -> list[Line]:
    """Builds the lines of one task, of base and E, which a reader asks for."""
    task = cells.tasks[row]
    return [
        Line(
            name=f"{task}, {palette.MODEL_NAMES[model]}",
            role=model,
            x=range(len(cells.layers)),
            y=cells.matrix(model, estimator)[row],
            hover=cells.texts(model, estimator)[row],
            dash="dot",
            width=2.2,
            on_request=task,
        )
        for model in EXPERIMENTALS
    ]


def lines_without_box(cells: Cells, row: int, estimator: str = HEADLINE) -> list[Line]:
    """Builds the lines of one task, of base and E, where there are too few tasks for boxes; faint if it is left out."""
    is_left_out = cells.tasks[row] in cells.left_out
    return [
        Line(
            name="left out of the findings" if is_left_out else palette.MODEL_NAMES[model],
            role=model,
            x=range(len(cells.layers)),
            y=cells.matrix(model, estimator)[row],
            hover=cells.texts(model, estimator)[row],
            symbol=SYMBOLS[model],
            width=0.8 if is_left_out else 1.4,
            faint=is_left_out,
        )
        for model in EXPERIMENTALS
    ]


SYMBOLS = {"pretrained": "circle", "tuned": "square"}
"""Model -> the shape of its points, so that colour is not the only cue."""


def change_line(cells: Cells, row: int, estimator: str = HEADLINE) -> Line:
    """Builds the line of one task's change, which a reader asks for."""
    task = cells.tasks[row]
    return Line(
        name=cells.label(row),
        x=range(len(cells.layers)),
        y=cells.difference(estimator)[row],
        hover=cells.texts("change", estimator)[row],
        dash="dot",
        symbol="diamond",
        width=2.2,
        on_request=task,
        faint=task in cells.left_out,
    )


def level_data(cells: Cells, rows: list[int]) -> pd.DataFrame:
    """Returns the similarities of some tasks by both estimators."""
    frames = [cells.frame(rows, model, name) for name in REPORTED_ESTIMATORS for model in EXPERIMENTALS]
    return pd.concat(frames, ignore_index=True)
