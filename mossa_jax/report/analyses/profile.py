"""The section of the page on what each layer's adapter does for the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import block_layers
from mossa_jax.findings.profile import MEASURES
from mossa_jax.findings.wording import counted
from mossa_jax.report.analyses import marks
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.charts.grammar import Axis, Bars, Chart, Line, Mark, Panel, Points, Rule, View
from mossa_jax.report.charts.parts import FOLLOW, layer_axis, lines, section_spans
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import NONE, between, fixed, percent

_NAMES = {"tuned": "E", "control": "specialists"}
_Dash = Literal["solid", "dash", "dot"]
_STYLES: dict[str, tuple[str, _Dash, str]] = {
    "upto": ("layers 1 to k", "solid", "circle"),
    "from": ("layers k to the last", "dash", "square"),
    "swap_upto": ("layers 1 to k exchanged", "solid", "circle"),
    "swap_from": ("layers k to the last exchanged", "dash", "square"),
}
"""Kind of variant -> its name, line and symbol."""

_UNITS = {"information": "information", "answer_nll": "likelihood"}
_COST_UNITS = {"information": "nats per prompt", "answer_nll": "nats per token"}
_FORM = "the same in likelihood, form included"
_NOTHING = "No task of the mixture gains anything from tuning."

_FEW_LAYERS = 17
"""With fewer layers than this, points mark the layers of a line."""

Row = dict[str, Any]


def _rows(profile: Row, curves: str, **keys: str) -> list[Row]:
    """Returns the rows of a list of curves with these keys, by layer."""
    rows = [row for row in profile[curves] if all(row[key] == value for key, value in keys.items())]
    return sorted(rows, key=lambda row: row["layer"])


def _at(profile: Row, curves: str, layer: int, **keys: str) -> Row | None:
    return next((row for row in _rows(profile, curves, **keys) if row["layer"] == layer), None)


def _percent(row: Row | None) -> str:
    if row is None or row["mean"] is None:
        return "unknown"
    ends = [percent(row[key]).removesuffix(" %") for key in ("low", "high")]
    return percent(row["mean"]) if NONE in ends else f"{percent(row['mean'])} [{' to '.join(ends)}]"


def _title(model: str) -> str:
    return {"tuned": "E", "control": "Specialists"}[model]


def _first(k: int) -> str:
    """Names the layers up to k."""
    return "layer 1" if k == 1 else f"layers 1 to {k}"


def _nats(row: Row | None) -> str:
    if row is None or row["mean"] is None:
        return "unknown"
    mean, ends = fixed(row["mean"], 2, True), between(row["low"], row["high"], 2, True)
    return mean if ends == NONE else f"{mean} [{ends}]"


def _sentences(inputs: ReportInputs) -> list[str]:
    profile = inputs.analysis["profile"]["shown"]
    if profile is None:
        return ["Nothing can be said: no task of the mixture gains anything from tuning."]
    first = [] if inputs.analysis["profile"]["measured"] else [_all_tasks(profile)]
    return [
        *first,
        *(_gain(profile, model) for model in _NAMES),
        _interaction(profile),
        _form(profile),
        _exchange(profile),
    ]


def _all_tasks(profile: Row) -> str:
    return (
        f"No competent task gains anything: shown are all tasks of the mixture that gain ({len(profile['tasks'])}), "
        "and no finding rests on them."
    )


def _gain(profile: Row, model: str) -> str:
    """Says how few layers keep half of a model's gain, and what is left without them."""
    measure = profile["measure"]
    upto = _rows(profile, "curves", model=model, kept="upto", measure=measure)
    half = next((row for row in upto if (row["mean"] or 0) >= 0.5), None)
    if half is None:
        return f"{_title(model)}: the gain is undefined."
    k = half["layer"]
    rest = _at(profile, "curves", k + 1, model=model, kept="from", measure=measure)
    return (
        f"{_title(model)}: the adapters of {_first(k)} alone keep {_percent(half)} of the {_UNITS[measure]} that "
        f"tuning adds, mean over clusters; those of all other layers keep {_percent(rest)}."
    )


