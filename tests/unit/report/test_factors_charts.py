"""Charts and words on what similarities are made of: numbers, and nothing fails whatever is undefined."""

from types import SimpleNamespace

import numpy as np
import pytest

from mossa_jax.findings.curves import HEADLINE
from mossa_jax.report.analyses.factors import SECTION
from mossa_jax.report.charts.grammar import has_data
from tests.support.charts import check_chart, mark_of, panels_of
from tests.support.planted_factor_tables import tables


def inputs(these, incompetent=()):
    """What the section reads of a run's results."""
    analysis = {
        "seed": 0,
        "draws": 500,
        "competence": {"incompetent": list(incompetent)},
        "sections": {"is_transition": True, "shared": [1, 2], "transition": [3, 3], "refinement": [4, 4]},
        "half": {"layers": ["3", "4"], "name": "layers 3 to 4 (upper half)"},
    }
    return SimpleNamespace(analyses=these, analysis=analysis)


def test_sentences_give_the_parts_and_the_change_within_the_answer():
    words = " ".join(SECTION.sentences(inputs(tables(within_change=-0.1, kinds={"t1": "embedding"}))))
    assert "layers 3 to 4 (upper half)" in words and "template 0.200" in words
    assert "answer +0.5" in words and "template −0.050, rest +0.030" in words
    assert "Among prompts with the same answer the change is −0." in words
    assert "Not measured within the answer: 1 task: too few prompts have equal answers." in words


def test_the_table_has_the_whole_its_parts_and_what_is_left_within():
    rows = {row[0]: row[1:] for row in SECTION.rows(inputs(tables()))}
    assert all(len(row) + 1 == len(SECTION.columns) for row in rows.values())
    assert rows["part: template"][0] == "0.200 [0.200, 0.200]" and rows["part: item"][0] == "undefined"
    assert rows["CKA among prompts with one answer"][2].startswith("−0.095")


def test_parts_are_stacked_from_zero_beside_the_whole_with_the_sections():
    parts, _ = SECTION.charts(inputs(tables()))
    base, tuned, change = parts.views[0].panels
    bars = [mark_of(tuned, name) for name in ("answer", "template", "item", "rest")]
    tops = np.max([np.asarray(bar.base) + np.nan_to_num(bar.y) for bar in bars])
    # Without the negative part of the template, E's parts add up to more than the whole.
    assert tops == pytest.approx(0.15 + 0.6 + 0.08, abs=0.02) and tuned.y.high > tops
    assert HEADLINE in base.y.label and base.y == tuned.y
    assert [span.label for span in base.marks[:3]] == ["shared", "transition", "refinement"]
    these = tables()["factors"]
    own = these[(these.experimental == "tuned") & ~these.held_out & (these.factor == "rest")]
    whole = mark_of(tuned, "whole, with 95 % interval")
    expected = own.groupby("layer").whole.mean()
    assert whole.y[-1] == pytest.approx(expected["final_norm"])
    assert "95 %" in whole.hover[-1] and "9 clusters" in whole.hover[-1]
    assert mark_of(change, "all prompts").hover[-1].splitlines()[1].startswith("all prompts: ")
    assert len(parts.data) and {"pretrained", "tuned", "change"} == set(parts.data.model)


def test_tasks_are_listed_with_both_changes_and_their_intervals():
    _, tasks = SECTION.charts(inputs(tables()))
    (panel,) = tasks.views[0].panels
    assert panel.y.names == tuple(f"t{task}" for task in range(9)) and panel.y.reverse
    within = mark_of(panel, "prompts with one answer")
    these = tables()["within"]
    rows = these[(these.task == "t3") & (these.experimental == "tuned") & (these.within == "answer")]
    rows = rows[rows.layer.isin(["3", "4"])]
    assert within.x[3] == pytest.approx(rows.change.mean()) and within.x_low[3] == pytest.approx(rows.change_low.mean())
    assert within.hover[3].startswith("t3\n") and "prompts with one answer: −0." in within.hover[3]


@pytest.mark.parametrize("case", ["incompetent", "undefined", "no template", "free text"])
def test_charts_and_words_stand_without_data(case):
    these = tables(
        template=case != "no template", kinds={f"t{n}": "embedding" for n in range(9)} if case[0] == "f" else {}
    )
    if case == "undefined":
        for table in these.values():
            table[["cka", "change"]] = np.nan
        these["factors"]["whole"] = np.nan
        these["within"]["undefined"] = "no variance in a"
    given = inputs(these, [f"t{task}" for task in range(9)] if case == "incompetent" else [])
    charts = SECTION.charts(given)
    for chart in charts:
        check_chart(chart)
    assert len(charts) == (2 if case == "no template" else 1)
    if case in ("incompetent", "undefined"):
        assert not any(has_data(panel) for panel in panels_of(charts[0]).values())
    assert all(isinstance(sentence, str) for sentence in SECTION.sentences(given))
    assert all(isinstance(cell, str) for row in SECTION.rows(given) for cell in row)
