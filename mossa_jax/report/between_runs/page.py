"""The page of a comparison of runs: one offline HTML file, and its tables as CSV beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from mossa_jax.files.csv_text import csv_text
from mossa_jax.files.write import write_text
from mossa_jax.findings import to_json_types
from mossa_jax.findings.between_runs import Comparison
from mossa_jax.findings.curves import HEADLINE, REPORTED_ESTIMATORS
from mossa_jax.findings.run_tables import QUANTITIES
from mossa_jax.report.between_runs.figures import curves_chart, difference_matrix, differences_chart, run_style
from mossa_jax.report.between_runs.inputs import RunsInputs
from mossa_jax.report.between_runs.tables import QUANTITY_NAMES, all_tables
from mossa_jax.report.charts.grammar import Chart
from mossa_jax.report.drawing.saving import picture
from mossa_jax.report.drawing.static import draw
from mossa_jax.report.page.html_parts import STYLES, data_uri, inlined, templates
from mossa_jax.report.palette import UNDEFINED

CURVES = "Change over relative depth: the median over tasks of each run, with quartiles"
DIFFERENCES = "Difference of the change between two runs, one row per task and one column per layer"

_DIGITS = 4


def write_runs_page(path: epath.PathLike, inputs: RunsInputs) -> list[str]:
    """Writes the page, whole or not at all, and `STEM.cells.csv`, `.curves.csv`, `.means.csv`, `.sizes.csv` beside it.

    Args:
      path: the HTML file.
      inputs: what it shows.

    Returns:
      Paths of all files.

    Raises:
      Refusal: 6 if there is no room.
    """
    from plotly.offline import get_plotlyjs

    comparison, path = inputs.comparison, epath.Path(path)
    others = comparison.names[1:]
    template = templates().get_template("runs.html.j2")
    page = template.render(
        tables={table.name: table for table in all_tables(inputs)},
        data=_chart_data(comparison),
        names=comparison.names,
        others=others,
        quantities=QUANTITY_NAMES,
        estimators=REPORTED_ESTIMATORS,
        curves=_picture(curves_chart(comparison)),
        differences={run: _picture(differences_chart(comparison, run)) for run in others},
        captions={"curves": CURVES, "differences": DIFFERENCES},
        command=inputs.command,
        style=inlined(*STYLES),
        script=inlined("drawing.js", "runs.js"),
        plotly=get_plotlyjs(),
    )
    frames = {name: getattr(comparison, name) for name in ("cells", "curves", "means", "sizes")}
    files = {path.with_suffix(f".{name}.csv"): csv_text(frame) for name, frame in frames.items()}
    for file, text in {**files, path: page}.items():
        write_text(file, text)
    return [str(file) for file in (path, *files)]


def _picture(chart: Chart) -> str:
    """Draws a chart as a data URI."""
    return data_uri(picture(draw(chart), "png"))


def _chart_data(comparison: Comparison) -> dict[str, Any]:
    """Returns what the charts are drawn from."""
    curves = comparison.curves
    return {
        "runs": [
            {
                "name": name,
                "colour": run_style(number)[0],
                "dash": run_style(number)[1],
                "curve": {
                    column: to_json_types(_rounded(curves.loc[curves["run"] == name, column]))
                    for column in ("layer", "relative_depth", "median", "q1", "q3", "n_tasks")
                },
            }
            for number, name in enumerate(comparison.names)
        ],
        "cells": {name: _cells(comparison.cells[comparison.cells["run"] == name]) for name in comparison.names[1:]},
        "quantities": QUANTITY_NAMES,
        "headline": HEADLINE,
        "undefined": UNDEFINED,
    }


def _rounded(values: pd.Series) -> pd.Series:
    return values.round(_DIGITS) if values.dtype.kind == "f" else values


def _cells(cells: pd.DataFrame) -> dict[str, Any] | None:
    """Spreads one run's cells out over tasks and layers; None without any."""
    if cells.empty:
        return None
    values: dict[str, dict[str, Any]] = {}
    for quantity in QUANTITIES:
        for estimator in REPORTED_ESTIMATORS:
            own = cells[(cells["quantity"] == quantity) & (cells["estimator"] == estimator)]
            values.setdefault(quantity, {})[estimator] = {
                column: to_json_types(np.round(difference_matrix(own, column)[2], _DIGITS))
                for column in ("difference", "low", "high", "q", "reference_value", "value")
            }
    tasks, layers, _ = difference_matrix(cells, "difference")
    about = cells.drop_duplicates("task").set_index("task")
    same = about["same_prompts"].astype(bool)
    return {
        "layers": layers,
        "tasks": [
            {"name": task, "cluster": about["cluster"][task], "same_prompts": bool(same[task])} for task in tasks
        ],
        "values": values,
    }