def _interaction(profile: Row) -> str:
    defined = [row for row in profile["interaction"] if row["mean"] is not None]
    lowest = min(defined, key=lambda row: row["mean"])
    k = lowest["depth"]
    if lowest["mean"] >= 0:
        return "No part of E's gain needs lower and upper layers at once."
    last = profile["layers"][-1]["layer"]
    turned = {key: None if lowest[key] is None else -lowest[key] for key in ("mean", "low", "high")}
    turned["low"], turned["high"] = turned["high"], turned["low"]
    return (
        f"Layers work together most at depth {k}: {_percent(turned)} of E's gain is there only with the adapters of "
        f"{_first(k)} and of {k + 1} to {last} at once."
    )


def _form(profile: Row) -> str:
    """Compares information with likelihood, most of which is the form of the answers."""
    if profile["measure"] != "information":
        return "Shares are of the answers' likelihood, which includes their form."
    k = profile["most"]
    rows = [
        _at(profile, "curves", k + 1, model="tuned", kept="from", measure=measure)
        for measure in ("information", "answer_nll")
    ]
    shares = [row["mean"] if row and row["mean"] is not None else float("nan") for row in rows]
    if not shares[1] > shares[0]:
        return "The thin lines are shares of the likelihood, which includes the form of the answers."
    return (
        f"Without the adapters of {_first(k)} E keeps {_percent(rows[0])} of the information but {_percent(rows[1])} "
        "of the likelihood (the thin lines), most of which is the form of the answers."
    )


def _exchange(profile: Row) -> str:
    measure, k = profile["measure"], min(profile["most"], profile["layers"][-1]["layer"] - 1)
    below = _at(profile, "exchange", k, kept="swap_upto", measure=measure)
    above = _at(profile, "exchange", k + 1, kept="swap_from", measure=measure)
    every = _at(profile, "exchange", 1, kept="swap_from", measure=measure)
    return (
        f"Cost of exchanging E's layers for the specialist's, in {_COST_UNITS[measure]}: {_first(k)} {_nats(below)}, "
        f"from layer {k + 1} on {_nats(above)}, all layers {_nats(every)} (below zero: the specialist knows more)."
    )


def _charts(inputs: ReportInputs) -> list[Chart]:
    profile, layers = inputs.analysis["profile"]["shown"], block_layers(inputs.table)
    if profile is None:
        return []
    spans = section_spans(inputs.analysis, layers)
    panels = [_shares_panel(inputs, profile, model, layers, spans) for model in _NAMES]
    panels += [_single_layers_panel(profile, layers, spans), _exchange_panel(profile, layers, spans)]
    chart = Chart(
        name="profile",
        title="What each layer does for the answers, beside the sections of similarity",
        caption="Share of the gain of tuning that is kept with adapters up to, from, or only in each layer, for E and "
        "the specialists, and the cost of exchanging E's layers for the specialist's",
        views=(View(tuple(panels), columns=2),),
        data=_data(profile, layers),
        request=FOLLOW,
        width=marks.panel_width(len(layers), least=5.0),
        height=3.5,
    )
    return [chart]


def _figures(rows: Sequence[Row], column: str) -> np.ndarray:
    return np.array([row[column] for row in rows], float)


def _inside(rows: Sequence[Row], layers: Sequence[str]) -> tuple[list[Row], list[int]]:
    """Returns the rows of blocks, and their places on the axis: depth 0 has none."""
    inside = [row for row in rows if str(row["layer"]) in layers]
    return inside, [layers.index(str(row["layer"])) for row in inside]


