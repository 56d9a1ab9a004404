"""The section of the page on where tasks and clusters lie in a state (the paper's figure 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import block_layers, layer_order
from mossa_jax.findings.separation import CLUSTER, ITEM, NEIGHBOURS, PROBE, TASK, TEMPLATE
from mossa_jax.report.analyses import marks
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.charts.grammar import Axis, Chart, Choice, Mark, Panel, Points, View
from mossa_jax.report.charts.parts import layer_axis, lines, section_spans
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import NONE, fixed, percent
from mossa_jax.report.palette import (
    BLUE,
    GREEN,
    MODEL_NAMES,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    YELLOW,
    shorten,
)
from mossa_jax.similarity.maps import PCA, TSNE

_HUES = (BLUE, VERMILLION, GREEN, ORANGE, SKY_BLUE, PURPLE, "ink", YELLOW)
_SHAPES = ("circle", "triangle", "square", "diamond", "triangle-down")

_PANELS = {
    (CLUSTER, ITEM): "clusters",
    (CLUSTER, TASK): "clusters, own task left out",
    (TEMPLATE, ITEM): "templates within a task",
}
_METHOD_NAMES = {NEIGHBOURS: "nearest neighbours", PROBE: "linear probe"}

_MAPS = {TSNE: "t-SNE", PCA: "PCA"}
"""Kind of map -> its name; the paper shows the first."""

_STEPS = 4000
"""Positions are rounded to this part of a map's width, which no eye can tell."""


