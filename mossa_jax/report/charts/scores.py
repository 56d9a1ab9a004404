"""Scores of the base, E, the specialist and the most frequent answer, task by task."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mossa_jax.findings.competence import EXACT_MATCH
from mossa_jax.report import palette
from mossa_jax.report.charts.grammar import Axis, Chart, Choice, Mark, Panel, Points, Rule, View
from mossa_jax.report.charts.parts import Cells, cells_of, lines
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import NONE, between, fixed

_LANES = {"base": -0.26, "tuned": 0.0, "control": 0.26, "majority": 0.0}
"""Model -> its place in the row of a task: equal values stand one above the other."""

_ROLES = {"base": "pretrained", "tuned": "tuned", "control": "control", "majority": "majority"}
_SYMBOLS = {"base": "circle", "tuned": "square", "control": "diamond", "majority": "bar"}


def scores_chart(inputs: ReportInputs) -> Chart | None:
    """Builds a row per task with three lanes, by each metric; None if nothing was scored."""
    scores = inputs.scores
    keep = scores["model"].isin(_LANES) & scores["metric"].isin(palette.METRIC_NAMES)
    numbers = scores[["value", "low", "high", "n"]].astype(float)
    scores = scores[keep & np.isfinite(numbers["value"])].assign(**numbers)
    scores = scores.drop_duplicates(["task", "model", "metric"], keep="last")
    metrics = [metric for metric in palette.METRIC_NAMES if (scores["metric"] == metric).any()]
    if not metrics:
        return None
    cells = cells_of(inputs)
    scored = set(scores["task"])
    rows = [row for row, task in enumerate(cells.tasks) if task in scored]
    if not rows:
        return None
    return Chart(
        name="scores",
        title="What the models can do",
        caption="Scores of the base, the multi-task model and the specialist of every task, with 95 % intervals",
        views=tuple(
            View((_panel(cells, rows, scores[scores["metric"] == metric], metric),), choices={"metric": metric})
            for metric in metrics
        ),
        data=scores.sort_values(["metric", "cluster", "task", "model"]).reset_index(drop=True),
        choices={"metric": Choice("Metric", {metric: palette.METRIC_NAMES[metric] for metric in metrics})},
        height=max(2.8, 1.4 + 0.26 * len(rows)),
    )


def _panel(cells: Cells, rows: list[int], scores: pd.DataFrame, metric: str) -> Panel:
    marks: list[Mark] = []
    clusters = [cells.cluster_of[cells.tasks[row]] for row in rows]
    marks += [
        Rule(at=place - 0.5, dash="dot") for place in range(1, len(rows)) if clusters[place] != clusters[place - 1]
    ]
    for faint in (False, True):
        for model in ("majority", "base", "tuned", "control"):
            own = scores[scores["model"] == model].set_index("task")
            places = [
                place
                for place, row in enumerate(rows)
                if cells.tasks[row] in own.index and (cells.tasks[row] in cells.left_out) == faint
            ]
            if places:
                marks.append(_points(cells, rows, places, own, model, metric, faint))
    is_share = metric == EXACT_MATCH
    x = Axis(palette.METRIC_NAMES[metric], low=-0.03 if is_share else None, high=1.03 if is_share else None, zero=True)
    y = Axis(names=tuple(cells.label(row) for row in rows), reverse=True)
    return Panel(x, y, tuple(marks), empty="No task was scored by this metric.")


def _points(
    cells: Cells, rows: list[int], places: list[int], own: pd.DataFrame, model: str, metric: str, faint: bool
) -> Points:
    """Builds the points of one model over the tasks at some places; those of tasks that are left out are faint."""
    part = own.loc[[cells.tasks[rows[place]] for place in places]]
    # The same answer to every prompt is a mark to pass, not an estimate.
    has_interval = model != "majority"
    hover = [
        lines(
            cells.about(rows[place]),
            f"{palette.SCORE_NAMES[model]}, {palette.METRIC_NAMES[metric]}: {fixed(score.value)}",
            f"95 % {ends}" if has_interval and (ends := between(score.low, score.high)) != NONE else "",
            f"n = {score.n:.0f}" if np.isfinite(score.n) else "",
        )
        for place, score in zip(places, part.itertuples(), strict=True)
    ]
    return Points(
        name="left out of the findings" if faint else palette.SCORE_NAMES[model],
        role=_ROLES[model],
        x=part["value"].to_numpy(),
        y=[place + _LANES[model] for place in places],
        x_low=part["low"].to_numpy() if has_interval else (),
        x_high=part["high"].to_numpy() if has_interval else (),
        hover=hover,
        symbol=_SYMBOLS[model],
        size=14.0 if model == "majority" else 5.5,
        faint=faint,
    )