def _line(
    rows: Sequence[Row], layers: Sequence[str], kept: str, role: str, what: str, unit: str, is_form: bool = False
) -> Line:
    """Builds the mean over units by layer; thin and without interval for shares of the likelihood."""
    name, dash, symbol = _STYLES[kept]
    inside, places = _inside(rows, layers)
    hover = [
        lines(
            f"{name}, k = {row['layer']}",
            f"{what}{' in likelihood' if is_form else ''}: {_nats(row) if unit else _percent(row)}",
            unit,
            counted(row["n_tasks"], "task"),
        )
        for row in inside
    ]
    has_symbols = not is_form and len(layers) < _FEW_LAYERS
    return Line(
        name=_FORM if is_form else f"{what}, {name}",
        role="majority" if is_form else role,
        x=places,
        y=_figures(inside, "mean"),
        low=() if is_form else _figures(inside, "low"),
        high=() if is_form else _figures(inside, "high"),
        dash=dash,
        symbol=symbol if has_symbols else "",
        width=0.9 if is_form else 1.8,
        hover=hover,
    )


def _shares_panel(
    inputs: ReportInputs, profile: Row, model: str, layers: Sequence[str], spans: tuple[Mark, ...]
) -> Panel:
    measure = profile["measure"]
    drawn: list[Mark] = [*spans, Rule(at=1.0, role="undefined")]
    for kept in ("upto", "from"):
        if measure == "information":
            rows = _rows(profile, "curves", model=model, kept=kept, measure="answer_nll")
            drawn.append(_line(rows, layers, kept, "", _title(model), "", is_form=True))
        rows = _rows(profile, "curves", model=model, kept=kept, measure=measure)
        drawn.append(_line(rows, layers, kept, model, _title(model), ""))
    low, high = _limits(drawn, -0.15, 1.15)
    return Panel(
        Axis("layer k", layer_axis(layers).names),
        Axis(f"share of the gain in {_UNITS[measure]}", low=low, high=high, zero=True, percent=True),
        (*drawn, *_followed(inputs, profile, model, layers)),
        title=f"{_title(model)}: adapters kept in some layers",
        note=counted(len(profile["tasks"]), "task"),
        empty=_NOTHING,
    )


def _limits(drawn: Sequence[Mark], low: float, high: float) -> tuple[float, float]:
    """Returns the limits of a panel of shares: wide intervals of few units are cut rather than flatten the curves."""
    means = [np.asarray(mark.y, float) for mark in drawn if isinstance(mark, Line | Bars | Points)]
    values = np.concatenate([np.zeros(1), *means])
    values = values[np.isfinite(values)]
    return min(low, float(values.min()) - 0.1), max(high, float(values.max()) + 0.1)


def _followed(inputs: ReportInputs, profile: Row, model: str, layers: Sequence[str]) -> list[Line]:
    """Builds the lines of single tasks, which a reader asks for."""
    table, column = inputs.analyses["profile"], MEASURES[profile["measure"]]
    rows = table[(table["model"] == model) & table["kept"].isin(("upto", "from"))]
    rows = rows[rows["task"].isin(profile["tasks"]) & rows["layer"].astype(str).isin(layers)]
    followed = []
    for (task, kept), own in rows.sort_values("layer").groupby(["task", "kept"], sort=True):
        name, dash, _ = _STYLES[str(kept)]
        followed.append(
            Line(
                name=f"{task}, {_NAMES[model]}, {name}",
                role=model,
                x=[layers.index(str(layer)) for layer in own["layer"]],
                y=own[column].to_numpy(float),
                dash="dot" if dash == "solid" else "dash",
                width=1.2,
                on_request=str(task),
            )
        )
    return followed