def cluster_styles(clusters: list[str]) -> dict[str, tuple[str, str]]:
    """Returns a role and a symbol for each cluster, no two alike for up to forty clusters."""
    names = sorted(set(clusters))
    return {name: (_HUES[at % len(_HUES)], _SHAPES[(at // len(_HUES)) % len(_SHAPES)]) for at, name in enumerate(names)}


def _charts(inputs: ReportInputs) -> list[Chart]:
    charts = [chart for method in _MAPS if (chart := _map_chart(inputs, method)) is not None]
    return [*charts, _separation_chart(inputs)]


def _map_chart(inputs: ReportInputs, method: str) -> Chart | None:
    """Builds the maps of both models, a panel per layer; None if no such map was made."""
    table = inputs.analyses["map"]
    styles = cluster_styles([str(name) for name in table["cluster"]])
    table = table[table["method"] == method]
    present = set(table["layer"].astype(str))
    layers = [layer for layer in block_layers(inputs.table) if layer in present]
    if not layers:
        return None
    parts = {
        (model, layer): _rounded(table[(table["model"] == model) & (table["layer"].astype(str) == layer)])
        for model in MODEL_NAMES
        for layer in layers
    }
    panels = tuple(_map_panel(inputs, points, styles, method, *place) for place, points in parts.items())
    return Chart(
        name=f"map_{method}",
        title=f"Where prompts lie: {_MAPS[method]} of their states",
        caption=f"Prompts as points in the plane ({_MAPS[method]}), coloured by cluster: above the pre-trained model, "
        "below E, by layer",
        views=(View(panels, columns=len(layers)),),
        data=pd.concat(list(parts.values()), ignore_index=True),
        paper=4,
        width=3.1,
        height=2.8,
    )


def _rounded(points: pd.DataFrame) -> pd.DataFrame:
    """Rounds positions to what can be seen."""
    ends = points[["x", "y"]].to_numpy(float)
    width = float(np.ptp(ends[np.isfinite(ends).all(1)])) if np.isfinite(ends).all(1).any() else 0.0
    digits = max(0, int(np.ceil(np.log10(_STEPS / width)))) if width > 0 else 0
    return points.assign(x=points["x"].round(digits), y=points["y"].round(digits))


def _map_panel(
    inputs: ReportInputs,
    points: pd.DataFrame,
    styles: Mapping[str, tuple[str, str]],
    method: str,
    model: str,
    layer: str,
) -> Panel:
    defined = points[np.isfinite(points["x"])]
    # Small clusters last, where large ones do not hide them.
    groups = sorted(defined.groupby(["cluster", "held_out"]), key=lambda group: -len(group[1]))
    drawn: list[Mark] = []
    for (cluster, held_out), rows in groups:
        role, symbol = styles[str(cluster)]
        drawn.append(
            Points(
                name=shorten(str(cluster), 30) + (" (held out)" if held_out else ""),
                role=role,
                symbol=symbol,
                x=rows["x"].to_numpy(float),
                y=rows["y"].to_numpy(float),
                hollow=bool(held_out),
                size=3.2,
                opacity=0.8,
                hover=_prompt_texts(rows),
            )
        )
    labels = ("", "")
    if method == PCA and len(defined):
        shares = [percent(float(defined[column].iloc[0])) for column in ("share_x", "share_y")]
        labels = (f"PC 1 ({shares[0]})", f"PC 2 ({shares[1]})")
    return Panel(
        Axis(labels[0], ticks=False),
        Axis(labels[1], ticks=False),
        tuple(drawn),
        title=f"{MODEL_NAMES[model]}, layer {layer}",
        note=_accuracy(inputs, model, layer),
        empty="No states with variance.",
    )


def _prompt_texts(rows: pd.DataFrame) -> list[str]:
    """Names the prompt of each point: its task, cluster, row and template."""
    templates = rows["template"] if "template" in rows else [-1] * len(rows)
    columns = rows["task"], rows["cluster"], rows["held_out"], rows["prompt"], templates
    return [
        lines(
            str(task),
            f"{cluster} (held out)" if held_out else str(cluster),
            f"prompt {prompt}" + (f", template {template}" if template >= 0 else ""),
        )
        for task, cluster, held_out, prompt, template in zip(*columns, strict=True)
    ]


def _accuracy(inputs: ReportInputs, model: str, layer: str) -> str:
    row = _measure(inputs.analyses["separation"], model, layer, (CLUSTER, TASK), NEIGHBOURS)
    if row is None or not np.isfinite(row["value"]):
        return ""
    return f"{fixed(row['value'], 2)} (chance {fixed(row['chance'], 2)})"


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


def _separation_chart(inputs: ReportInputs) -> Chart:
    """Builds the shares of prompts that are recognised over layers, by one method or the other."""
    table = inputs.analyses["separation"]
    layers = layer_order(table)
    views = [
        View(
            tuple(_separation_panel(inputs, layers, panel, method) for panel in _PANELS),
            columns=len(_PANELS),
            choices={"method": method},
        )
        for method in _METHOD_NAMES
    ]
    return Chart(
        name="separation",
        title="How well clusters and templates are told apart",
        caption="Share of prompts whose cluster or template is recognised over layers, with intervals and chance",
        views=tuple(views),
        data=table.reset_index(drop=True),
        choices={"method": Choice("Recognised by", _METHOD_NAMES)},
        width=marks.panel_width(len(layers)),
        height=3.2,
    )


def _separation_panel(inputs: ReportInputs, layers: list[str], panel: tuple[str, str], method: str) -> Panel:
    drawn: list[Mark] = []
    for model, name in MODEL_NAMES.items():
        cells = [_measure(inputs.analyses["separation"], model, layer, panel, method) or {} for layer in layers]
        value, low, high, chance = (
            np.array([cell.get(key, np.nan) for cell in cells], float) for key in ("value", "low", "high", "chance")
        )
        if np.isfinite(value).any():
            units = "" if panel[0] == TEMPLATE else f"{max(int(cell.get('units', 0)) for cell in cells)} clusters"
            drawn.append(marks.curve(layers, value, name, model, low, high, units))
            drawn.append(marks.curve(layers, chance, f"chance, {name}", model, dash="dot", symbol=""))
    return Panel(
        layer_axis(layers),
        Axis(f"share recognised, {_METHOD_NAMES[method]}", low=0.0, high=1.03),
        (*section_spans(inputs.analysis, layers, named=False), *drawn) if drawn else (),
        title=_PANELS[panel],
        empty=f"Not defined: {_why_empty(panel)}.",
    )


def _why_empty(panel: tuple[str, str]) -> str:
    if panel[0] == TEMPLATE:
        return "no task has two templates of two items each"
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
    value, low, high = (fixed(row[key], 2) for key in ("value", "low", "high"))
    return value if NONE in (low, high) else f"{value} [{low}, {high}]"


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
        texts = [NONE if cell is None else fixed(cell["value"], 2) for cell in cells]
        result.append((f"layer {layer}", *texts))
    return result


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
    charts=_charts,
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
