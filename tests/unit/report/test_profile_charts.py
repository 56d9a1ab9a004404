"""Layer profiles: chart, words and table show what was planted, and say so where nothing is."""

import dataclasses

import numpy as np
import pytest

from mossa_jax.findings import find
from mossa_jax.report.analyses.profile import SECTION
from tests.support.charts import check_chart, mark_of, marks_of, panels_of
from tests.support.planted_profile import planted_profile
from tests.support.planted_report import report_inputs, report_scores, report_table

CARRIED = np.array([0.1, 0.1, 0.4, 0.2, 0.1, 0.1, 0.0, 0.0])


def inputs_with(information=True, share=None, layers=8, cuts=0, incompetent=()):
    table = report_table((2,) * 8, layers, held_out=1)
    scores = report_scores(table, incompetent)
    tasks = dict(table.drop_duplicates("task")[["task", "cluster"]].to_numpy())
    carried = CARRIED if layers == 8 else np.full(layers, 1 / layers)
    profile = planted_profile(tasks, carried, synergy=0.2, noise=0.03, cuts=cuts, information=information)
    if share is not None:
        profile[["share_of_gain", "share_of_information"]] = share
    analyses = {"profile": profile}
    return dataclasses.replace(
        report_inputs(table, scores), analyses=analyses, analysis=find(table, scores, draws=100, analyses=analyses)
    )


def panels(inputs):
    (chart,) = SECTION.charts(inputs)
    check_chart(chart)
    return panels_of(chart)


@pytest.fixture(scope="module")
def planted():
    return inputs_with()


def test_lines_are_the_means_of_each_direction_for_both_models(planted):
    shown = panels(planted)
    for title, model in (("E", "tuned"), ("Specialists", "control")):
        panel = shown[f"{title}: adapters kept in some layers"]
        for kept, name in (("upto", "layers 1 to k"), ("from", "layers k to the last")):
            rows = [
                each
                for each in planted.analysis["profile"]["shown"]["curves"]
                if (each["model"], each["kept"], each["measure"]) == (model, kept, "information")
            ]
            rows = [each for each in sorted(rows, key=lambda row: row["layer"]) if 1 <= each["layer"] <= 8]
            line = mark_of(panel, f"{title}, {name}")
            for column, values in (("mean", line.y), ("low", line.low), ("high", line.high)):
                np.testing.assert_allclose(values, [each[column] for each in rows])
        assert len(marks_of(panel, "the same in likelihood, form included")) == 2
        assert [mark.label for mark in panel.marks[:3]] == ["shared", "transition", "refinement"]
    alone = shown["One layer alone"]
    assert [len(mark_of(alone, f"{title}, layer k alone").x) for title in ("E", "Specialists")] == [8, 8]
    # The planted share that each layer carries.
    carried = mark_of(alone, "carried by layer k in E, both directions")
    np.testing.assert_allclose(carried.y[1:-1], CARRIED[1:-1], atol=0.05)
    assert carried.hover[2].startswith("layer 3\ncarried by layer k in E, both directions: ")


def test_each_task_can_be_followed(planted):
    table = planted.analyses["profile"]
    panel = panels(planted)["E: adapters kept in some layers"]
    lines = [mark for mark in panel.marks if mark.on_request == "t03"]
    own = table[(table.task == "t03") & (table.model == "tuned") & (table.kept == "upto") & (table.layer > 0)]
    assert len(lines) == 2 and any(np.allclose(line.y, own.sort_values("layer").share_of_information) for line in lines)


def test_words_and_table_have_the_numbers(planted):
    text = " ".join(SECTION.sentences(planted))
    # With the first three layers: 0.6 less half of the synergy.
    assert "E: the adapters of layers 1 to 3 alone keep 5" in text and "at once" in text and "nats per prompt" in text
    rows = SECTION.rows(planted)
    assert [row[0] for row in rows] == [str(layer) for layer in range(1, 9)]
    assert all(len(row) == len(SECTION.columns) for row in rows)
    assert rows[2][1].startswith(("39 %", "40 %", "41 %", "38 %", "42 %")) and "nan" not in f"{rows}"


@pytest.mark.parametrize(("layers", "cuts"), [(32, 8), (8, 3)])
def test_few_depths_stand_at_their_layers(layers, cuts):
    inputs = inputs_with(layers=layers, cuts=cuts)
    line = mark_of(panels(inputs)["E: adapters kept in some layers"], "E, layers 1 to k")
    cut = inputs.analyses["profile"]
    cut = cut[(cut.model == "tuned") & (cut.kept == "upto") & (cut.layer > 0)].layer.unique()
    assert [at + 1 for at in line.x] == sorted(cut)
    assert len(SECTION.rows(inputs)) == layers and "unknown" in SECTION.rows(inputs)[0][2]


def test_shares_of_likelihood_say_so():
    inputs = inputs_with(information=False)
    assert "Shares are of the answers' likelihood" in " ".join(SECTION.sentences(inputs))
    assert "likelihood" in panels(inputs)["One layer alone"].y.label


def test_without_a_competent_task_all_are_shown_and_the_page_says_so():
    inputs = inputs_with(incompetent=tuple(f"t{task:02}" for task in range(16)))
    assert not inputs.analysis["profile"]["measured"]
    assert SECTION.sentences(inputs)[0].startswith("No competent task gains anything: shown are all tasks")
    assert len(SECTION.rows(inputs)) == 8 and mark_of(panels(inputs)["One layer alone"], "E, layer k alone")


def test_without_any_gain_there_is_no_chart_and_the_page_says_so():
    inputs = inputs_with(share=np.nan)
    assert "Nothing can be said" in SECTION.sentences(inputs)[0]
    assert SECTION.rows(inputs) == [] and SECTION.charts(inputs) == []
