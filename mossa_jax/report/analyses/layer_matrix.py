"""The section of the page on every layer against every other one, and on where the base turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.curves import HEADLINE, layer_order
from mossa_jax.findings.layer_means import LayerMeans, layer_means, sound_rows
from mossa_jax.findings.turning import find_turning
from mossa_jax.findings.wording import counted
from mossa_jax.report.analyses import marks, words
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.charts.grammar import Axis, Chart, Choice, Heat, Mark, Panel, Rule, View
from mossa_jax.report.charts.parts import layer_axis, section_spans
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import fixed
from mossa_jax.report.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILLION, layer_label

_NAMES = {PRETRAINED: "base", TUNED: "E", "control": "specialist"}
_PAIRS = (
    (PRETRAINED, PRETRAINED),
    (TUNED, TUNED),
    ("control", "control"),
    (PRETRAINED, TUNED),
    (PRETRAINED, "control"),
    (TUNED, "control"),
)
_ALL = "all"
_LINKS = {
    "departure_step": "add most to E's departure from the base",
    "change_step": "add most to the change d",
    "carried": "carry most of E's gain",
}
_TURNS = "the base turns most"
_CURVES = {
    "How the base turns": (
        "1 − CKA",
        {"novelty": (BLUE, "across the block"), "turning": (PURPLE, "from both neighbours")},
    ),
    "What a block adds to E's departure": ("1 − CKA(base, E)", {"departure_step": (ORANGE, "added to the departure")}),
    "What a block adds to d": ("size of the change of d", {"change_step": (GREEN, "added to d")}),
}
"""Panel -> its axis, and the curves in it with their roles and names."""


def _found(inputs: ReportInputs) -> dict[str, Any]:
    seed, draws = words.random_of(inputs)
    profile = inputs.analyses.get("profile")
    return find_turning(inputs.analyses["turning"], words.incompetent(inputs), seed, draws, profile=profile)


def _sentences(inputs: ReportInputs) -> list[str]:
    found = _found(inputs)
    if found["turns_at"] is None:
        return ["Where the base turns is undefined: no competent task of the mixture has its layers compared."]
    first = (
        f"Over {counted(found['n_tasks'], 'task')}, the base turns most at layer {found['turns_at']} (1 − CKA "
        f"with its neighbours {fixed(found['turning'])}; the largest in {found['agree']} of {found['n_units']} "
        "clusters)."
    )
    sentences = [first]
    for outcome, name in _LINKS.items():
        if outcome not in found["links"]["novelty"]:
            continue
        own, beyond = (found["links"]["novelty"][outcome][kind] for kind in ("plain", "beyond_depth"))
        near = found["links"]["turning"][outcome]["plain"]
        sentences.append(
            f"Whether that foretells the blocks that {name}: mean rank correlation over layers of the "
            f"base's turn across a block {words.interval(own, 2)} over {words.units(own)} ({words.p_value(own)}), "
            f"{words.interval(beyond, 2)} with depth held constant ({words.p_value(beyond)}); of the turn from both "
            f"neighbours {words.interval(near, 2)} ({words.p_value(near)})."
        )
    return sentences


def _charts(inputs: ReportInputs) -> list[Chart]:
    table = inputs.analyses["layers"]
    # The tests of the words are not drawn.
    found = find_turning(inputs.analyses["turning"], words.incompetent(inputs), draws=1)
    cells = sound_rows(table[table["estimator"] == HEADLINE], words.incompetent(inputs))
    charts = [_turning_chart(inputs, found)]
    if len(cells):
        charts.insert(0, _matrix_chart(cells, found["turns_at"]))
    return charts


def _matrix_chart(cells: pd.DataFrame, turns_at: str | None) -> Chart:
    """Builds the heat maps: all pairs of models side by side, or one of them."""
    layers = layer_order(cells.rename(columns={"layer_a": "layer"}))
    squares = {pair: _square(cells, *pair, layers) for pair in _PAIRS}
    low = min(0.0, *(float(np.nanmin(square.mean, initial=0.0)) for square in squares.values()))
    units, tasks = words.units_of(cells), counted(cells["task"].nunique(), "task")
    panels = {
        pair: _square_panel(square, _reasons(cells, *pair), pair, layers, low, turns_at, units)
        for pair, square in squares.items()
    }
    names = {f"{a}-{b}": _pair_name(a, b) for a, b in _PAIRS}
    views = [View(tuple(panels.values()), columns=3, choices={"models": _ALL})]
    views += [View((panel,), choices={"models": f"{a}-{b}"}) for (a, b), panel in panels.items()]
    return Chart(
        name="layer_matrix",
        title=f"Every layer against every other one: mean over {units}, {tasks}",
        caption="Heat maps of CKA between all layers of the base, of E and of the specialists",
        views=tuple(views),
        data=pd.concat([_square_rows(square, pair, layers) for pair, square in squares.items()], ignore_index=True),
        choices={"models": Choice("Models", {_ALL: "all pairs"} | names)},
        width=max(3.6, min(7.0, 2.0 + 0.12 * len(layers))),
        height=max(3.3, min(6.4, 1.7 + 0.12 * len(layers))),
    )


def _pair_name(a: str, b: str) -> str:
    return f"{_NAMES[a]} with itself" if a == b else f"{_NAMES[a]} and {_NAMES[b]}"


def _square(cells: pd.DataFrame, a: str, b: str, layers: list[str]) -> LayerMeans:
    """Averages the CKA of two models' layers over units: [K, K] each."""
    pair = cells[(cells["model_a"] == a) & (cells["model_b"] == b)]
    tasks = pair.drop_duplicates("task")
    size, place = len(layers), {layer: at for at, layer in enumerate(layers)}
    row_of = {task: at for at, task in enumerate(tasks["task"])}
    values = np.full((len(tasks), size, size), np.nan)
    at = pair["task"].map(row_of), pair["layer_a"].astype(str).map(place), pair["layer_b"].astype(str).map(place)
    values[tuple(index.to_numpy(int) for index in at)] = pair["cka"].to_numpy(float)
    if a == b:
        # Only the upper half of a model against itself is stored.
        values = np.where(np.isnan(values), values.transpose(0, 2, 1), values)
    if not len(values):
        return LayerMeans(*np.full((3, size, size), np.nan))
    means = layer_means(values.reshape(len(values), -1), [str(name) for name in tasks["cluster"]])
    return LayerMeans(*(each.reshape(size, size) for each in means))


