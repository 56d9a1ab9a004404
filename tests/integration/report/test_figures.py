"""Static figures: all are written, equal input gives equal files, and absent data is stated instead of a crash."""

import numpy as np
import pytest
from PIL import Image

from mossa_jax.findings import find
from mossa_jax.report import figure_elements, figures, write_figures
from tests.support.planted import NO_CURVES, NO_SCORES, planted_scores, planted_table, report_inputs


def words(figure):
    """Returns all text that a figure shows."""
    return " | ".join(text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text")))


@pytest.fixture(scope="module")
def inputs():
    table = planted_table(tasks=8, layers=4, breaks=(1, 2))
    scores = planted_scores(table)
    return report_inputs(table, find(table, scores, draws=100), scores)


def test_every_figure_is_written_and_reproducible(inputs, tmp_path):
    names = write_figures(inputs, tmp_path / "a")
    assert names == ["layers", "clusters", "held_out", "heatmap", "estimators", "training", "scores"]
    files = {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    assert {path.name for path in (tmp_path / "a").iterdir()} == files
    (tmp_path / "b").mkdir()
    with figure_elements.figure_style():
        layers = figures.draw_layers(inputs.table.iloc[::-1], inputs.analysis)
        scores = figures.draw_scores(inputs.scores.iloc[::-1])
        figure_elements.save(layers, tmp_path / "b", "layers")
        figure_elements.save(scores, tmp_path / "b", "scores")
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name
    for name in names:
        with Image.open(tmp_path / "a" / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5, f"{name} is blank"


def test_the_layers_figure_draws_a_box_per_model_and_layer(inputs):
    table = inputs.table
    figure = figures.draw_layers(table, inputs.analysis)
    axes = figure.axes[0]
    # Four blocks and the final norm are defined, the embedding is not: five boxes per model.
    assert len([patch for patch in axes.patches if patch.get_zorder() != 0]) == 10
    assert "transition" in words(figure) and "6 tasks" in words(figure)
    median = table[
        (table.experimental == "tuned") & (table.estimator == "debiased") & ~table.held_out & (table.layer == "3")
    ].cka.median()
    drawn = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert np.isclose(drawn, median).any()


def test_absent_held_out_tasks_are_stated():
    table = planted_table(tasks=6, held_out=0)
    figure = figures.draw_held_out(table, find(table, NO_SCORES, draws=20))
    assert "No task was held out" in words(figure)


def test_absent_scores_and_curves_are_stated():
    assert "not measured" in words(figures.draw_scores(NO_SCORES))
    assert "No training curve" in words(figures.draw_training(NO_CURVES))


def test_a_table_with_nothing_defined_is_drawn(tmp_path):
    table = planted_table(tasks=3, layers=4, held_out=0).assign(cka=np.nan, undefined="not finite")
    analysis = find(table, NO_SCORES, draws=20)
    names = write_figures(report_inputs(table, analysis, NO_SCORES, curves=NO_CURVES), tmp_path)
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in names)


def test_a_name_is_never_mathematics(tmp_path):
    table = planted_table(tasks=2, layers=4, held_out=0, names=[r"$\frac{1}$", "cost_$5$"])
    with figure_elements.figure_style():
        figure = figures.draw_heatmap(table)
        figure_elements.save(figure, tmp_path, "heatmap")
    assert r"$\frac{1}$" in words(figure)


@pytest.mark.slow
def test_sixty_tasks_and_eighty_layers(tmp_path):
    table = planted_table(tasks=60, layers=80, held_out=7, breaks=(20, 40))
    scores = planted_scores(table)
    assert len(write_figures(report_inputs(table, find(table, scores, draws=50), scores), tmp_path)) == 7
