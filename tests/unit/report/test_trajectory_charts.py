"""The page's words, charts and table on when layers settle, from planted paths."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mossa_jax.findings.trajectory import find_convergence, find_settling, loss_trend
from mossa_jax.report.analyses.trajectory import SECTION
from mossa_jax.report.charts.grammar import has_data
from tests.support.charts import check_chart, mark_of, panels_of

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
    analysis = {"competence": {"tasks": tasks}, "sections": {"is_transition": False}}
    return SimpleNamespace(analyses=analyses, analysis=analysis, table=trajectory)


def charts_of(given):
    return {chart.name: chart for chart in SECTION.charts(given)}


def test_sentences_say_the_order_that_was_planted_and_who_has_not_converged():
    first, second, *rest = SECTION.sentences(inputs())
    assert first.startswith("Multi-task (E) (prompts of 6 tasks): layer 1 settles first, after 100 %")
    assert "Too few tasks to say" in first  # all layers at once have no order
    assert second.startswith("Specialists (6 tasks): layer 1 settles first, after 12 % [12 %, 12 %] of the steps")
    assert (
        "layer 3 last, after 50 % [50 %, 50 %]. Lower layers settle first (rank correlation with depth +1.00" in second
    )
    text = " ".join(rest)
    assert "All 6 specialists have converged" in text
    assert "E has not converged: 100% of its layers still move after 50% of the steps." in text
    assert (
        "the mark is 0.95 (multi-task (E))" in text and "at 50 % of the steps 20 % of its sum is still to come" in text
    )


def test_specialists_that_use_no_prompts_are_shown_where_there_are_no_others_and_the_page_says_so():
    sentences = SECTION.sentences(inputs(competent=False))
    assert sentences[0].startswith("None of the specialists followed here uses its prompts")
    assert any(sentence.startswith("Specialists (6 tasks)") for sentence in sentences)
    assert not SECTION.sentences(inputs())[0].startswith("None")


def test_the_table_has_a_row_per_layer():
    rows = SECTION.rows(inputs())
    assert [row[0] for row in rows] == ["emb", "1", "2", "3", "norm"] and all(len(row) == 3 for row in rows)
    assert rows[1] == ("1", "100 % [100 %, 100 %]", "12 % [12 %, 12 %]")


@pytest.mark.parametrize("ceiling", [0.8, np.nan])
def test_every_layer_has_its_own_ceiling_or_all_have_one_mark(ceiling):
    charts = charts_of(inputs(ceiling))
    assert list(charts) == ["trajectory", "settling", "convergence"]
    for chart in charts.values():
        check_chart(chart)
    specialists = panels_of(charts["trajectory"])["specialists"]
    if np.isfinite(ceiling):
        assert specialists.x.names[-2:] == ("end", "ceiling")
        assert [mark.y[0] for mark in specialists.marks if getattr(mark, "symbol", "") == "dash"] == pytest.approx(
            [0.8] * 3
        )
    else:
        assert specialists.x.names[-1] == "end" and specialists.marks[0].label == "mark 0.95"


def test_lines_go_through_the_means_over_clusters():
    panel = panels_of(charts_of(inputs())["trajectory"])["specialists"]
    line = next(mark for mark in panel.marks if mark.name == "layer 3")
    np.testing.assert_allclose(line.y, [0.125, 0.225, 0.325, 0.9, 1.0])
    assert line.hover[0].splitlines()[:2] == ["layer 3, untrained", "0 % of the sum of learning rates"]
    assert "6 clusters" in line.hover[1] and "0.125" in line.hover[0]
    table = charts_of(inputs())["trajectory"].data
    own = table[(table.model == "specialists") & (table.layer == "3") & (table.steps == "1/4")]
    assert own.cka.tolist() == pytest.approx([0.325])


def test_bars_count_the_tasks_that_settle_after_each_share_of_the_steps():
    given = inputs()
    panel = panels_of(charts_of(given)["settling"])["specialists"]
    names = ["no step", "1/8 of the steps", "1/4 of the steps", "1/2 of the steps", "not before the end"]
    heights = np.array([mark_of(panel, name).y for name in names])
    # One layer after the other, with all six tasks.
    np.testing.assert_array_equal(heights, 6 * np.eye(5))
    settled = given.analyses["settling"]
    assert (heights.sum(0) == settled[settled.model == "control"].groupby("layer").size()[list(LAYERS)]).all()
    assert mark_of(panel, "1/4 of the steps").hover[2] == "layer 2\n1/4 of the steps: 6 tasks"


def test_convergence_shows_moving_layers_and_the_fall_of_the_loss_of_each_model():
    given = inputs()
    given.analyses["convergence"][["loss_fall", "loss_fall_low", "loss_fall_high"]] = 0.1, 0.05, 0.15
    moving, loss = charts_of(given)["convergence"].views[0].panels
    assert moving.y.names == ("multi-task (E)", *(f"task{number}" for number in range(CLUSTERS)))
    late, done = mark_of(moving, "not converged"), mark_of(moving, "converged")
    assert (list(late.x), list(late.y)) == ([1.0], [0.0]) and list(done.x) == [0.0] * CLUSTERS
    assert "not converged: 100% of its layers still move" in late.hover[0]
    falls = mark_of(loss, "converged")
    assert list(zip(falls.x, falls.x_low, falls.x_high, strict=True)) == [(0.1, 0.05, 0.15)] * CLUSTERS
    assert "fall of the loss +0.100, 95 % +0.050 to +0.150" in falls.hover[0]
    assert "convergence" not in charts_of(inputs(convergence=False))


def test_specialists_that_are_left_out_are_grey_among_those_that_are_not():
    given = inputs()
    given.analysis["competence"]["tasks"][2]["competent"] = False
    moving, _ = charts_of(given)["convergence"].views[0].panels
    grey = mark_of(moving, "left out of the findings")
    assert grey.faint and list(grey.y) == [3.0]
    assert panels_of(charts_of(given)["settling"])["specialists"].note == "5 tasks"


def test_undefined_cells_leave_a_panel_that_says_so_or_a_gap():
    given = inputs()
    for table, column in (("trajectory", "cka"), ("settling", "settled")):
        own = given.analyses[table]
        own.loc[own["model"] == "control", column] = np.nan
    given.analyses["trajectory"] = given.analyses["trajectory"][lambda table: table["model"] == "tuned"]
    charts = charts_of(given)
    for name in ("trajectory", "settling"):
        check_chart(charts[name])
        panel = panels_of(charts[name])["specialists"]
        assert not has_data(panel) and panel.empty == "There are no snapshots of these models."
    assert SECTION.sentences(given)
