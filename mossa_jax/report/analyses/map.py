"""The section of the page on where tasks and clusters lie in a state (the paper's figure 4)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import block_layers, layer_order
from mossa_jax.findings.separation import CLUSTER, ITEM, NEIGHBOURS, PROBE, TASK, TEMPLATE
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.palette import (
    BLUE,
    GREEN,
    MODEL_NAMES,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    YELLOW,
    Palette,
    shorten,
)
from mossa_jax.similarity.maps import METHODS, PCA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HUES = (BLUE, VERMILLION, GREEN, ORANGE, SKY_BLUE, PURPLE, "#333333", YELLOW)
_SHAPES = ("o", "^", "s", "D", "v")

_PANELS = {
    (CLUSTER, ITEM): "clusters",
    (CLUSTER, TASK): "clusters, own task left out",
    (TEMPLATE, ITEM): "templates within a task",
}
_METHOD_NAMES = {NEIGHBOURS: "nearest neighbours", PROBE: "linear probe"}


def cluster_styles(clusters: list[str]) -> dict[str, tuple[str, str]]:
    """Returns a colour and a marker for each cluster, no two alike for up to forty clusters."""
    names = sorted(set(clusters))
    return {name: (_HUES[at % len(_HUES)], _SHAPES[(at // len(_HUES)) % len(_SHAPES)]) for at, name in enumerate(names)}


def _draw_map(method: str, inputs: ReportInputs) -> Figure:
    from matplotlib.lines import Line2D

    table = inputs.analyses["map"]
    table = table[table["method"] == method]
    layers = [layer for layer in block_layers(inputs.table) if layer in set(table["layer"].astype(str))]
    styles = cluster_styles([str(name) for name in inputs.analyses["map"]["cluster"]])
    figure = elements.new_figure(2.3 * max(len(layers), 1) + 2.2, 5.4)
    grid = figure.subplots(len(MODEL_NAMES), max(len(layers), 1), squeeze=False)
    for row, (model, name) in zip(grid, MODEL_NAMES.items(), strict=True):
        for axes, layer in zip(row, layers, strict=False):
            points = table[(table["model"] == model) & (table["layer"].astype(str) == layer)]
            _scatter(axes, points, styles, method)
            axes.set_title(f"layer {layer}", fontsize=9)
            axes.set_title(_accuracy(inputs, model, layer), fontsize=7, fontweight="normal", loc="right")
        row[0].annotate(
            name,
            (-0.3, 0.5),
            xycoords="axes fraction",
            rotation=90,
            va="center",
            ha="center",
            fontsize=10,
            fontweight="bold",
            color=inputs.palette.models[model],
        )
    handles = [
        Line2D([], [], ls="", marker=shape, color=hue, ms=5.5, label=shorten(name, 30))
        for name, (hue, shape) in styles.items()
    ]
    if table["held_out"].astype(bool).any():
        handles.append(
            Line2D([], [], ls="", marker="o", markerfacecolor="white", color="#333333", ms=5.5, label="held-out task")
        )
    figure.legend(handles=handles, loc="outside right center", fontsize=8, title="cluster", title_fontsize=8)
    return figure


def _scatter(axes: Axes, points: pd.DataFrame, styles: Mapping[str, tuple[str, str]], method: str) -> None:
    points = points[np.isfinite(points["x"])]
    if points.empty:
        elements.empty_panel(axes, "no states\nwith variance")
        return
    # In random order: cluster after cluster, the last one would hide the others.
    points = points.iloc[np.random.default_rng(0).permutation(len(points))]
    order = np.arange(len(points)) / len(points)
    for (cluster, held_out), group in points.assign(order=order).groupby(["cluster", "held_out"]):
        hue, shape = styles[str(cluster)]
        for part, rows in group.groupby((group["order"] * 8).astype(int)):
            axes.scatter(
                rows["x"],
                rows["y"],
                s=9,
                marker=shape,
                facecolors="white" if held_out else hue,
                edgecolors=hue,
                linewidths=0.7 if held_out else 0.0,
                alpha=0.85,
                zorder=2 + 0.1 * float(part),
            )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(True)
    for spine in axes.spines.values():
        spine.set_color("#bbbbbb")
    if method == PCA:
        axes.set_xlabel(f"PC 1 ({100 * points['share_x'].iloc[0]:.0f} %)", fontsize=7.5)
        axes.set_ylabel(f"PC 2 ({100 * points['share_y'].iloc[0]:.0f} %)", fontsize=7.5)


def _accuracy(inputs: ReportInputs, model: str, layer: str) -> str:
    row = _measure(inputs.analyses["separation"], model, layer, (CLUSTER, TASK), NEIGHBOURS)
    if row is None or not np.isfinite(row["value"]):
        return ""
    return f"cluster {row['value']:.2f} (chance {row['chance']:.2f})"


def _measure(table: pd.DataFrame, model: str, layer: str, panel: tuple[str, str], method: str) -> dict[str, Any] | None:
    label, left_out = panel
    rows = table[
        (table["model"] == model)
        & (table["layer"].astype(str) == layer)
        & (table["label"] == label)
        & (table["left_out"] == left_out)
        & (table["method"] == method)
    ]
    return None if rows.empty else rows.iloc[0].to_dict()


def _draw_separation(inputs: ReportInputs) -> Figure:
    from matplotlib.lines import Line2D

    table = inputs.analyses["separation"]
    layers = layer_order(table)
    figure = elements.new_figure(12.5, 6.2)
    grid = figure.subplots(len(_METHOD_NAMES), len(_PANELS), sharey=True)
    for row, (method, name) in zip(grid, _METHOD_NAMES.items(), strict=True):
        for axes, (panel, title) in zip(row, _PANELS.items(), strict=True):
            axes.set_title(f"{title}: {name}")
            if not _accuracy_lines(axes, table, layers, panel, method, inputs.palette):
                axes.tick_params(left=False, labelleft=False)
                elements.empty_panel(axes, _why_empty(panel))
                continue
            elements.layer_axis(axes, layers, label=False, max_ticks=18)
            axes.set_ylim(0, 1.03)
            axes.grid(axis="y", color="#dddddd", lw=0.6)
        row[0].set_ylabel("share recognised")
    for axes in grid[-1]:
        axes.set_xlabel("layer")
    handles = [
        Line2D(
            [], [], color=colour, lw=1.6, marker="o", ms=3, label=f"{MODEL_NAMES[model]}, 95 % interval over clusters"
        )
        for model, colour in inputs.palette.models.items()
    ]
    handles.append(Line2D([], [], color="#666666", ls=":", lw=1.4, label="chance (in the model's colour)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _accuracy_lines(
    axes: Axes, table: pd.DataFrame, layers: list[str], panel: tuple[str, str], method: str, palette: Palette
) -> bool:
    """Draws both models' accuracies over layers, and returns whether there are any."""
    places = np.arange(len(layers))
    drawn = False
    for model, colour in palette.models.items():
        cells = [_measure(table, model, layer, panel, method) or {} for layer in layers]
        value, low, high, chance = (
            np.array([cell.get(key, np.nan) for cell in cells], float) for key in ("value", "low", "high", "chance")
        )
        if np.isfinite(value).any():
            drawn = True
            axes.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
            axes.plot(places, value, color=colour, lw=1.6, marker="o", ms=3)
            axes.plot(places, chance, color=colour, ls=":", lw=1.4)
    return drawn


