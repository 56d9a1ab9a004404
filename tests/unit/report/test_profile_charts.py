"""The page's section on layer profiles: figure, words and table show what was planted, and say so where nothing is."""

import dataclasses

import numpy as np
import pytest

from mossa_jax.findings import find
from mossa_jax.report.analyses.profile import SECTION
from mossa_jax.report.drawing import figure_elements
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


def draw(inputs):
    with figure_elements.figure_style():
        return SECTION.figures["profile"](inputs)


@pytest.fixture(scope="module")
def planted():
    return inputs_with()


def test_the_figure_draws_the_mean_of_each_direction_for_both_models(planted):
    figure = draw(planted)
    for axes, model in zip(figure.axes[:2], ("tuned", "control"), strict=True):
        drawn = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 8]
        for kept in ("upto", "from"):
            rows = [
                each
                for each in planted.analysis["profile"]["shown"]["curves"]
                if (each["model"], each["kept"], each["measure"]) == (model, kept, "information")
            ]
            means = [each["mean"] for each in sorted(rows, key=lambda row: row["layer"]) if 1 <= each["layer"] <= 8]
            assert any(np.allclose(line, means) for line in drawn), (model, kept)
    # A bar for each layer and model, and the planted share that each layer carries as a mark.
    bars, (marks,) = figure.axes[2].containers, [line for line in figure.axes[2].lines if line.get_marker() == "D"]
    assert sum(len(container) for container in bars if hasattr(container, "patches")) == 16
    np.testing.assert_allclose(marks.get_ydata()[1:-1], CARRIED[1:-1], atol=0.05)


def test_words_and_table_have_the_numbers(planted):
    text = " ".join(SECTION.sentences(planted))
    # With the first three layers: 0.6 less half of the synergy.
    assert "E: the adapters of layers 1 to 3 alone keep 5" in text and "at once" in text and "nats per prompt" in text
    rows = SECTION.rows(planted)
    assert [row[0] for row in rows] == [str(layer) for layer in range(1, 9)]
    assert all(len(row) == len(SECTION.columns) for row in rows)
    assert rows[2][1].startswith(("39 %", "40 %", "41 %", "38 %", "42 %")) and "nan" not in f"{rows}"


@pytest.mark.parametrize(("layers", "cuts"), [(32, 8), (8, 3)])
def test_few_depths_are_drawn_at_their_layers(layers, cuts, tmp_path):
    inputs = inputs_with(layers=layers, cuts=cuts)
    figure_elements.save(draw(inputs), tmp_path, "profile")
    assert len(SECTION.rows(inputs)) == layers and "unknown" in SECTION.rows(inputs)[0][2]


def test_shares_of_likelihood_say_so():
    inputs = inputs_with(information=False)
    assert "Shares are of the answers' likelihood" in " ".join(SECTION.sentences(inputs))
    assert "likelihood" in draw(inputs).axes[0].get_ylabel()


def test_without_a_competent_task_all_are_shown_and_the_page_says_so():
    inputs = inputs_with(incompetent=tuple(f"t{task:02}" for task in range(16)))
    assert not inputs.analysis["profile"]["measured"]
    assert SECTION.sentences(inputs)[0].startswith("No competent task gains anything: shown are all tasks")
    assert len(SECTION.rows(inputs)) == 8 and len(draw(inputs).axes[0].lines) > 2


def test_without_any_gain_each_panel_says_so():
    inputs = inputs_with(share=np.nan)
    assert "Nothing can be said" in SECTION.sentences(inputs)[0] and SECTION.rows(inputs) == []
    for axes in draw(inputs).axes:
        assert "no task of the mixture" in axes.texts[0].get_text()
