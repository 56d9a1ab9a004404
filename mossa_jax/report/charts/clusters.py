"""Clusters of tasks: a panel of layers for each, and what tuning adds to each (the paper's figure 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.clusters import CLUSTER_LEVEL, rank_clusters, task_levels
from mossa_jax.findings.curves import EXPERIMENTALS, REPORTED_ESTIMATORS
from mossa_jax.findings.wording import counted
from mossa_jax.report import palette
from mossa_jax.report.charts.grammar import Axis, Chart, Line, Mark, Panel, Points, View
from mossa_jax.report.charts.levels import SYMBOLS, level_data, level_marks, lines_without_box
from mossa_jax.report.charts.parts import (
    ESTIMATOR,
    Cells,
    by_estimator,
    ceiling_lines,
    cells_of,
    cka_axis,
    layer_axis,
    lines,
    section_spans,
)
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import NONE, between, fixed, percent

MOST_PANELS = 48
"""The most clusters with a panel of their own; the heat map and the slopes show all."""

_SHIFTS = {"pretrained": -0.12, "tuned": 0.12}


def clusters_chart(inputs: ReportInputs) -> Chart | None:
    """Builds a panel per cluster, most held by pre-training first; None without a defined cell in the mixture."""
    cells = cells_of(inputs)
    panels = [rows for rows in _rows_by_cluster(inputs, cells) if _is_defined(cells, rows)]
    if not panels:
        return None
    shown = panels[:MOST_PANELS]
    columns = 1 if len(shown) == 1 else 2 if len(shown) <= 8 else 3 if len(shown) <= 24 else 4
    caption = "One panel per cluster, sorted by the pre-trained CKA over the upper half of the layers, highest first"
    if len(panels) > len(shown):
        caption += f"; the first {len(shown)} of {len(panels)} clusters"
    rows = [row for members in shown for row in members]
    return Chart(
        name="clusters",
        title="Clusters of tasks, most held by pre-training first",
        caption=caption,
        views=tuple(
            View(_panels(inputs, cells, shown, columns, name), columns, {"estimator": name})
            for name in REPORTED_ESTIMATORS
        ),
        data=level_data(cells, rows),
        choices={"estimator": ESTIMATOR},
        paper=3,
        width={1: 8.0, 2: 5.6, 3: 4.4, 4: 4.0}[columns],
        height=2.4,
    )


def _rows_by_cluster(inputs: ReportInputs, cells: Cells) -> list[list[int]]:
    """Returns the tasks of the mixture by cluster, in the order of the findings; those without findings are last."""
    ranked = [str(row["cluster"]) for row in inputs.analysis["clusters"]["ranking"]]
    members: dict[str, list[int]] = {name: [] for name in ranked}
    for row in cells.rows(left_out=True):
        members.setdefault(str(cells.cluster_of[cells.tasks[row]]), []).append(row)
    return [rows for rows in members.values() if rows]


def _is_defined(cells: Cells, rows: list[int]) -> bool:
    return any(
        np.isfinite(cells.matrix(model, estimator)[rows]).any()
        for model in EXPERIMENTALS
        for estimator in REPORTED_ESTIMATORS
    )


def _panels(
    inputs: ReportInputs, cells: Cells, shown: list[list[int]], columns: int, estimator: str
) -> tuple[Panel, ...]:
    every = [row for rows in shown for row in rows]
    values = np.concatenate([cells.matrix(model, estimator)[every] for model in EXPERIMENTALS])
    label, x = cka_axis(f"CKA ({estimator})", values), layer_axis(cells.layers)
    # One label per row and per column of panels.
    y, bare = cka_axis("", values), Axis(names=x.names)
    panels = []
    for place, rows in enumerate(shown):
        sound = [row for row in rows if cells.tasks[row] not in cells.left_out]
        marks: list[Mark] = [
            *section_spans(by_estimator(inputs.analysis, estimator), cells.layers, named=False),
            *ceiling_lines(inputs.analysis, cells.layers, estimator),
        ]
        marks += [line for row in rows if row not in sound for line in lines_without_box(cells, row, estimator)]
        marks += level_marks(cells, sound, estimator)
        excluded = len(rows) - len(sound)
        parts = [counted(len(sound), "task")] if sound else []
        parts += [f"{excluded} left out"] if excluded else []
        panels.append(
            Panel(
                x if place >= len(shown) - columns else bare,
                label if place % columns == 0 else y,
                tuple(marks),
                title=str(cells.cluster_of[cells.tasks[rows[0]]]),
                note=", ".join(parts),
                empty="No defined cell.",
            )
        )
    return tuple(panels)


def cluster_slopes_chart(inputs: ReportInputs) -> Chart | None:
    """Builds what tuning adds to each cluster: a slope from the base to E; None without a defined cluster."""
    cells, half = cells_of(inputs), inputs.analysis["half"]
    order = [
        str(row["cluster"]) for row in inputs.analysis["clusters"]["ranking"] if row["pretrained"]["mean"] is not None
    ]
    if not order:
        return None
    views, frames = [], []
    for estimator in REPORTED_ESTIMATORS:
        ranking = rank_clusters(task_levels(cells.sound, half["layers"], estimator), inputs.scores)
        summaries = {str(row["cluster"]): row for row in ranking}
        rows = [summaries[name] for name in order if name in summaries]
        views.append(View((_slopes(rows, estimator, half["name"]),), choices={"estimator": estimator}))
        frames.append(_slope_data(rows, estimator))
    return Chart(
        name="cluster_slopes",
        title="What tuning adds to each cluster",
        caption=f"Mean CKA of each cluster, from the base to E, over {half['name']}",
        views=tuple(views),
        data=pd.concat(frames, ignore_index=True),
        choices={"estimator": ESTIMATOR},
        paper=3,
        height=max(2.6, 1.5 + 0.32 * len(order)),
    )


def _slopes(rows: list[dict[str, Any]], estimator: str, half: str) -> Panel:
    marks: list[Mark] = []
    for place, row in enumerate(rows):
        ends = [row[model]["mean"] for model in EXPERIMENTALS]
        falls = ends[1] < ends[0]
        marks.append(
            Line(
                name="falls" if falls else "rises",
                role="pretrained" if falls else "tuned",
                x=ends,
                y=[place + _SHIFTS[model] for model in EXPERIMENTALS],
                dash="dot" if falls else "solid",
                width=1.4,
            )
        )
    for model in EXPERIMENTALS:
        summaries = [row[model] for row in rows]
        marks.append(
            Points(
                name=palette.MODEL_NAMES[model],
                role=model,
                x=[summary["mean"] for summary in summaries],
                y=[place + _SHIFTS[model] for place in range(len(rows))],
                x_low=[summary["low"] for summary in summaries],
                x_high=[summary["high"] for summary in summaries],
                hover=[_slope_text(row, model, estimator) for row in rows],
                symbol=SYMBOLS[model],
                size=8.0,
            )
        )
    # Intervals of few tasks reach beyond 1, which no CKA does: they are cut there rather than squeeze the others.
    axis = Axis(f"mean CKA over {half} ({estimator})", high=1.05)
    names = tuple(str(row["cluster"]) for row in rows)
    note = f"{100 * CLUSTER_LEVEL:.0f} % intervals; most held by pre-training first"
    return Panel(axis, Axis(names=names, reverse=True), tuple(marks), note=note)


def _slope_text(row: dict[str, Any], model: str, estimator: str) -> str:
    ends = between(row[model]["low"], row[model]["high"])
    change = between(row["change"]["low"], row["change"]["high"], signed=True)
    level = f"{100 * CLUSTER_LEVEL:.0f} %"
    share = percent(row["information_share"])
    return lines(
        str(row["cluster"]),
        f"{palette.MODEL_NAMES[model]}, {estimator}: {fixed(row[model]['mean'])}",
        row["reason"] if ends == NONE else f"{level} {ends}",
        f"tuned − pre-trained: {fixed(row['change']['mean'], signed=True)}",
        "" if change == NONE else f"{level} {change}",
        "" if share == NONE else f"the base uses {share} of the information that the specialists use",
        counted(row["n_tasks"], "task"),
    )


def _slope_data(rows: list[dict[str, Any]], estimator: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"estimator": estimator, "cluster": row["cluster"], "show": key, "value": row[key]["mean"]}
            | {"low": row[key]["low"], "high": row[key]["high"], "n_tasks": row["n_tasks"]}
            for row in rows
            for key in (*EXPERIMENTALS, "change")
        ]
    )
