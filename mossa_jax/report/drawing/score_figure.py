"""The static figure of task scores: one panel for what models use of their prompts, one for exact match."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mossa_jax.findings.competence import EXACT_MATCH, INFORMATION
from mossa_jax.findings.curves import clusters_of
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import left_out, scores_by_model
from mossa_jax.report.palette import DEFAULT, METRIC_NAMES, SCORE_NAMES, Palette, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = dict(zip(SCORE_NAMES, ("o", "s", "D", "|"), strict=True))


def draw_scores(scores: pd.DataFrame, analysis: dict[str, Any], palette: Palette = DEFAULT) -> Figure:
    """Draws information and exact match per task, of the base, the multi-task model, the specialist and the majority.

    Args:
      scores: the task scores.
      analysis: from `find`; the tasks that it leaves out have grey names.
      palette: colours.
    """
    metrics = [metric for metric in (INFORMATION, EXACT_MATCH) if metric in set(scores["metric"])]
    tasks = scores.drop_duplicates("task").sort_values(["cluster", "task"], ascending=False)["task"]
    figure = elements.new_figure(8.0 if len(metrics) < 2 else 12.0, max(2.6, 1.2 + 0.19 * len(tasks)))
    if not metrics:
        elements.empty_panel(figure.subplots(), "Task scores were not measured.")
        return figure
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_metric(axes, scores_by_model(scores, metric).reindex(index=tasks), palette)
        axes.set_xlabel(METRIC_NAMES[metric])
    panels[-1].set_ylim(-0.8, len(tasks) - 0.2)
    if metrics[-1] == EXACT_MATCH:
        panels[-1].set_xlim(-0.02, 1.02)
    cluster_of, reasons = clusters_of(scores), left_out(analysis)
    labels = [task_label(task, cluster_of) + (" (left out)" if task in reasons else "") for task in tasks]
    panels[0].set_yticks(range(len(tasks)), labels, fontsize=7)
    elements.grey_labels(panels[0], [row for row, task in enumerate(tasks) if task in reasons])
    handles, names = panels[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, fontsize=8)
    return figure


def _draw_metric(axes: Axes, wide: pd.DataFrame, palette: Palette) -> None:
    """Draws one metric, [tasks, models], with a line from the least to the most of each task."""
    positions = np.arange(len(wide))
    measured = wide.notna().any(axis=1)
    axes.hlines(positions[measured], wide[measured].min(axis=1), wide[measured].max(axis=1), color="#cccccc", lw=1.2)
    for model, name in SCORE_NAMES.items():
        if wide[model].notna().any():
            size = 40 if _MARKERS[model] == "|" else 18
            colour = palette.scores[model]
            axes.scatter(wide[model], positions, label=name, color=colour, marker=_MARKERS[model], s=size, zorder=3)
    axes.axvline(0.0, color="#bbbbbb", lw=0.8, zorder=0)
    axes.grid(axis="x", color="#dddddd", lw=0.6)


def task_label(task: str, cluster_of: dict[str, str]) -> str:
    """Returns the label of a task beside a chart: its cluster and its name, shortened."""
    return f"{shorten(cluster_of[task], 18)} · {shorten(task)}"
