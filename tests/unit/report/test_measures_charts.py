"""The section on other measures: what it says and draws, also where there is nothing to say."""

from types import SimpleNamespace

import numpy as np
import pytest

from mossa_jax.findings.robustness import find_robustness
from mossa_jax.report.analyses.measures import MEASURE_NAMES, SECTION, draw_curves, draw_panel
from mossa_jax.similarity.measures.panel import PANEL

LAYERS = ("1", "4", "8")


def planted(measures):
    """Inputs of the page with a change of every member; the top component's removal turns its sign."""
    changes, members = [], []
    for view in ("raw", "standardised", "top_removed", "mean"):
        sign = -1 if view == "top_removed" else 1
        for measure in measures:
            mean = [0.1 * sign, 0.2 * sign, None if measure == "rsa" else 0.3 * sign]
            changes.append({"view": view, "measure": measure, "mean": mean, "low": [None] * 3, "high": [None] * 3})
            members.append({"view": view, "measure": measure, "agrees": sign > 0})
    views = [
        {"view": view, "name": view, "agree": 9 * share, "measures": 9, "correlation": None, "shares": bool(share)}
        for view, share in (("raw", 1), ("standardised", 1), ("top_removed", 0), ("mean", 1))
    ]
    finding = {"views": views, "members": members, "shared": False, "sentence": "Of other measures 27 of 36 agree."}
    panel = {"changes": changes, "layers": list(LAYERS), "tasks": ["a", "b"], "prompts": 256}
    return panel | {"findings": {"shift": finding}, "rule": {"least_correlation": 0.5}}


def inputs(panel):
    return SimpleNamespace(analysis={"panel": panel})


def texts(figure):
    figure.draw_without_rendering()
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_every_measure_of_the_panel_has_a_name():
    assert tuple(MEASURE_NAMES) == PANEL


def test_cells_show_their_sign_and_marks_their_agreement():
    figure = draw_panel(inputs(planted(PANEL)))
    labels = texts(figure)
    assert labels.count("+.10") == 3 * 9 and labels.count("-.10") == 9
    # RSA has no value in the last layer.
    assert labels.count("+.30") == 3 * 8
    assert labels.count("upper half") == 3 and labels.count("upper half: not shared") == 1
    marks = [len(axes.collections) for axes in figure.axes if axes.images]
    assert marks == [9, 9, 9, 9]


def test_sentences_and_rows_name_each_finding_and_what_is_not_measured():
    lines = SECTION.sentences(inputs(planted(PANEL)))
    assert "layers 1, 4, 8" in lines[0] and "two thirds" in lines[0]
    assert lines[1] == "What tuning adds in the upper half: Of other measures 27 of 36 agree."
    assert lines[2].startswith("Not measured on this subset: Where E and the base part; Own specialist")
    rows = SECTION.rows(inputs(planted(PANEL)))
    assert len(rows) == 4 and all(len(row) == len(SECTION.columns) for row in rows)
    assert rows[2][1:] == ("top_removed", "0 of 9", "too few cells", "no")


@pytest.mark.parametrize("draw", [draw_panel, draw_curves])
def test_figures_are_drawn_whatever_is_missing(draw):
    none_competent = planted(PANEL) | {"tasks": [], "findings": {}}
    for panel in (planted(PANEL), planted(PANEL[:3]), none_competent, {}, find_robustness(None, {}, [])):
        draw(inputs(panel)).draw_without_rendering()
    empty = draw(inputs({}))
    assert any("No task of the mixture" in text for text in texts(empty))
    figure = draw(inputs(none_competent))
    assert "no specialist of the subset uses its prompts" in figure.get_supxlabel()
    assert SECTION.sentences(inputs(none_competent))[0].startswith("No specialist of the subset uses its prompts")


def test_many_layers_have_no_numbers():
    panel = planted(PANEL)
    layers = [str(layer) for layer in range(1, 17)]
    for change in panel["changes"]:
        change["mean"] = change["low"] = change["high"] = list(np.linspace(0, 0.5, 16))
    assert not any(text.startswith("+.") for text in texts(draw_panel(inputs(panel | {"layers": layers}))))
