"""The section of the page on other measures of similarity: do they show what CKA shows?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.findings.claims import CLAIMS
from mossa_jax.findings.robustness import PRIMARY_FINDINGS, VIEWS
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.palette import BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, UNDEFINED, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURE_NAMES = {
    "cka_debiased": "CKA, debiased",
    "cka_biased": "CKA, biased",
    "rbf_cka": "CKA, Gaussian kernel",
    "procrustes": "Procrustes",
    "svcca": "SVCCA",
    "rsa": "RSA",
    "mutual_knn": "mutual neighbours",
    "cknna": "CKNNA, as in its paper",
    "cknna_released": "CKNNA, as released",
}
"""Measure -> how it is named."""

_FINDINGS = {
    "transition": "transition",
    "shift": "upper half",
    "specificity": "own specialist",
    "unseen": "unseen tasks",
}
"""Primary finding -> its short name over a column of marks."""

_VIEW_TITLES = {
    "raw": "states as they are",
    "standardised": "dimensions standardised",
    "top_removed": "top component removed",
    "last": "last token",
    "mean": "mean over tokens",
}
_VIEW_COLOURS = {"raw": BLUE, "standardised": ORANGE, "top_removed": PURPLE, "last": SKY_BLUE, "mean": GREEN}

_NO_TASK = "No task of the mixture is in the subset."
_NONE_COMPETENT = (
    "No specialist of the subset uses its prompts: all of its tasks are shown, and nothing is concluded from them."
)

_MOST_NUMBERS = 10
"""With more layers than this the cells are too narrow for numbers."""


def _panel(inputs: ReportInputs) -> dict[str, Any]:
    panel: dict[str, Any] = inputs.analysis.get("panel", {})
    return panel if panel.get("changes") else {}


def _sentences(inputs: ReportInputs) -> list[str]:
    panel = _panel(inputs)
    if not panel:
        return [_NO_TASK]
    if not panel["tasks"]:
        return [_NONE_COMPETENT]
    titles = {claim.name: claim.title for claim in CLAIMS}
    rule = panel["rule"]
    lines = [
        f"The subset: {len(panel['tasks'])} tasks with competent specialists, up to {panel['prompts']} prompts each, "
        f"layers {', '.join(panel['layers'])}. The rule, fixed in advance: a measure agrees with a finding if its mean "
        f"and two thirds of the clusters have the finding's sign; a view shares it if two thirds of its measures agree "
        f"and their median rank correlation with CKA over tasks and layers is at least {rule['least_correlation']:g}. "
        "A finding that a view does not share is not supported."
    ]
    lines += [f"{titles[name]}: {finding['sentence']}" for name, finding in panel["findings"].items()]
    absent = [titles[name] for name in PRIMARY_FINDINGS if name not in panel["findings"]]
    if absent:
        lines.append(f"Not measured on this subset: {'; '.join(absent)}.")
    return lines


def _rows(inputs: ReportInputs) -> list[tuple[str, ...]]:
    titles = {claim.name: claim.title for claim in CLAIMS}
    rows: list[tuple[str, ...]] = []
    for name, finding in _panel(inputs).get("findings", {}).items():
        for view in finding["views"]:
            correlation = view["correlation"]
            rows.append(
                (
                    titles[name],
                    view["name"],
                    f"{view['agree']} of {view['measures']}",
                    "too few cells" if correlation is None else f"{correlation:+.2f}",
                    "yes" if view["shares"] else "no",
                )
            )
    return rows


def _views(panel: dict[str, Any]) -> list[str]:
    present = {change["view"] for change in panel["changes"]}
    return [view for view in VIEWS if view in present]


def draw_panel(inputs: ReportInputs) -> Figure:
    """Draws the mean change of every measure by layer, view after view, with a mark where it agrees with a finding."""
    from matplotlib.colors import TwoSlopeNorm

    panel = _panel(inputs)
    if not panel:
        return _empty(_NO_TASK)
    views, layers, findings = _views(panel), panel["layers"], [n for n in PRIMARY_FINDINGS if n in panel["findings"]]
    by_member = {(change["view"], change["measure"]): _array(change["mean"]) for change in panel["changes"]}
    measures = [name for name in MEASURE_NAMES if any((view, name) in by_member for view in views)]
    largest = np.nanmax(np.abs(np.array(list(by_member.values()))), initial=0.05)
    norm = TwoSlopeNorm(0.0, -largest, largest)
    columns = min(2, len(views))
    width, rows = max(0.4 * (len(layers) + len(findings)) + 0.4, 4.8), -(-len(views) // columns)
    figure = elements.new_figure(min(18.0, 2.6 + width * columns), 3.9 * rows + 0.5)
    subplots = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in list(subplots.flat)[len(views) :]:
        axes.set_axis_off()
    image = None
    for axes, view in zip(subplots.flat, views, strict=False):
        values = np.array([by_member.get((view, name), np.full(len(layers), np.nan)) for name in measures])
        axes.patch.set(facecolor=UNDEFINED, hatch="////", edgecolor="white")
        image = axes.imshow(
            np.ma.masked_invalid(values), aspect="auto", norm=norm, cmap="PuOr_r", interpolation="nearest"
        )
        if len(layers) <= _MOST_NUMBERS:
            _write_numbers(axes, values, largest)
        _mark(axes, panel, view, measures, findings)
        axes.set_xticks(range(len(layers)), layers, fontsize=8)
        axes.set_title(_VIEW_TITLES[view])
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", labelsize=8)
        # Between CKA, measures of all distances, and measures of neighbours.
        for edge in (1.5, 5.5):
            axes.axhline(edge, color="white", lw=2)
    for axes in subplots[:, 0]:
        axes.set_yticks(range(len(measures)), [MEASURE_NAMES[name] for name in measures])
    _name_layers(figure, panel)
    assert image is not None
    bar = figure.colorbar(image, ax=list(subplots.flat), location="right", shrink=0.5, aspect=30, pad=0.02)
    bar.set_label("tuned minus pre-trained similarity\n(mean over clusters)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if findings:
        _legend(figure)
    return figure


def _array(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _write_numbers(axes: Axes, values: np.ndarray, largest: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            # Without the zero before the point, to fit: +.42.
            text = f"{value:+.2f}".replace("0.", ".")
            colour = "white" if abs(value) > 0.6 * largest else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)


def _mark(axes: Axes, panel: dict[str, Any], view: str, measures: list[str], findings: list[str]) -> None:
    """Adds a column of marks per finding to the right of the layers."""
    layers = len(panel["layers"])
    axes.set_xlim(-0.5, layers - 0.5 + (len(findings) + 0.3 if findings else 0))
    axes.axvspan(layers - 0.5, layers + len(findings), color="white", lw=0, zorder=0.5)
    for column, name in enumerate(findings, layers):
        members = {m["measure"]: m for m in panel["findings"][name]["members"] if m["view"] == view}
        x = column + 0.3
        if not members:
            continue
        for row, measure in enumerate(measures):
            if measure in members:
                agrees = members[measure]["agrees"]
                marker, colour = ("o", GREEN) if agrees else ("X", VERMILLION)
                axes.scatter(x, row, s=34, lw=0, zorder=3, marker=marker, color=colour)
        shares = {each["view"]: each["shares"] for each in panel["findings"][name]["views"]}.get(view)
        colour = {True: GREEN, False: VERMILLION, None: "#777777"}[shares]
        label = _FINDINGS[name] if shares is not False else f"{_FINDINGS[name]}: not shared"
        axes.text(
            x, -0.65, label, rotation=40, ha="left", va="bottom", fontsize=7, color=colour, rotation_mode="anchor"
        )


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", ls="", color=GREEN, label="agrees in sign with the finding"),
        Line2D([], [], marker="X", ls="", color=VERMILLION, label="does not"),
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8)


def _name_layers(figure: Figure, panel: dict[str, Any]) -> None:
    warning = "" if panel["tasks"] else "; all tasks: no specialist of the subset uses its prompts"
    figure.supxlabel(f"layer (output of the block){warning}", fontsize=9)


def _empty(reason: str) -> Figure:
    figure = elements.new_figure(7.0, 2.4)
    elements.empty_panel(figure.subplots(), reason)
    return figure


def draw_curves(inputs: ReportInputs) -> Figure:
    """Draws the change of each measure over layers, a line per view, with the interval of the states as they are."""
    panel = _panel(inputs)
    if not panel:
        return _empty(_NO_TASK)
    layers, views = panel["layers"], _views(panel)
    figure = elements.new_figure(10.0, 7.0)
    grid = figure.subplots(3, 3, sharex=True, sharey=True)
    at = np.arange(len(layers))
    for axes, (measure, name) in zip(grid.flat, MEASURE_NAMES.items(), strict=True):
        axes.axhline(0, color="#666666", lw=0.8)
        for view in views:
            change = next((c for c in panel["changes"] if (c["view"], c["measure"]) == (view, measure)), None)
            if change is None:
                continue
            colour = _VIEW_COLOURS[view]
            axes.plot(at, _array(change["mean"]), color=colour, lw=1.8, marker=".", label=_VIEW_TITLES[view])
            if view == "raw":
                axes.fill_between(at, _array(change["low"]), _array(change["high"]), color=colour, alpha=0.15, lw=0)
        axes.set_title(name)
        axes.set_xticks(at, layers, fontsize=8)
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
    _name_layers(figure, panel)
    figure.supylabel("tuned minus pre-trained similarity (band: 95 % interval over clusters)", fontsize=9)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(views), fontsize=8)
    return figure


SECTION = AnalysisSection(
    name="measures",
    title="Other measures of similarity",
    lead="Linear CKA weighs directions by their variance. Here other measures answer the same question on a subset "
    "fixed in advance, also on states whose dimensions have one spread, on states without their first principal "
    "component, and in the other pooling. Each cell is the change by tuning; marks say which measures agree with each "
    "finding.",
    tables=("measures",),
    sentences=_sentences,
    figures={"measures": draw_panel, "measures_curves": draw_curves},
    captions={
        "measures": "Heat maps of the change by tuning, measures by layers, one per form of the states, with marks "
        "where a measure agrees with a finding",
        "measures_curves": "The change by tuning over layers, a panel for each measure, a line for each form of the "
        "states",
    },
    columns=("finding", "form of the states", "measures that agree", "rank correlation with CKA", "shared"),
    rows=_rows,
)