def _single_layers_panel(profile: Row, layers: Sequence[str], spans: tuple[Mark, ...]) -> Panel:
    drawn: list[Mark] = [*spans]
    for shift, model in ((-0.2, "tuned"), (0.2, "control")):
        rows, places = _inside(_rows(profile, "curves", model=model, kept="only", measure=profile["measure"]), layers)
        name = f"{_title(model)}, layer k alone"
        drawn.append(
            Bars(
                name=name,
                role=model,
                x=np.array(places, float) + shift,
                y=_figures(rows, "mean"),
                low=_figures(rows, "low"),
                high=_figures(rows, "high"),
                width=0.36,
                hover=[
                    lines(f"layer {row['layer']}", f"{name}: {_percent(row)}", counted(row["n_tasks"], "task"))
                    for row in rows
                ],
            )
        )
    carried, places = _inside(profile["layers"], layers)
    name = "carried by layer k in E, both directions"
    drawn.append(
        Points(
            name=name,
            x=places,
            y=_figures(carried, "mean"),
            symbol="diamond",
            size=5.0,
            hover=[
                lines(f"layer {row['layer']}", f"{name}: {_percent(row)}", counted(row["n_tasks"], "task"))
                for row in carried
            ],
        )
    )
    low, high = _limits(drawn, -0.1, 0.5)
    return Panel(
        Axis("layer k", layer_axis(layers).names),
        Axis(f"share of the gain in {_UNITS[profile['measure']]}", low=low, high=high, zero=True, percent=True),
        tuple(drawn),
        title="One layer alone",
        empty=_NOTHING,
    )


def _exchange_panel(profile: Row, layers: Sequence[str], spans: tuple[Mark, ...]) -> Panel:
    measure = profile["measure"]
    unit = _COST_UNITS[measure]
    curves = [
        _line(_rows(profile, "exchange", kept=kept, measure=measure), layers, kept, "ceiling", "cost", unit)
        for kept in ("swap_upto", "swap_from")
    ]
    return Panel(
        Axis("layer k", layer_axis(layers).names),
        Axis(f"cost in {unit}", zero=True),
        (*spans, *curves),
        title="E with layers exchanged for the specialist's",
        empty="Exchanged layers were not scored.",
    )


def _data(profile: Row, layers: Sequence[str]) -> pd.DataFrame:
    rows = [{"curve": "share of the gain", **row} for row in profile["curves"]]
    rows += [{"curve": "cost", **row} for row in profile["exchange"]]
    measure = profile["measure"]
    rows += [
        {"curve": "carried", "measure": measure, "model": "tuned", "kept": "both", **row} for row in profile["layers"]
    ]
    table = pd.DataFrame(rows)
    return table[table["layer"].astype(str).isin(layers)].reset_index(drop=True)


def _table(inputs: ReportInputs) -> list[tuple[str, ...]]:
    profile = inputs.analysis["profile"]["shown"]
    if profile is None:
        return []
    measure = profile["measure"]
    rows = []
    for carried in profile["layers"]:
        layer = carried["layer"]
        shares = [
            _percent(_at(profile, "curves", layer, model=model, kept=kept, measure=measure))
            for model in _NAMES
            for kept in ("upto", "from", "only")
        ]
        exchanged = [_at(profile, "exchange", layer, kept=kept, measure=measure) for kept in ("swap_upto", "swap_from")]
        rows.append((str(layer), _percent(carried), *shares, *map(_nats, exchanged)))
    return rows


SECTION = AnalysisSection(
    name="profile",
    title="What each layer does for the answers",
    lead="Adapters are kept up to layer k, from layer k on, or in layer k alone, and E's layers are exchanged for the "
    "specialist's. The share is the part that is kept of what tuning adds: information about the prompt's own answer, "
    "in which the form of the answers does not count. Bands are 95 % t intervals over clusters of competent tasks of "
    "the mixture; the shaded sections are those of similarity.",
    tables=("profile",),
    sentences=_sentences,
    charts=_charts,
    columns=(
        "layer",
        "carried in E",
        "E, up to",
        "E, from",
        "E, only",
        "specialists, up to",
        "specialists, from",
        "specialists, only",
        "exchanged up to",
        "exchanged from",
    ),
    rows=_table,
)