def _reasons(cells: pd.DataFrame, a: str, b: str) -> dict[tuple[str, str], str]:
    """Returns why cells of a pair of models are undefined, by their layers."""
    pair = cells[(cells["model_a"] == a) & (cells["model_b"] == b) & (cells["undefined"].fillna("") != "")]
    names = {"a": _NAMES[a], "b": _NAMES[b], "a and b": f"{_NAMES[a]} and {_NAMES[b]}"}
    reasons = {
        (str(layer_a), str(layer_b)): re.sub(r"\b(a|b|a and b)$", lambda match: names[match[1]], reason)
        for layer_a, layer_b, reason in pair[["layer_a", "layer_b", "undefined"]].itertuples(False, None)
    }
    return {(layer_b, layer_a): reason for (layer_a, layer_b), reason in reasons.items() if a == b} | reasons


def _square_panel(
    square: LayerMeans,
    reasons: Mapping[tuple[str, str], str],
    pair: tuple[str, str],
    layers: Sequence[str],
    low: float,
    turns_at: str | None,
    units: str,
) -> Panel:
    a, b = (_NAMES[model] for model in pair)

    def text(row: int, column: int) -> str:
        numbers = [float(each[row, column]) for each in square]
        if np.isfinite(numbers[0]):
            value = marks.value_text("CKA", numbers, units)
        else:
            value = f"undefined: {reasons.get((layers[row], layers[column]), 'no such cell')}"
        return f"{b}, layer {layers[column]}\n{value}"

    places = range(len(layers))
    texts = [[text(row, column) for column in places] for row in places]
    heat = Heat(
        values=square.mean,
        hover=[f"{a}, layer {layer}" for layer in layers],
        cells=texts,
        low=low,
        bar=f"CKA ({HEADLINE})",
    )
    drawn: list[Mark] = [heat] if np.isfinite(square.mean).any() else []
    if drawn and turns_at in layers:
        at = float(layers.index(turns_at))
        drawn += [Rule(name=_TURNS, role=VERMILLION, at=at, axis=axis, dash="dot") for axis in ("x", "y")]
    names = tuple(layer_label(layer) for layer in layers)
    return Panel(
        Axis(f"layer, {b}", names),
        Axis(f"layer, {a}", names, reverse=True),
        tuple(drawn),
        title=_pair_name(*pair),
        empty="No cell is defined.",
    )


def _square_rows(square: LayerMeans, pair: tuple[str, str], layers: list[str]) -> pd.DataFrame:
    size = len(layers)
    keys = {"model_a": pair[0], "model_b": pair[1], "layer_a": np.repeat(layers, size), "layer_b": layers * size}
    numbers = {"cka": square.mean, "low": square.low, "high": square.high}
    return pd.DataFrame(keys | {name: values.ravel() for name, values in numbers.items()})


def _turning_chart(inputs: ReportInputs, found: dict[str, Any]) -> Chart:
    """Builds the curves of how the base turns and of what each block adds."""
    layers, means = found["layers"], found["means"]
    units = words.units_of(sound_rows(inputs.analyses["turning"], words.incompetent(inputs)))
    panels = []
    for title, (axis, curves) in _CURVES.items():
        drawn: list[Mark] = [
            marks.mean_curve(layers, means[name], label, role, units) for name, (role, label) in curves.items()
        ]
        if found["turns_at"] in layers:
            at = float(layers.index(found["turns_at"]))
            drawn.insert(0, Rule(name=_TURNS, role=VERMILLION, at=at, axis="x", dash="dot"))
        spans = section_spans(inputs.analysis, layers)
        panels.append(
            Panel(
                layer_axis(layers),
                Axis(axis, zero=True),
                (*spans, *drawn),
                title=title,
                empty="Undefined: no competent task of the mixture has its layers compared.",
            )
        )
    named = {
        (title, label): means[name] for title, (_, curves) in _CURVES.items() for name, (_, label) in curves.items()
    }
    return Chart(
        name="turning",
        title="Where the base turns, and where tuning departs from it",
        caption="Curves over layers of how the base turns, of what each block adds to the departure of E, and of what "
        "it adds to the change d",
        views=(View(tuple(panels), columns=3),),
        data=marks.means_table(named.items(), layers, ["panel", "curve"]),
        width=marks.panel_width(len(layers)),
        height=3.2,
    )


SECTION = AnalysisSection(
    name="layer_matrix",
    title="Layer by layer",
    lead="Every layer of the base, of E and of a task's specialist against every other one. Similar layers form "
    "squares along the diagonal; the base turns where a square ends. Below, whether tuning departs where the base "
    "turns. Means over clusters of competent tasks, with 95 % intervals.",
    tables=("layers", "turning"),
    sentences=_sentences,
    charts=_charts,
)
