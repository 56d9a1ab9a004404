"""Charts and words on other measures, also where there is nothing to say."""

from types import SimpleNamespace

import numpy as np
import pytest

from mossa_jax.findings.robustness import find_robustness
from mossa_jax.report.analyses.measures import MEASURE_NAMES, SECTION
from mossa_jax.similarity.measures.panel import PANEL
from tests.support.charts import check_chart, mark_of, panels_of

LAYERS = ("1", "4", "8")


def planted(measures):
    """Inputs of the page with a change of every member; the top component's removal turns its sign."""
    changes, members = [], []
    for view in ("raw", "standardised", "top_removed", "mean"):
        sign = -1 if view == "top_removed" else 1
        for measure in measures:
            mean = [0.1 * sign, 0.2 * sign, None if measure == "rsa" else 0.3 * sign]
            changes.append({"view": view, "measure": measure, "mean": mean, "low": [None] * 3, "high": [None] * 3})
            member = {"view": view, "measure": measure, "agrees": sign > 0, "mean": 0.2 * sign, "low": None}
            member |= {"high": None, "units": 3, "n_units": 4, "n_tasks": 5, "correlation": 0.7}
            members.append(member)
    views = [
        {"view": view, "name": view, "agree": 9 * share, "measures": 9, "correlation": None, "shares": bool(share)}
        for view, share in (("raw", 1), ("standardised", 1), ("top_removed", 0), ("mean", 1))
    ]
    finding = {"views": views, "members": members, "shared": False, "sentence": "Of other measures 27 of 36 agree."}
    panel = {"changes": changes, "layers": list(LAYERS), "tasks": ["a", "b"], "prompts": 256}
    return panel | {"findings": {"shift": finding}, "rule": {"least_correlation": 0.5}}


def inputs(panel):
    return SimpleNamespace(analysis={"panel": panel, "sections": {"is_transition": False}})


def test_every_measure_of_the_panel_has_a_name():
    assert tuple(MEASURE_NAMES) == PANEL


def test_each_cell_says_its_change_and_undefined_ones_why():
    heats, _, _ = SECTION.charts(inputs(planted(PANEL)))
    panels = panels_of(heats)
    assert list(panels) == [
        "states as they are",
        "dimensions standardised",
        "top component removed",
        "mean over tokens",
    ]
    (heat,) = panels["top component removed"].marks
    rsa = list(MEASURE_NAMES).index("rsa")
    assert heat.values[0].tolist() == pytest.approx([-0.1, -0.2, -0.3]) and np.isnan(heat.values[rsa, 2])
    assert (heat.low, heat.high) == pytest.approx((-0.3, 0.3))
    assert heat.hover[rsa] == "RSA, top component removed" and heat.cells[rsa][1] == "layer 4\nchange: −0.200"
    assert heat.cells[rsa][2] == "layer 8: undefined for every task of the subset"


def test_marks_show_which_measures_agree_and_the_title_which_forms_do_not_share():
    _, agreement, _ = SECTION.charts(inputs(planted(PANEL)))
    (panel,) = agreement.views[0].panels
    agrees, differs = mark_of(panel, "agrees with the finding"), mark_of(panel, "does not")
    assert len(agrees.x) == 27 and len(differs.x) == 9
    assert {panel.x.names[at] for at in differs.x} == {"top removed"} and panel.note == "not shared: top removed"
    assert "3 of 4 units have the finding's sign, 5 tasks" in differs.hover[0]
    assert "rank correlation with CKA +0.70" in differs.hover[0]


def test_curves_are_shown_side_by_side_or_one_measure_alone():
    _, _, curves = SECTION.charts(inputs(planted(PANEL)))
    assert [len(view.panels) for view in curves.views] == [9, *[1] * 9]
    (alone,) = panels_of(curves, measure="rsa").values()
    assert alone == panels_of(curves)["RSA"]
    line = mark_of(alone, "top component removed")
    assert line.y[:2] == pytest.approx([-0.1, -0.2]) and np.isnan(line.y[2])


def test_sentences_and_rows_name_each_finding_and_what_is_not_measured():
    lines = SECTION.sentences(inputs(planted(PANEL)))
    assert "layers 1, 4, 8" in lines[0] and "two thirds" in lines[0]
    assert lines[1] == "What tuning adds in the upper half: Of other measures 27 of 36 agree."
    assert lines[2].startswith("Not measured on this subset: Where E and the base part; Own specialist")
    rows = SECTION.rows(inputs(planted(PANEL)))
    assert len(rows) == 4 and all(len(row) == len(SECTION.columns) for row in rows)
    assert rows[2][1:] == ("top_removed", "0 of 9", "too few cells", "no")


def test_charts_stand_whatever_is_missing():
    none_competent = planted(PANEL) | {"tasks": [], "findings": {}}
    deep = planted(PANEL) | {"layers": [str(layer) for layer in range(1, 81)]}
    for change in deep["changes"]:
        change["mean"] = change["low"] = change["high"] = list(np.linspace(0, 0.5, 80))
    for panel in (planted(PANEL), planted(PANEL[:3]), none_competent, deep):
        for chart in SECTION.charts(inputs(panel)):
            check_chart(chart)
    assert SECTION.charts(inputs({})) == SECTION.charts(inputs(find_robustness(None, {}, []))) == []
    heats, curves = SECTION.charts(inputs(none_competent))
    assert all(
        "no specialist of the subset uses its prompts" in each.views[0].panels[0].x.label for each in (heats, curves)
    )
    assert SECTION.sentences(inputs(none_competent))[0].startswith("No specialist of the subset uses its prompts")
