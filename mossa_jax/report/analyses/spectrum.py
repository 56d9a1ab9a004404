"""The section of the page on the dimensions that states fill (the paper's figure 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.curves import block_layers, layer_order
from mossa_jax.findings.units import estimate, t_interval, unit_means, unit_name
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import ReportInputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPONENTS, RATIO = "components_99", "participation_ratio"

_NAMES = {PRETRAINED: "pre-trained", TUNED: "tuned (E)", "control": "specialists (C_t)"}
_MARKERS = {PRETRAINED: "o", TUNED: "s", "control": "^"}
_TITLES = {COMPONENTS: "components for 99 % of the variance", RATIO: "participation ratio"}


def counted(table: pd.DataFrame, inputs: ReportInputs) -> pd.DataFrame:
    """Returns the rows of tasks of the mixture with a competent specialist, or of all tasks if there are none."""
    is_counted = ~table["held_out"].astype(bool) & ~table["task"].isin(inputs.analysis["competence"]["incompetent"])
    return table[is_counted] if is_counted.any() else table


def _matrix(rows: pd.DataFrame, model: str, column: str, layers: list[str]) -> tuple[np.ndarray, list[str]]:
    """Returns one figure as [tasks, layers] and the cluster of each task."""
    rows = rows[rows["model"] == model]
    matrix = rows.pivot_table(index=["cluster", "task"], columns="layer", values=column, dropna=False)
    matrix = matrix.reindex(columns=layers).dropna(how="all")
    return matrix.to_numpy(float), [str(cluster) for cluster, _ in matrix.index]


def _curve(values: np.ndarray, clusters: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean over units at each layer, and its interval: [layers] each."""
    units = unit_means(values, clusters)
    ends = np.array([t_interval(column) for column in units.T]).reshape(-1, 2)
    means = [column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan for column in units.T]
    return np.array(means), ends[:, 0], ends[:, 1]


def _sentences(inputs: ReportInputs) -> list[str]:
    rows = counted(inputs.analyses["spectrum"], inputs)
    blocks = block_layers(inputs.table)
    upper = blocks[len(blocks) // 2 :]
    base, clusters = _matrix(rows, PRETRAINED, COMPONENTS, upper)
    sentences = []
    for model in (TUNED, "control"):
        values, _ = _matrix(rows, model, COMPONENTS, upper)
        if len(values) and values.shape == base.shape:
            change = estimate((values - base).mean(1), clusters)
            direction = "more" if change["mean"] >= 0 else "fewer"
            sentences.append(
                f"In layers {upper[0]} to {upper[-1]}, the upper half, the states of {_NAMES[model]} need "
                f"{abs(change['mean']):.1f} components {direction} than those of the pre-trained model (difference "
                f"{change['mean']:+.1f}, 95 % interval {change['low']:+.1f} to {change['high']:+.1f}, over "
                f"{change['n_units']} {change['unit']} and {change['n_tasks']} tasks)."
            )
    if rows["task"].isin(inputs.analysis["competence"]["incompetent"]).any():
        sentences.append("All tasks count here, since none has a competent specialist.")
    least, most = int(rows["n"].min()), int(rows["n"].max())
    prompts = f"{least}" if least == most else f"{least} to {most}"
    sentences.append(
        f"A task has {prompts} prompts here, and n prompts fill at most n - 1 dimensions: compare models, "
        "not runs with other numbers of prompts."
    )
    return sentences


def _draw(inputs: ReportInputs) -> Figure:
    rows = counted(inputs.analyses["spectrum"], inputs)
    layers = layer_order(inputs.table)
    figure = elements.new_figure(10.5, 4.0)
    places = np.arange(len(layers))
    colours = {**inputs.palette.models, "control": inputs.palette.scores["control"]}
    for axes, (column, title) in zip(figure.subplots(1, 2), _TITLES.items(), strict=True):
        axes.set_title(title)
        drawn = 0
        for model, name in _NAMES.items():
            values, clusters = _matrix(rows, model, column, layers)
            if not len(values) or not np.isfinite(values).any():
                continue
            drawn += 1
            mean, low, high = _curve(values, clusters)
            axes.fill_between(places, low, high, color=colours[model], alpha=0.15, lw=0)
            axes.plot(places, mean, color=colours[model], marker=_MARKERS[model], ms=3.5, lw=1.6, label=name)
        if not drawn:
            elements.empty_panel(axes, "no states with variance")
            continue
        elements.layer_axis(axes, layers, max_ticks=18)
        axes.set_ylabel("dimensions")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#dddddd", lw=0.6)
    first = figure.axes[0]
    handles, names = first.get_legend_handles_labels()
    if handles:
        unit = unit_name([str(name) for name in rows["cluster"]])
        title = f"mean over {unit}, 95 % interval over {unit}"
        figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize=8, title=title, title_fontsize=8)
    return figure


def _rows(inputs: ReportInputs) -> list[tuple[str, ...]]:
    rows = counted(inputs.analyses["spectrum"], inputs)
    layers = layer_order(inputs.table)
    cells = []
    for column in (COMPONENTS, RATIO):
        for model in _NAMES:
            values, clusters = _matrix(rows, model, column, layers)
            curve = np.stack(_curve(values, clusters)) if len(values) else np.full((3, len(layers)), np.nan)
            cells.append([_cell(*figures) for figures in curve.T])
    return [(f"layer {layer}", *(column[k] for column in cells)) for k, layer in enumerate(layers)]


def _cell(mean: float, low: float, high: float) -> str:
    if not np.isfinite(mean):
        return "–"
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]" if np.isfinite(low) else f"{mean:.1f}"


SECTION = AnalysisSection(
    name="spectrum",
    title="How many dimensions the states fill",
    lead="The principal components that hold 99 % of the variance of a task's states at each layer, and the "
    "participation ratio, which counts the directions that carry the variance and does not hang on small ones, for "
    "tasks of the mixture with a competent specialist. Figure 5 of the paper.",
    tables=("spectrum",),
    sentences=_sentences,
    figures={"spectrum": _draw},
    captions={
        "spectrum": "Two charts over layers, components for 99 % of the variance and participation ratio, each with a "
        "line and an interval for the pre-trained model, for E and for the specialists"
    },
    columns=("", *(f"{kind}, {name}" for kind in ("99 %", "ratio") for name in _NAMES.values())),
    rows=_rows,
)
