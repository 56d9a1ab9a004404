"""The section of the page on what each layer's adapter does for the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.findings.curves import block_layers
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {"tuned": "E", "control": "specialists"}
_STYLES = {"upto": ("-", "o"), "from": ("--", "s"), "swap_upto": ("-", "o"), "swap_from": ("--", "s")}
_UNITS = {"information": "information", "answer_nll": "likelihood"}
_COST_UNITS = {"information": "nats per prompt", "answer_nll": "nats per token"}
_NOTHING = "no task of the mixture\ngains anything from tuning"

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
    # Whole numbers: a share just below zero is "0", not "-0".
    mean, low, high = (None if row[key] is None else round(100 * row[key]) for key in ("mean", "low", "high"))
    return f"{mean} %" if low is None else f"{mean} % [{low} to {high}]"


def _title(model: str) -> str:
    return {"tuned": "E", "control": "Specialists"}[model]


def _first(k: int) -> str:
    """Names the layers up to k."""
    return "layer 1" if k == 1 else f"layers 1 to {k}"


def _nats(row: Row | None) -> str:
    if row is None or row["mean"] is None:
        return "unknown"
    return f"{row['mean']:+.2f}" + ("" if row["low"] is None else f" [{row['low']:+.2f} to {row['high']:+.2f}]")


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


def _draw(inputs: ReportInputs) -> Figure:
    profile, layers = inputs.analysis["profile"]["shown"], block_layers(inputs.table)
    figure = elements.new_figure(10.0, 7.0)
    panels = figure.subplots(2, 2)
    if profile is None:
        for axes in panels.flat:
            elements.empty_panel(axes, _NOTHING)
        return figure
    measure = profile["measure"]
    for axes, model in zip(panels[0], _NAMES, strict=True):
        _draw_shares(axes, profile, model, layers, inputs.palette.scores[model])
        axes.set_title(f"{_title(model)}: adapters kept in some layers", pad=16)
    _draw_single_layers(panels[1, 0], profile, layers, inputs.palette)
    _draw_exchange(panels[1, 1], profile, layers, inputs.palette)
    for axes in panels.flat:
        elements.section_bands(axes, inputs.analysis["sections"], layers, palette=inputs.palette)
        elements.layer_axis(axes, layers, label=False, max_ticks=17)
        axes.set_xlabel("layer k")
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
    panels[0, 0].set_ylabel(f"share of the gain in {_UNITS[measure]}")
    _add_legend(figure, measure, inputs.palette)
    return figure


def _line(axes: Axes, rows: Sequence[Row], layers: Sequence[str], colour: str, kept: str, thin: bool = False) -> None:
    """Draws the mean over units by layer, with its interval unless it is thin."""
    inside = [row for row in rows if str(row["layer"]) in layers]
    places = [layers.index(str(row["layer"])) for row in inside]
    mean, low, high = (np.array([row[key] for row in inside], float) for key in ("mean", "low", "high"))
    style, marker = _STYLES[kept]
    if thin:
        axes.plot(places, mean, color="#777777", lw=0.9, ls=style)
        return
    axes.fill_between(places, low, high, color=colour, alpha=0.16, lw=0)
    axes.plot(places, mean, color=colour, lw=1.8, ls=style, marker=marker if len(layers) < 17 else None, ms=4.5)


def _draw_shares(axes: Axes, profile: Row, model: str, layers: Sequence[str], colour: str) -> None:
    for kept in ("upto", "from"):
        if profile["measure"] == "information":
            _line(axes, _rows(profile, "curves", model=model, kept=kept, measure="answer_nll"), layers, "", kept, True)
        rows = _rows(profile, "curves", model=model, kept=kept, measure=profile["measure"])
        _line(axes, rows, layers, colour, kept)
    for level in (0, 1):
        axes.axhline(level, color="#888888", lw=0.8, zorder=1)
    axes.set_ylim(*_limits(axes, -0.15, 1.15))


def _limits(axes: Axes, low: float, high: float) -> tuple[float, float]:
    """Returns the limits of a panel of shares: wide intervals of few units are cut rather than flatten the curves."""
    bottom, top = axes.get_ylim()
    return max(min(bottom, low), -0.6), min(max(top, high), 1.6)


def _draw_single_layers(axes: Axes, profile: Row, layers: Sequence[str], palette: Palette) -> None:
    axes.set_title("One layer alone", pad=16)
    for shift, model in ((-0.2, "tuned"), (0.2, "control")):
        rows = _rows(profile, "curves", model=model, kept="only", measure=profile["measure"])
        places = np.array([layers.index(str(row["layer"])) for row in rows], float) + shift
        mean, low, high = (np.array([row[key] for row in rows], float) for key in ("mean", "low", "high"))
        axes.bar(places, mean, width=0.36, color=palette.scores[model], alpha=0.8, zorder=2)
        axes.errorbar(places, mean, [mean - low, high - mean], fmt="none", ecolor="#333333", elinewidth=0.9, zorder=3)
    carried = profile["layers"]
    axes.plot(
        [layers.index(str(row["layer"])) for row in carried],
        np.array([row["mean"] for row in carried], float),
        color="black",
        marker="D",
        ms=4,
        ls="none",
        zorder=4,
    )
    axes.axhline(0, color="#888888", lw=0.8, zorder=1)
    axes.set_ylim(*_limits(axes, -0.1, 0.5))
    axes.set_ylabel(f"share of the gain in {_UNITS[profile['measure']]}")


def _draw_exchange(axes: Axes, profile: Row, layers: Sequence[str], palette: Palette) -> None:
    axes.set_title("E with layers exchanged for the specialist's", pad=16)
    for kept in ("swap_upto", "swap_from"):
        _line(axes, _rows(profile, "exchange", kept=kept, measure=profile["measure"]), layers, palette.ceiling, kept)
    axes.axhline(0, color="#888888", lw=0.8, zorder=1)
    axes.set_ylabel(f"cost in {_COST_UNITS[profile['measure']]}")


def _add_legend(figure: Figure, measure: str, palette: Palette) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color="#333333", ls="-", marker="o", ms=4.5, lw=1.8, label="layers 1 to k"),
        Line2D([], [], color="#333333", ls="--", marker="s", ms=4.5, lw=1.8, label="layers k to the last"),
        Patch(color=palette.scores["tuned"], alpha=0.8, label="E"),
        Patch(color=palette.scores["control"], alpha=0.8, label="specialists"),
        Patch(color=palette.undefined, alpha=0.5, label="95 % interval over clusters"),
        Line2D([], [], color="black", marker="D", ms=4, ls="none", label="carried by layer k in E, both directions"),
    ]
    if measure == "information":
        handles.insert(2, Line2D([], [], color="#777777", lw=0.9, label="the same in likelihood, form included"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)


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
    figures={"profile": _draw},
    captions={
        "profile": "Share of the gain of tuning that is kept with adapters up to, from, or only in each layer, for E "
        "and the specialists, and the cost of exchanging E's layers for the specialist's"
    },
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
