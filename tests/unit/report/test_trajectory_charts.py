"""The page's words, figures and table on when layers settle, from planted paths."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mossa_jax.findings.trajectory import find_convergence, find_settling, loss_trend
from mossa_jax.report.analyses.trajectory import SECTION
from mossa_jax.report.drawing import figure_elements as elements

LAYERS = ("embed", "1", "2", "3", "final_norm")
SHARES = (0.0, 0.125, 0.25, 0.5)
CLUSTERS = 6
# The snapshot from which a layer of a specialist is at its end: upper layers later.
FROM = {"embed": 0, "1": 1, "2": 2, "3": 3, "final_norm": 4}


def inputs(ceiling=0.8, competent=True, layers=LAYERS, convergence=True):
    """Six tasks of six clusters, each with a specialist, and E on its prompts, all of whose layers move to the end."""
    rows = []
    for number in range(CLUSTERS):
        for model in ("tuned", "control"):
            for layer in layers:
                start = FROM[layer] if model == "control" else 4
                for at, share in enumerate(SHARES):
                    value = 0.9 if at >= start else 0.1 + 0.1 * at + 0.01 * number
                    rows.append(
                        {"task": f"task{number}", "cluster": f"cluster{number}", "held_out": False, "model": model,
                         "step": int(80 * share), "share_of_steps": share, "share_of_rate": 1.6 * share, "layer": layer,
                         "cka": value, "low": value - 0.05, "high": value + 0.05, "n": 64, "undefined": "",
                         "ceiling": ceiling if model == "control" else np.nan}
                    )  # fmt: skip
    trajectory = pd.DataFrame(rows)
    settling = find_settling(trajectory)
    flat = loss_trend(range(10, 90, 5), [1.0] * 16, 80)
    models = [("tuned", "tuned"), *((f"task{number}", "control") for number in range(CLUSTERS))]
    losses = pd.DataFrame(
        [
            {"task": task, "cluster": "", "held_out": False, "model": model, "steps": 80, **flat}
            for task, model in models
        ]
    )
    tasks = [{"task": f"task{number}", "competent": competent, "reason": ""} for number in range(CLUSTERS)]
    analyses = {"trajectory": trajectory, "settling": settling}
    analyses["convergence"] = find_convergence(settling, trajectory, losses) if convergence else losses.iloc[:0]
    return SimpleNamespace(analyses=analyses, analysis={"competence": {"tasks": tasks}}, table=trajectory)


def test_sentences_say_the_order_that_was_planted_and_who_has_not_converged():
    first, second, *rest = SECTION.sentences(inputs())
    assert first.startswith("Multi-task (E) (prompts of 6 tasks): layer 1 settles first, after 100%")
    assert "Too few tasks to say" in first  # all layers at once have no order
    assert second.startswith("Specialists (6 tasks): layer 1 settles first, after 12% [12%, 12%] of the steps")
    assert "layer 3 last, after 50% [50%, 50%]. Lower layers settle first (rank correlation with depth +1.00" in second
    text = " ".join(rest)
    assert "All 6 specialists have converged" in text
    assert "E has not converged: 100% of its layers still move after 50% of the steps." in text
    assert "the mark is 0.95 (multi-task (E))" in text and "at 50% of the steps 20% of its sum is still to come" in text


def test_specialists_that_use_no_prompts_are_shown_where_there_are_no_others_and_the_page_says_so():
    sentences = SECTION.sentences(inputs(competent=False))
    assert sentences[0].startswith("None of the specialists followed here uses its prompts")
    assert any(sentence.startswith("Specialists (6 tasks)") for sentence in sentences)
    assert not SECTION.sentences(inputs())[0].startswith("None")


def test_the_table_has_a_row_per_layer():
    rows = SECTION.rows(inputs())
    assert [row[0] for row in rows] == ["emb", "1", "2", "3", "norm"] and all(len(row) == 3 for row in rows)
    assert rows[1] == ("1", "100% [100%, 100%]", "12% [12%, 12%]")


@pytest.mark.parametrize("ceiling", [0.8, np.nan])
@pytest.mark.parametrize("name", list(SECTION.figures))
def test_figures_are_drawn_with_and_without_a_ceiling(name, ceiling):
    with elements.figure_style():
        figure = SECTION.figures[name](inputs(ceiling))
        figure.draw_without_rendering()
    assert [axes.get_title(loc="left") for axes in figure.axes][:2] != ["", ""] and SECTION.captions[name]


def test_lines_go_through_the_means_over_clusters():
    with elements.figure_style():
        figure = SECTION.figures["trajectory"](inputs())
    lines = [line.get_ydata() for line in figure.axes[1].lines if len(line.get_ydata()) == len(SHARES) + 1]
    assert len(lines) == 3
    np.testing.assert_allclose(lines[2], [0.125, 0.225, 0.325, 0.9, 1.0])


@pytest.mark.parametrize("name", list(SECTION.figures))
def test_undefined_cells_leave_a_panel_that_says_so_or_a_gap(name):
    given = inputs()
    for table, column in (("trajectory", "cka"), ("settling", "settled")):
        own = given.analyses[table]
        own.loc[own["model"] == "control", column] = np.nan
    given.analyses["trajectory"] = given.analyses["trajectory"][lambda table: table["model"] == "tuned"]
    with elements.figure_style():
        figure = SECTION.figures[name](given)
        figure.draw_without_rendering()
    assert any("no snapshots" in text.get_text() for text in figure.axes[1].texts)
    assert SECTION.sentences(given)
