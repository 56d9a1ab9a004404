"""The section on what similarities are made of: words with numbers, and figures whatever is undefined."""

from types import SimpleNamespace

import numpy as np
import pytest

from mossa_jax.findings.curves import HEADLINE
from mossa_jax.report.analyses.factors import SECTION
from tests.support.planted_factor_tables import tables


def inputs(these, incompetent=()):
    """What the section reads of a run's results."""
    analysis = {
        "seed": 0,
        "draws": 500,
        "competence": {"incompetent": list(incompetent)},
        "half": {"layers": ["3", "4"], "name": "layers 3 to 4 (upper half)"},
    }
    return SimpleNamespace(analyses=these, analysis=analysis)


def test_sentences_give_the_parts_and_the_change_within_the_answer():
    words = " ".join(SECTION.sentences(inputs(tables(within_change=-0.1, kinds={"t1": "embedding"}))))
    assert "layers 3 to 4 (upper half)" in words and "template 0.200" in words
    assert "answer +0.5" in words and "template -0.050, rest +0.030" in words
    assert "Among prompts with the same answer the change is -0." in words
    assert "Not measured within the answer: 1 task: too few prompts have equal answers." in words


def test_the_table_has_the_whole_its_parts_and_what_is_left_within():
    rows = {row[0]: row[1:] for row in SECTION.rows(inputs(tables()))}
    assert all(len(row) + 1 == len(SECTION.columns) for row in rows.values())
    assert rows["part: template"][0] == "0.200 [0.200, 0.200]" and rows["part: item"][0] == "undefined"
    assert rows["CKA among prompts with one answer"][2].startswith("-0.095")


@pytest.mark.parametrize("name", SECTION.figures)
def test_a_figure_shows_the_stacked_parts_or_the_tasks(name):
    figure = SECTION.figures[name](inputs(tables()))
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    assert len(titles) == {"factors": 3, "factors_tasks": 1}[name]
    if name == "factors":
        stacked = figure.axes[1].patches
        tops = max(bar.get_y() + bar.get_height() for bar in stacked)
        # Without the negative part of the template, E's parts add up to more than the whole.
        assert tops == pytest.approx(0.15 + 0.6 + 0.08, abs=0.02)
        assert HEADLINE in figure.axes[0].get_ylabel()
    else:
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [f"t{task}" for task in range(9)]


@pytest.mark.parametrize("name", SECTION.figures)
@pytest.mark.parametrize("case", ["incompetent", "undefined", "no template", "free text"])
def test_figures_and_words_stand_without_data(name, case):
    these = tables(
        template=case != "no template", kinds={f"t{n}": "embedding" for n in range(9)} if case[0] == "f" else {}
    )
    if case == "undefined":
        for table in these.values():
            table[["cka", "change"]] = np.nan
        these["factors"]["whole"] = np.nan
        these["within"]["undefined"] = "no variance in a"
    given = inputs(these, [f"t{task}" for task in range(9)] if case == "incompetent" else [])
    SECTION.figures[name](given).draw_without_rendering()
    assert all(isinstance(sentence, str) for sentence in SECTION.sentences(given))
    assert all(isinstance(cell, str) for row in SECTION.rows(given) for cell in row)
