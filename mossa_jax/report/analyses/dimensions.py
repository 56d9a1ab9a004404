"""The section of the page on the dimensions that states fill (the paper's figure 5)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.curves import block_layers, layer_order
from mossa_jax.findings.layer_means import LayerMeans, layer_means
from mossa_jax.findings.units import estimate
from mossa_jax.findings.wording import counted
from mossa_jax.report.analyses import marks, words
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.charts.grammar import Axis, Chart, Line, Panel, View
from mossa_jax.report.charts.parts import FOLLOW, layer_axis, section_spans
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import NONE, between, fixed

COMPONENTS, RATIO = "components_99", "participation_ratio"

_NAMES = {PRETRAINED: "pre-trained", TUNED: "tuned (E)", "control": "specialists (C_t)"}
_SYMBOLS = {PRETRAINED: "circle", TUNED: "square", "control": "triangle"}
_TITLES = {COMPONENTS: "components for 99 % of the variance", RATIO: "participation ratio"}


def counted_rows(table: pd.DataFrame, inputs: ReportInputs) -> pd.DataFrame:
    """Returns the rows of tasks of the mixture with a competent specialist, or of all tasks if there are none."""
    is_counted = ~table["held_out"].astype(bool) & ~table["task"].isin(inputs.analysis["competence"]["incompetent"])
    return table[is_counted] if is_counted.any() else table


def _matrix(rows: pd.DataFrame, model: str, column: str, layers: list[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """Returns one figure as [tasks, layers], and the cluster and name of each task."""
    rows = rows[rows["model"] == model]
    matrix = rows.pivot_table(index=["cluster", "task"], columns="layer", values=column, dropna=False)
    matrix = matrix.reindex(columns=layers).dropna(how="all")
    return matrix.to_numpy(float), matrix.index.to_frame(index=False).astype(str)


def _means(rows: pd.DataFrame, model: str, column: str, layers: list[str]) -> LayerMeans:
    """Averages one figure over units, layer by layer."""
    values, tasks = _matrix(rows, model, column, layers)
    if not len(values):
        return LayerMeans(*np.full((3, len(layers)), np.nan))
    return layer_means(values, list(tasks["cluster"]))


def _sentences(inputs: ReportInputs) -> list[str]:
    rows = counted_rows(inputs.analyses["spectrum"], inputs)
    blocks = block_layers(inputs.table)
    upper = blocks[len(blocks) // 2 :]
    base, tasks = _matrix(rows, PRETRAINED, COMPONENTS, upper)
    sentences = []
    for model in (TUNED, "control"):
        values, _ = _matrix(rows, model, COMPONENTS, upper)
        if len(values) and values.shape == base.shape:
            change = estimate((values - base).mean(1), list(tasks["cluster"]))
            direction = "more" if change["mean"] >= 0 else "fewer"
            sentences.append(
                f"In layers {upper[0]} to {upper[-1]}, the upper half, the states of {_NAMES[model]} need "
                f"{abs(change['mean']):.1f} components {direction} than those of the pre-trained model (difference "
                f"{fixed(change['mean'], 1, True)}, 95 % interval {between(change['low'], change['high'], 1, True)}, "
                f"over {words.units(change)} and {counted(change['n_tasks'], 'task')})."
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


def _charts(inputs: ReportInputs) -> list[Chart]:
    rows, layers = counted_rows(inputs.analyses["spectrum"], inputs), layer_order(inputs.table)
    means = {
        (title, name): _means(rows, model, column, layers)
        for column, title in _TITLES.items()
        for model, name in _NAMES.items()
    }
    chart = Chart(
        name="dimensions",
        title="How many dimensions the states fill",
        caption="Two charts over layers, components for 99 % of the variance and participation ratio, each with a line "
        "and an interval for the pre-trained model, for E and for the specialists",
        views=(View(tuple(_panel(inputs, rows, layers, column, means) for column in _TITLES), columns=2),),
        data=marks.means_table(means.items(), layers, ["measure", "model"]),
        request=FOLLOW,
        paper=5,
        width=marks.panel_width(len(layers), least=5.0),
        height=3.8,
    )
    return [chart]


def _panel(
    inputs: ReportInputs,
    rows: pd.DataFrame,
    layers: list[str],
    column: str,
    means: dict[tuple[str, str], LayerMeans],
) -> Panel:
    units, title = words.units_of(rows), _TITLES[column]
    curves = [
        marks.mean_curve(layers, means[title, name], name, model, units, symbol=_SYMBOLS[model])
        for model, name in _NAMES.items()
    ]
    followed = [line for model in _NAMES for line in _task_lines(rows, model, column, layers)]
    return Panel(
        layer_axis(layers),
        Axis("dimensions", low=0.0),
        (*section_spans(inputs.analysis, layers), *curves, *followed),
        title=title,
        note=f"mean over {units}",
        empty="No states with variance.",
    )


def _task_lines(rows: pd.DataFrame, model: str, column: str, layers: list[str]) -> list[Line]:
    """Builds the line of every task, which a reader asks for."""
    values, tasks = _matrix(rows, model, column, layers)
    return [
        Line(name=f"{task}, {_NAMES[model]}", role=model, x=range(len(layers)), y=line, dash="dot", on_request=task)
        for task, line in zip(tasks["task"], values, strict=True)
    ]


def _rows(inputs: ReportInputs) -> list[tuple[str, ...]]:
    rows = counted_rows(inputs.analyses["spectrum"], inputs)
    layers = layer_order(inputs.table)
    columns = [_means(rows, model, column, layers) for column in (COMPONENTS, RATIO) for model in _NAMES]
    return [
        (f"layer {layer}", *(_cell(means.mean[k], means.low[k], means.high[k]) for means in columns))
        for k, layer in enumerate(layers)
    ]


def _cell(mean: float, low: float, high: float) -> str:
    ends = between(low, high, 1)
    return fixed(mean, 1) if ends == NONE else f"{fixed(mean, 1)} [{ends}]"


SECTION = AnalysisSection(
    name="dimensions",
    title="How many dimensions the states fill",
    lead="The principal components that hold 99 % of the variance of a task's states at each layer, and the "
    "participation ratio, which counts the directions that carry the variance and does not hang on small ones, for "
    "tasks of the mixture with a competent specialist. Figure 5 of the paper.",
    tables=("spectrum",),
    sentences=_sentences,
    charts=_charts,
    columns=("", *(f"{kind}, {name}" for kind in ("99 %", "ratio") for name in _NAMES.values())),
    rows=_rows,
)
