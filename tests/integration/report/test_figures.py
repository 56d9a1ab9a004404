"""Static figures: all are written, equal input gives equal files, and absent data is stated instead of a crash."""

import numpy as np
import pytest
from PIL import Image

from mossa_jax.report import write_figures
from mossa_jax.report.drawing import figure_elements, figures
from tests.support.planted_report import NO_CURVES, NO_SCORES, report_change, report_inputs, report_scores, report_table

INCOMPETENT = ("t05",)


def words(figure):
    """Returns all text that a figure shows."""
    return " | ".join(text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text")))


@pytest.fixture(scope="module")
def inputs():
    table = report_table((2, 2, 2, 1), 4, (1, 2), held_out=1)
    return report_inputs(table, report_scores(table, INCOMPETENT), report_change(table))


def test_every_figure_is_written_and_reproducible(inputs, tmp_path):
    names = write_figures(inputs, tmp_path / "a")
    assert names == ["layers", "clusters", "held_out", "heatmap", "specificity", "estimators", "training", "scores"]
    files = {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    assert {path.name for path in (tmp_path / "a").iterdir()} == files
    (tmp_path / "b").mkdir()
    with figure_elements.figure_style():
        layers = figures.draw_layers(inputs.table.iloc[::-1], inputs.analysis)
        scores = figures.draw_scores(inputs.scores.iloc[::-1], inputs.analysis)
        figure_elements.save(layers, tmp_path / "b", "layers")
        figure_elements.save(scores, tmp_path / "b", "scores")
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name
    for name in names:
        with Image.open(tmp_path / "a" / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5, f"{name} is blank"


def test_the_layers_figure_draws_a_box_per_model_and_layer_over_competent_tasks(inputs):
    table = inputs.table
    figure = figures.draw_layers(table, inputs.analysis)
    axes = figure.axes[0]
    # Four blocks and the final norm are defined, the embedding is not: five boxes per model.
    assert len([patch for patch in axes.patches if patch.get_zorder() != 0]) == 10
    assert "5 tasks" in words(figure)
    own = table[(table.control == table.task) & (table.experimental == "tuned") & (table.estimator == "debiased")]
    own = own[~own.held_out & (own.layer == "3")]
    drawn = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert np.isclose(drawn, own[~own.task.isin(INCOMPETENT)].cka.median()).any()
    assert not np.isclose(drawn, own.cka.median()).any()


@pytest.mark.parametrize("is_transition", [True, False])
def test_bands_are_drawn_for_a_transition_alone(inputs, is_transition):
    spans = {"shared": [1, 1], "transition": [2, 2], "refinement": [3, 4]}
    sections = inputs.analysis["sections"] | spans | {"is_transition": is_transition}
    shown = words(figures.draw_layers(inputs.table, inputs.analysis | {"sections": sections}))
    assert ("transition" in shown) == ("refinement" in shown) == is_transition


def test_the_ceiling_stands_in_layers_and_clusters(inputs):
    for draw in (figures.draw_layers, figures.draw_clusters):
        for axes in draw(inputs.table, inputs.analysis).axes:
            lines = [line for line in axes.lines if line.get_label() == figure_elements.CEILING_LABEL]
            if not axes.has_data():
                continue
            assert len(lines) == 1, axes.get_title()
            values = lines[0].get_ydata()
            assert np.isnan(values[[0, -1]]).all() and np.allclose(values[1:-1], 0.93)
    without = inputs.table[inputs.table.experimental != "control"]
    bare = report_inputs(without, inputs.scores)
    assert "ceiling" not in words(figures.draw_layers(without, bare.analysis))


def test_the_heat_map_greys_incompetent_tasks_and_marks_insignificant_changes(inputs):
    figure = figures.draw_heatmap(inputs.table, inputs.analysis, inputs.change)
    labels = {label.get_text(): label.get_color() for label in figure.axes[0].get_yticklabels()}
    grey = [text for text in labels if text.endswith("(left out)")]
    assert grey == ["c02 · t05 (left out)"] and labels[grey[0]] != labels["c02 · t04"]
    change = inputs.change[inputs.change.estimator == "debiased"]
    dots = figure.axes[2].collections[-1].get_offsets()
    assert 0 < len(dots) == (change.q > 0.05).sum() and "q > 0.05" in words(figure)
    plain = figures.draw_heatmap(inputs.table, report_inputs(inputs.table).analysis)
    assert "left out" not in words(plain) and "q >" not in words(plain)


def test_specificity_shows_twins_and_others_or_says_that_there_are_none(inputs):
    shown = words(figures.draw_specificity(inputs.analysis))
    assert "own minus twin" in shown and "own minus specialists of other clusters" in shown
    table = inputs.table[(inputs.table.control == inputs.table.task)]
    assert "No other control" in words(figures.draw_specificity(report_inputs(table).analysis))


def test_scores_have_a_panel_for_information_and_one_for_exact_match(inputs):
    figure = figures.draw_scores(inputs.scores, inputs.analysis)
    assert [axes.get_xlabel() for axes in figure.axes] == ["information (nats per prompt)", "exact match"]
    assert "most frequent answer" in words(figure) and "t05 (left out)" in words(figure)
    matches = inputs.scores[inputs.scores.metric == "exact_match"]
    alone = figures.draw_scores(matches, report_inputs(inputs.table, matches).analysis)
    assert [axes.get_xlabel() for axes in alone.axes] == ["exact match"]


def test_absent_held_out_tasks_are_stated():
    table = report_table((1,) * 4, 4, None, held_out=0)
    assert "No task was held out" in words(figures.draw_held_out(table, report_inputs(table).analysis))


def test_absent_scores_and_curves_are_stated(inputs):
    assert "not measured" in words(figures.draw_scores(NO_SCORES, inputs.analysis))
    assert "No training curve" in words(figures.draw_training(NO_CURVES))


def test_a_table_with_nothing_defined_is_drawn(tmp_path):
    table = report_table((1,) * 3, 4, None, held_out=0).assign(cka=np.nan, undefined="not finite")
    names = write_figures(report_inputs(table, curves=NO_CURVES), tmp_path)
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in names)


def test_a_name_is_never_mathematics(tmp_path):
    table = report_table((1,) * 2, 4, None, held_out=0, names={"t00": r"$\frac{1}$", "t01": "cost_$5$"})
    with figure_elements.figure_style():
        figure = figures.draw_heatmap(table, report_inputs(table).analysis)
        figure_elements.save(figure, tmp_path, "heatmap")
    assert r"$\frac{1}$" in words(figure)


@pytest.mark.slow
def test_sixty_tasks_and_eighty_layers(tmp_path):
    table = report_table((5,) * 12, 80, (20, 40))
    assert len(write_figures(report_inputs(table, report_scores(table)), tmp_path)) == 8
