"""The section of the page on other measures of similarity: do they show what CKA shows?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.claims import CLAIMS
from mossa_jax.findings.robustness import PRIMARY_FINDINGS, VIEWS
from mossa_jax.findings.wording import counted
from mossa_jax.report.analyses import marks
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.charts.grammar import Axis, Chart, Choice, Heat, Mark, Panel, Points, View
from mossa_jax.report.charts.parts import lines, section_spans
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import fixed
from mossa_jax.report.palette import BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILLION

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
"""Primary finding -> its short name."""

_VIEW_TITLES = {
    "raw": "states as they are",
    "standardised": "dimensions standardised",
    "top_removed": "top component removed",
    "last": "last token",
    "mean": "mean over tokens",
}
_SHORT_VIEWS = {
    "raw": "as they are",
    "standardised": "standardised",
    "top_removed": "top removed",
    "last": "last token",
    "mean": "mean of tokens",
}
_VIEW_COLOURS = {"raw": BLUE, "standardised": ORANGE, "top_removed": PURPLE, "last": SKY_BLUE, "mean": GREEN}

_NO_TASK = "No task of the mixture is in the subset."
_NONE_COMPETENT = (
    "No specialist of the subset uses its prompts: all of its tasks are shown, and nothing is concluded from them."
)

_CHANGE = "tuned minus pre-trained similarity"
_ALL = "all"


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
                    "too few cells" if correlation is None else fixed(correlation, 2, True),
                    "yes" if view["shares"] else "no",
                )
            )
    return rows


def _views(panel: dict[str, Any]) -> list[str]:
    present = {change["view"] for change in panel["changes"]}
    return [view for view in VIEWS if view in present]


def _charts(inputs: ReportInputs) -> list[Chart]:
    panel = _panel(inputs)
    if not panel:
        return []
    charts = [_panel_chart(panel), _curves_chart(inputs, panel)]
    if panel["findings"]:
        charts.insert(1, _agreement_chart(panel))
    return charts


def _measures(panel: dict[str, Any]) -> list[str]:
    present = {change["measure"] for change in panel["changes"]}
    return [measure for measure in MEASURE_NAMES if measure in present]


def _change_of(panel: dict[str, Any], view: str, measure: str) -> dict[str, np.ndarray]:
    """Returns `mean, low, high` of a measure's change by layer; undefined where a view has no such measure."""
    for change in panel["changes"]:
        if (change["view"], change["measure"]) == (view, measure):
            return {key: np.array(change[key], float) for key in ("mean", "low", "high")}
    return dict.fromkeys(("mean", "low", "high"), np.full(len(panel["layers"]), np.nan))


def _layer_label(panel: dict[str, Any]) -> str:
    warning = "" if panel["tasks"] else "; all tasks: no specialist of the subset uses its prompts"
    return f"layer{warning}"


def _panel_chart(panel: dict[str, Any]) -> Chart:
    """Builds the change of every measure by layer, one heat map per form of the states."""
    measures, layers = _measures(panel), panel["layers"]
    changes = {(view, measure): _change_of(panel, view, measure) for view in _views(panel) for measure in measures}
    largest = max(0.05, *(float(np.nanmax(np.abs(change["mean"]), initial=0.0)) for change in changes.values()))
    axes = (
        Axis(_layer_label(panel), tuple(layers)),
        Axis("", tuple(MEASURE_NAMES[measure] for measure in measures), reverse=True),
    )
    panels = []
    for view in _views(panel):
        heat = Heat(
            values=np.array([changes[view, measure]["mean"] for measure in measures]),
            hover=[f"{MEASURE_NAMES[measure]}, {_VIEW_TITLES[view]}" for measure in measures],
            cells=[_cell_texts(layers, changes[view, measure]) for measure in measures],
            scale="change",
            low=-largest,
            high=largest,
            bar=_CHANGE,
        )
        panels.append(Panel(*axes, (heat,), title=_VIEW_TITLES[view]))
    rows = [_change_rows(layers, view, measure, change) for (view, measure), change in changes.items()]
    return Chart(
        name="measures",
        title="The change by tuning, by every measure",
        caption="Heat maps of the change by tuning, measures by layers, one per form of the states",
        views=(View(tuple(panels), columns=min(2, len(panels))),),
        data=pd.concat(rows, ignore_index=True),
        width=marks.panel_width(2 * len(layers), least=5.2),
        height=3.4,
    )


def _cell_texts(layers: Sequence[str], change: dict[str, np.ndarray]) -> list[str]:
    return [
        f"layer {layer}\n{marks.value_text('change', numbers, signed=True)}"
        if np.isfinite(numbers[0])
        else f"layer {layer}: undefined for every task of the subset"
        for layer, numbers in zip(layers, zip(*change.values(), strict=True), strict=True)
    ]


def _change_rows(layers: Sequence[str], view: str, measure: str, change: dict[str, np.ndarray]) -> pd.DataFrame:
    return pd.DataFrame({"view": view, "measure": measure, "layer": list(layers), **change})


