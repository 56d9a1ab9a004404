"""The section of the page on what goes with similarity over tasks (the paper's figure 6)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.correlates import CHANGE, CORRELATES
from mossa_jax.findings.curves import HEADLINE, REPORTED_ESTIMATORS, block_layers, layer_order
from mossa_jax.report import numbers
from mossa_jax.report.analyses import marks
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.charts.grammar import Axis, Chart, Line, Mark, Panel, Points, View
from mossa_jax.report.charts.parts import ESTIMATOR, layer_axis, lines, section_spans
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import NONE, fixed

_NAMES = {PRETRAINED: "pre-trained", TUNED: "tuned", CHANGE: "change (tuned minus pre-trained)"}
_LINES = ((PRETRAINED, TUNED), (CHANGE,))
_TITLES = {
    "flesch_kincaid": "Flesch-Kincaid grade",
    "coleman_liau": "Coleman-Liau index",
    "training_rows": "training rows",
}
_ROLES = {PRETRAINED: PRETRAINED, TUNED: TUNED, CHANGE: "ink"}
_LEVEL = 0.05


def _select(inputs: ReportInputs, experimental: str, correlate: str, estimator: str = HEADLINE) -> pd.DataFrame:
    """Returns the rows of one experimental model and correlate by one estimator, by layer."""
    table = inputs.analyses["correlates"]
    rows = table[
        (table["experimental"] == experimental) & (table["correlate"] == correlate) & (table["estimator"] == estimator)
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
            parts.append(
                f"{name.split(' (')[0]} strongest with r = {_with_interval(row)} in layer {layer}, "
                + (f"q ≤ {_LEVEL} in layers {', '.join(clear)}" if clear else f"q ≤ {_LEVEL} in no layer")
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


def _with_interval(row: pd.Series) -> str:
    """Writes a correlation with its interval: "+0.12 [−0.30, +0.50]"."""
    ends = [fixed(row[end], 2, signed=True) for end in ("low", "high")]
    value = fixed(row["r"], 2, signed=True)
    return value if NONE in ends else f"{value} [{', '.join(ends)}]"


def _reason(inputs: ReportInputs, correlate: str) -> str:
    """Returns why there is no correlation in any block, where the embedding often has none for reasons of its own."""
    blocks = block_layers(inputs.table)
    rows = pd.concat([_select(inputs, name, correlate) for name in _NAMES])
    reasons = {str(reason) for reason in rows.loc[rows.index.isin(blocks), "undefined"] if reason}
    return " or ".join(sorted(reasons)) or "no tasks"


def _charts(inputs: ReportInputs) -> list[Chart]:
    layers = layer_order(inputs.table)
    views = tuple(
        View(
            tuple(
                _panel(inputs, layers, experimentals, correlate, estimator)
                for experimentals in _LINES
                for correlate in _TITLES
            ),
            columns=len(_TITLES),
            choices={"estimator": estimator},
        )
        for estimator in REPORTED_ESTIMATORS
    )
    chart = Chart(
        name="correlates",
        title="Similarity beside readability and size of the data",
        caption="Charts over layers, one per correlate, with the correlation of the pre-trained model's and E's "
        "similarity and of the change, and their intervals; points are full where the false discovery rate over layers "
        f"is at most {_LEVEL}",
        views=views,
        data=inputs.analyses["correlates"].reset_index(drop=True),
        choices={"estimator": ESTIMATOR},
        paper=6,
        width=marks.panel_width(len(layers)),
        height=3.0,
    )
    return [chart]


def _panel(
    inputs: ReportInputs, layers: list[str], experimentals: Iterable[str], correlate: str, estimator: str
) -> Panel:
    drawn: list[Mark] = []
    for experimental in experimentals:
        rows = _select(inputs, experimental, correlate, estimator).reindex(layers)
        if rows["r"].notna().any():
            drawn += _curve(rows, layers, experimental)
    what = "change" if CHANGE in experimentals else "similarity"
    return Panel(
        layer_axis(layers),
        Axis("Pearson's r over tasks", low=-1.02, high=1.02, zero=True),
        (*section_spans(inputs.analysis, layers, named=False), *drawn) if drawn else (),
        title=f"{what} and {_TITLES[correlate]}",
        empty=f"Not defined: {_reason(inputs, correlate)}.",
    )


def _curve(rows: pd.DataFrame, layers: list[str], experimental: str) -> list[Mark]:
    """Builds r over layers with its interval; a full point is one below the false discovery rate."""
    r, low, high, q = (rows[column].to_numpy(float) for column in ("r", "low", "high", "q"))
    name, role = f"CKA, {_NAMES[experimental]}", _ROLES[experimental]
    hover = np.array([_hover(layer, row, name) for layer, (_, row) in zip(layers, rows.iterrows(), strict=True)])
    drawn: list[Mark] = [Line(name=name, role=role, x=range(len(layers)), y=r, low=low, high=high)]
    places = np.arange(len(layers))
    for label, is_full in ((f"q ≤ {_LEVEL}", True), (f"q > {_LEVEL}", False)):
        chosen = np.isfinite(r) & ((q <= _LEVEL) == is_full)
        if chosen.any():
            drawn.append(
                Points(
                    name=f"{_NAMES[experimental].split(' (')[0]}, {label}",
                    role=role,
                    x=places[chosen],
                    y=r[chosen],
                    hover=hover[chosen].tolist(),
                    hollow=not is_full,
                    size=5.0,
                )
            )
    return drawn


def _hover(layer: str, row: pd.Series, name: str) -> str:
    """Says a correlation with its interval, test and numbers of tasks and units."""
    if not np.isfinite(row["r"]):
        return ""
    p, q = (numbers.p_value(row[column]) for column in ("p", "q"))
    return lines(
        f"layer {layer}",
        f"{name}: r = {_with_interval(row)}",
        f"p {p}, q {q}",
        f"{int(row['n_tasks'])} tasks, {int(row['n_units'])} {row['unit']}",
    )


def _rows(inputs: ReportInputs) -> list[tuple[str, ...]]:
    columns = [_select(inputs, experimental, correlate) for correlate in _TITLES for experimental in _NAMES]
    return [(f"layer {layer}", *(_cell(rows, layer) for rows in columns)) for layer in layer_order(inputs.table)]


def _cell(rows: pd.DataFrame, layer: str) -> str:
    if layer not in rows.index or not np.isfinite(rows.loc[layer, "r"]):
        return NONE
    row = rows.loc[layer]
    return _with_interval(row) + (f", q {fixed(row['q'], 2)}" if np.isfinite(row["q"]) else "")


SECTION = AnalysisSection(
    name="correlates",
    title="Readability and size of the data",
    lead="Whether tasks whose prompts are harder to read (two school grades by textstat), or that have more training "
    "rows, are more similar to their specialists: correlation over tasks, layer by layer, with 95 % intervals over "
    "clusters. A correlation over a dozen clusters is rough, and says nothing about causes. Figure 6 of the paper.",
    tables=("correlates",),
    sentences=_sentences,
    charts=_charts,
    columns=("", *(f"{title}: {name.split(' (')[0]}" for title in _TITLES.values() for name in _NAMES.values())),
    rows=_rows,
)
