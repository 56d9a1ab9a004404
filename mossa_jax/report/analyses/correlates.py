"""The section of the page on what goes with similarity over tasks (the paper's figure 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.correlates import CHANGE, CORRELATES
from mossa_jax.findings.curves import HEADLINE, block_layers, layer_order
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import ReportInputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {PRETRAINED: "pre-trained", TUNED: "tuned", CHANGE: "change (tuned minus pre-trained)"}
_LINES = ((PRETRAINED, TUNED), (CHANGE,))
_TITLES = {
    "flesch_kincaid": "Flesch-Kincaid grade",
    "coleman_liau": "Coleman-Liau index",
    "training_rows": "training rows",
}
_LEVEL = 0.05


def _select(inputs: ReportInputs, experimental: str, correlate: str) -> pd.DataFrame:
    """Returns the headline's rows of one experimental model and correlate, in the order of the layers."""
    table = inputs.analyses["correlates"]
    rows = table[
        (table["experimental"] == experimental) & (table["correlate"] == correlate) & (table["estimator"] == HEADLINE)
    ]
    return rows.assign(layer=rows["layer"].astype(str)).set_index("layer")


def _sentences(inputs: ReportInputs) -> list[str]:
    sentences = []
    for correlate, title in _TITLES.items():
        parts = []
        for experimental, name in _NAMES.items():
            rows = _select(inputs, experimental, correlate)
            rows = rows[rows.index.isin(block_layers(inputs.table)) & rows["r"].notna()]
            if rows.empty:
                continue
            layer = rows["r"].abs().idxmax()
            row = rows.loc[layer]
            clear = [each for each in rows.index if rows.loc[each, "q"] <= _LEVEL]
            interval = f" [{row['low']:+.2f}, {row['high']:+.2f}]" if np.isfinite(row["low"]) else ""
            parts.append(
                f"{name.split(' (')[0]} strongest with r = {row['r']:+.2f}{interval} in layer {layer}, "
                + (f"q <= {_LEVEL} in layers {', '.join(clear)}" if clear else f"q <= {_LEVEL} in no layer")
            )
        if parts:
            sentences.append(f"Similarity and {title}: {'; '.join(parts)}.")
        else:
            sentences.append(f"Similarity and {title}: not defined, {_reason(inputs, correlate)}.")
    first = _select(inputs, TUNED, CORRELATES[0])
    if len(first):
        tasks, units, unit = int(first["n_tasks"].max()), int(first["n_units"].max()), first["unit"].iloc[0]
        place = "" if unit == "tasks" else f" in {units} {unit}"
        if first["competent_only"].all():
            sentences.append(f"Over {tasks} tasks of the mixture with a competent specialist{place}.")
        else:
            sentences.append(
                f"Over all {tasks} tasks of the mixture{place}, since fewer than four have a competent specialist: a "
                "specialist that learned little is near the base for that reason alone."
            )
    return sentences


def _reason(inputs: ReportInputs, correlate: str) -> str:
    """Returns why there is no correlation in any block, where the embedding often has none for reasons of its own."""
    blocks = block_layers(inputs.table)
    rows = pd.concat([_select(inputs, name, correlate) for name in _NAMES])
    reasons = {str(reason) for reason in rows.loc[rows.index.isin(blocks), "undefined"] if reason}
    return " or ".join(sorted(reasons)) or "no tasks"


def _draw(inputs: ReportInputs) -> Figure:
    from matplotlib.lines import Line2D

    layers = layer_order(inputs.table)
    colours = {**inputs.palette.models, CHANGE: "#333333"}
    figure = elements.new_figure(12.5, 6.2)
    grid = figure.subplots(len(_LINES), len(_TITLES), sharey=True)
    for row, experimentals in zip(grid, _LINES, strict=True):
        for axes, (correlate, title) in zip(row, _TITLES.items(), strict=True):
            axes.set_title(f"{'change' if CHANGE in experimentals else 'similarity'} and {title}")
            if not any(_select(inputs, name, correlate)["r"].notna().any() for name in experimentals):
                axes.tick_params(left=False, labelleft=False)
                elements.empty_panel(axes, f"not defined:\n{_reason(inputs, correlate)}")
                continue
            axes.axhline(0, color="#777777", lw=0.9, zorder=2)
            for experimental in experimentals:
                _line(axes, _select(inputs, experimental, correlate).reindex(layers), colours[experimental])
            elements.layer_axis(axes, layers, label=False, max_ticks=18)
            axes.set_ylim(-1.02, 1.02)
            axes.grid(axis="y", color="#dddddd", lw=0.6)
        row[0].set_ylabel("Pearson's r over tasks")
    for axes in grid[-1]:
        axes.set_xlabel("layer")
    handles = [
        Line2D([], [], color=colour, label=f"CKA, {_NAMES[experimental]}") for experimental, colour in colours.items()
    ]
    marks = {f"q <= {_LEVEL} over layers": "#666666", f"q > {_LEVEL}": "white"}
    handles += [
        Line2D([], [], ls="", marker="o", ms=4.5, markerfacecolor=face, markeredgecolor="#666666", label=label)
        for label, face in marks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _line(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Draws r over layers with its interval; a full mark is one below the false discovery rate."""
    places = np.arange(len(rows))
    r, low, high, q = (rows[name].to_numpy(float) for name in ("r", "low", "high", "q"))
    axes.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(places, r, color=colour, lw=1.6, zorder=3)
    faces = np.where(q <= _LEVEL, colour, "white")
    axes.scatter(places, r, s=18, facecolors=faces, edgecolors=colour, lw=1.0, zorder=4)


def _rows(inputs: ReportInputs) -> list[tuple[str, ...]]:
    columns = [_select(inputs, experimental, correlate) for correlate in _TITLES for experimental in _NAMES]
    return [(f"layer {layer}", *(_cell(rows, layer) for rows in columns)) for layer in layer_order(inputs.table)]


def _cell(rows: pd.DataFrame, layer: str) -> str:
    if layer not in rows.index or not np.isfinite(rows.loc[layer, "r"]):
        return "–"
    row = rows.loc[layer]
    q = f", q {row['q']:.2f}" if np.isfinite(row["q"]) else ""
    interval = f" [{row['low']:+.2f}, {row['high']:+.2f}]" if np.isfinite(row["low"]) else ""
    return f"{row['r']:+.2f}{interval}{q}"


SECTION = AnalysisSection(
    name="correlates",
    title="Readability and size of the data",
    lead="Whether tasks whose prompts are harder to read (two school grades by textstat), or that have more training "
    "rows, are more similar to their specialists: correlation over tasks, layer by layer, with 95 % intervals over "
    "clusters. A correlation over a dozen clusters is rough, and says nothing about causes. Figure 6 of the paper.",
    tables=("correlates",),
    sentences=_sentences,
    figures={"correlates": _draw},
    captions={
        "correlates": "Three charts over layers, one per correlate, with the correlation of the pre-trained model's "
        "and E's similarity and of the change, and their intervals"
    },
    columns=("", *(f"{title}: {name.split(' (')[0]}" for title in _TITLES.values() for name in _NAMES.values())),
    rows=_rows,
)