def _agreement_chart(panel: dict[str, Any]) -> Chart:
    """Builds the marks of agreement: measures by forms of the states, a panel per finding."""
    measures, views = _measures(panel), _views(panel)
    findings = [name for name in PRIMARY_FINDINGS if name in panel["findings"]]
    panels, rows = [], []
    for name in findings:
        finding = panel["findings"][name]
        members = [member for member in finding["members"] if member["measure"] in measures]
        drawn: list[Mark] = []
        for agrees, label, role, symbol in (
            (True, "agrees with the finding", GREEN, "circle"),
            (False, "does not", VERMILLION, "x"),
        ):
            own = [member for member in members if member["agrees"] == agrees]
            if not own:
                continue
            drawn.append(
                Points(
                    name=label,
                    role=role,
                    symbol=symbol,
                    size=8.0,
                    x=[views.index(member["view"]) for member in own],
                    y=[measures.index(member["measure"]) for member in own],
                    hover=[_member_text(member) for member in own],
                )
            )
        lacking = [view["view"] for view in finding["views"] if not view["shares"]]
        panels.append(
            Panel(
                Axis("", tuple(_SHORT_VIEWS[view] for view in views)),
                Axis("", tuple(MEASURE_NAMES[measure] for measure in measures), reverse=True),
                tuple(drawn),
                title=_FINDINGS[name],
                note=f"not shared: {', '.join(_SHORT_VIEWS[view] for view in lacking)}" if lacking else "shared",
            )
        )
        rows += [{"finding": name, **member} for member in finding["members"]]
    return Chart(
        name="measures_agreement",
        title="Which measures agree with each finding",
        caption="Marks of agreement, measures by forms of the states, a panel for each finding",
        views=(View(tuple(panels), columns=len(panels)),),
        data=pd.DataFrame(rows),
        width=3.2,
        height=3.6,
    )


def _member_text(member: dict[str, Any]) -> str:
    """Says how a measure stands to a finding."""
    correlation = member.get("correlation")
    return lines(
        f"{MEASURE_NAMES[member['measure']]}, {_VIEW_TITLES[member['view']]}",
        marks.value_text("mean over units", [member.get(key) for key in ("mean", "low", "high")], signed=True),
        f"{member['units']} of {counted(member['n_units'], 'unit')} have the finding's sign, "
        f"{counted(member['n_tasks'], 'task')}"
        if "units" in member
        else "",
        "" if correlation is None else f"rank correlation with CKA {fixed(correlation, 2, True)}",
    )


def _curves_chart(inputs: ReportInputs, panel: dict[str, Any]) -> Chart:
    """Builds the change over layers, a line per form of the states: all measures side by side, or one of them."""
    measures, layers = _measures(panel), panel["layers"]
    panels = {measure: _curves_panel(inputs, panel, measure) for measure in measures}
    options = {_ALL: "all measures"} | {measure: MEASURE_NAMES[measure] for measure in measures}
    views = [View(tuple(panels.values()), columns=3, choices={"measure": _ALL})]
    views += [View((each,), choices={"measure": measure}) for measure, each in panels.items()]
    rows = [
        _change_rows(layers, view, measure, _change_of(panel, view, measure))
        for view in _views(panel)
        for measure in measures
    ]
    return Chart(
        name="measures_curves",
        title="The change by tuning over layers, by measure and form of the states",
        caption="The change by tuning over layers, a panel for each measure, a line for each form of the states, with "
        "the 95 % interval over clusters of the states as they are",
        views=tuple(views),
        data=pd.concat(rows, ignore_index=True),
        choices={"measure": Choice("Measure", options)},
        width=marks.panel_width(len(layers)),
        height=2.5,
    )


def _curves_panel(inputs: ReportInputs, panel: dict[str, Any], measure: str) -> Panel:
    layers = panel["layers"]
    drawn: list[Mark] = [*section_spans(inputs.analysis, layers, named=False)]
    for view in _views(panel):
        change = _change_of(panel, view, measure)
        line = marks.curve(
            layers, change["mean"], _VIEW_TITLES[view], _VIEW_COLOURS[view], change["low"], change["high"], signed=True
        )
        # Bands of all forms would cover each other.
        drawn.append(line if view == "raw" else replace(line, low=(), high=()))
    return Panel(
        Axis(_layer_label(panel), tuple(layers)),
        Axis(_CHANGE, zero=True),
        tuple(drawn),
        title=MEASURE_NAMES[measure],
    )


SECTION = AnalysisSection(
    name="measures",
    title="Other measures of similarity",
    lead="Linear CKA weighs directions by their variance. Here other measures answer the same question on a subset "
    "fixed in advance, also on states whose dimensions have one spread, on states without their first principal "
    "component, and in the other pooling: the change by tuning layer by layer, and which measures agree with each "
    "finding.",
    tables=("measures",),
    sentences=_sentences,
    charts=_charts,
    columns=("finding", "form of the states", "measures that agree", "rank correlation with CKA", "shared"),
    rows=_rows,
)