def _why_empty(panel: tuple[str, str]) -> str:
    if panel[0] == TEMPLATE:
        return "no task with two templates\nof two items each"
    return "fewer than two clusters" + (" of several tasks" if panel[1] == TASK else "")


def _sentences(inputs: ReportInputs) -> list[str]:
    table = inputs.analyses["separation"]
    blocks = block_layers(table)
    sentences = []
    for model, name in MODEL_NAMES.items():
        rows = [
            (layer, row)
            for layer in blocks
            if (row := _measure(table, model, layer, (CLUSTER, TASK), NEIGHBOURS)) and np.isfinite(row["value"])
        ]
        if rows:
            layer, best = max(rows, key=lambda pair: pair[1]["value"])
            _, last = rows[-1]
            sentences.append(
                f"{name.capitalize()}: with its own task left out, a prompt's nearest neighbours name its cluster best "
                f"in layer {layer}, for a share of {_with_interval(best)} over {best['units']} clusters, where chance "
                f"gives {best['chance']:.2f}; in the last block for {_with_interval(last)}."
            )
    if not sentences:
        sentences.append("Clusters cannot be told apart here: fewer than two of them have several tasks.")
    return [*sentences, *_template_sentence(table, blocks)]


def _template_sentence(table: pd.DataFrame, blocks: list[str]) -> list[str]:
    """Says how often templates are recognised in the last block; nothing where they are not known."""
    cells = {
        name: _measure(table, model, blocks[-1], (TEMPLATE, ITEM), NEIGHBOURS) for model, name in MODEL_NAMES.items()
    }
    known = {name: cell for name, cell in cells.items() if cell is not None and np.isfinite(cell["value"])}
    if not known:
        return []
    shares = ", ".join(f"{name} {_with_interval(cell)}" for name, cell in known.items())
    chance = next(iter(known.values()))["chance"]
    return [
        f"Within a task, the nearest prompt of another item in the last block has the same template for a share of "
        f"{shares}, where chance gives {chance:.2f}."
    ]


def _with_interval(row: Mapping[str, Any]) -> str:
    if not np.isfinite(row["low"]):
        return f"{row['value']:.2f}"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _rows(inputs: ReportInputs) -> list[tuple[str, ...]]:
    table = inputs.analyses["separation"]
    result = []
    for layer in layer_order(table):
        cells = [
            _measure(table, model, layer, panel, method)
            for panel in _PANELS
            for method in _METHOD_NAMES
            for model in MODEL_NAMES
        ]
        texts = ["–" if cell is None or not np.isfinite(cell["value"]) else f"{cell['value']:.2f}" for cell in cells]
        result.append((f"layer {layer}", *texts))
    return result


_CAPTION = "Prompts as points in the plane, coloured by cluster: above the pre-trained model, below E, by layer"

SECTION = AnalysisSection(
    name="map",
    title="Where tasks and clusters lie",
    lead="Each point is the state of one prompt. PCA shows the two directions of largest variance; t-SNE keeps "
    "neighbours together, and distances between its groups mean nothing. The numbers measure what the eye looks for: "
    "the share of prompts whose cluster the five nearest prompts, or a linear probe, name rightly; the number above "
    "each map is that of the nearest prompts of other tasks. Clusters can also be recognised by their tasks, which is "
    "why a prompt's own task is left out there and in the middle charts. Every cluster counts once. Figure 4 of the "
    "paper.",
    tables=("map", "separation"),
    sentences=_sentences,
    figures={**{f"map_{method}": partial(_draw_map, method) for method in METHODS}, "separation": _draw_separation},
    captions={
        **{f"map_{method}": f"{_CAPTION} ({method})" for method in METHODS},
        "separation": "How well clusters and templates are told apart over layers, with intervals and chance",
    },
    columns=(
        "",
        *(
            f"{title}: {method}, {model}"
            for title in _PANELS.values()
            for method in _METHOD_NAMES.values()
            for model in MODEL_NAMES.values()
        ),
    ),
    rows=_rows,
)
