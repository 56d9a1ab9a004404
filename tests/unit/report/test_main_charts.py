"""The charts of the comparison: their numbers are those of tables and findings, and odd runs never stop them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mossa_jax.findings.claims import MARGIN
from mossa_jax.findings.curves import EXPERIMENTALS, HEADLINE, REPORTED_ESTIMATORS, differences, task_layer_matrix
from mossa_jax.monitoring.goodput import CAUSES
from mossa_jax.report import palette
from mossa_jax.report.catalogue import all_charts
from mossa_jax.report.charts import change, clusters, training
from mossa_jax.report.charts.estimators import estimators_chart
from mossa_jax.report.charts.grammar import (
    Bars,
    Boxes,
    Heat,
    Line,
    Points,
    Rule,
    Span,
    first_view,
    has_data,
)
from mossa_jax.report.charts.heatmap import heatmap_chart
from mossa_jax.report.charts.levels import held_out_chart, layers_chart
from mossa_jax.report.charts.parts import cells_of
from mossa_jax.report.charts.scores import scores_chart
from mossa_jax.report.charts.specificity import specificity_chart
from mossa_jax.report.charts.times import time_chart
from mossa_jax.report.numbers import fixed
from tests.support.planted_report import report_change, report_inputs, report_scores, report_table

INCOMPETENT = ("t03", "t11")


@pytest.fixture(scope="module")
def inputs():
    """Eleven clusters of two tasks and two of six, of which one task of each of two is left out."""
    table = report_table((2,) * 11 + (6, 6), held_out=2)
    return report_inputs(table, report_scores(table, INCOMPETENT), report_change(table))


def marks_of(chart, kind, name=None, panel=0, **choices):
    marks = first_view(chart, **choices).panels[panel].marks
    return [mark for mark in marks if isinstance(mark, kind) and (name is None or mark.name == name)]


def sound_rows(inputs, held_out=False):
    table = inputs.table[~inputs.table["task"].isin(inputs.analysis["competence"]["incompetent"])]
    return table, differences(table, HEADLINE, held_out=held_out)


def test_mean_change_and_its_band_are_t_intervals_over_clusters(inputs):
    chart = change.change_chart(inputs)
    (line,) = marks_of(chart, Line, change.MEAN_NAME)
    table, values = sound_rows(inputs)
    cluster = table.drop_duplicates("task").set_index("task")["cluster"]
    units = values.groupby(cluster.reindex(values.index).to_numpy()).mean()
    for index, layer in enumerate(values.columns):
        column = units[layer].dropna()
        if column.empty:
            assert np.isnan(line.y[index])
            continue
        low, high = stats.t.interval(0.95, len(column) - 1, column.mean(), stats.sem(column))
        np.testing.assert_allclose((line.y[index], line.low[index], line.high[index]), (column.mean(), low, high))
        assert fixed(column.mean(), signed=True) in line.hover[index]
        assert f"{fixed(low, signed=True)} to {fixed(high, signed=True)}" in line.hover[index]
        assert f"{len(column)} clusters" in line.hover[index]


@pytest.mark.parametrize("estimator", REPORTED_ESTIMATORS)
def test_ramp_and_bars_are_those_of_the_fit(inputs, estimator):
    chart = change.change_chart(inputs)
    sections = inputs.analysis["robustness"][estimator]["sections"]
    assert sections["is_transition"]
    fit, layers = sections["fit"], cells_of(inputs).layers
    (ramp,) = marks_of(chart, Line, change.RAMP_NAME, estimator=estimator)
    assert [layers[at] for at in ramp.x] == ["1", str(fit["start"]["layer"] - 1), str(fit["end"]["layer"]), "8"]
    assert list(ramp.y) == [fit[end]["level"] for end in ("before", "before", "after", "after")]
    for key, name in change.BREAK_NAMES.items():
        (bar,) = marks_of(chart, Points, name, estimator=estimator)
        assert layers[bar.x[0]] == str(fit[key]["layer"])
        assert [bar.x_low[0], bar.x_high[0]] == [layers.index(str(end)) for end in fit[key]["interval"]]
        # Below all that is drawn.
        (line,) = marks_of(chart, Line, change.MEAN_NAME, estimator=estimator)
        assert bar.y[0] < np.nanmin(line.low)


def test_the_paper_s_transition_stands_at_the_same_share_of_the_depth(inputs):
    (bar,) = marks_of(change.change_chart(inputs), Points, change.PAPER_NAME)
    first_block = cells_of(inputs).layers.index("1")
    # Layers 10 to 15 of 32 are those between 9/32 and 15/32 of the depth; 8 layers here, each half a layer wide.
    assert bar.x_low[0] - first_block + 0.5 == pytest.approx(8 * 9 / 32)
    assert bar.x_high[0] - first_block + 0.5 == pytest.approx(8 * 15 / 32)


def test_margin_and_upper_half_are_marked(inputs):
    chart = change.change_chart(inputs)
    assert [(span.low, span.high) for span in marks_of(chart, Span) if span.axis == "y"] == [(-MARGIN, MARGIN)]
    (rule,) = marks_of(chart, Rule)
    assert cells_of(inputs).layers[int(rule.at + 0.5)] == inputs.analysis["half"]["layers"][0]


def test_room_is_the_ceiling_minus_the_base_of_the_same_tasks(inputs):
    (line,) = marks_of(change.change_chart(inputs), Line, change.ROOM_NAME)
    ceiling = inputs.analysis["ceiling"]
    base = task_layer_matrix(inputs.table, "pretrained").loc[ceiling["tasks"]].mean()
    by_layer = pd.Series(ceiling["by_layer"], ceiling["layers"], dtype=float)
    expected = (by_layer - base).reindex(cells_of(inputs).layers)
    np.testing.assert_allclose(line.y, expected)
    # The page says the same level of the base as a share of the ceiling.
    shares = 1 - expected[ceiling["layers"]] / by_layer
    np.testing.assert_allclose(shares, np.array(ceiling["pretrained_share"], float))


def test_every_task_can_be_followed_by_both_estimators(inputs):
    chart = change.change_chart(inputs)
    for estimator in REPORTED_ESTIMATORS:
        lines = {line.on_request: line for line in marks_of(chart, Line, estimator=estimator) if line.on_request}
        assert set(lines) == set(inputs.table["task"])
        every = differences(inputs.table, estimator, held_out=None)
        for task, line in lines.items():
            np.testing.assert_allclose(line.y, every.loc[task].reindex(cells_of(inputs).layers))
        assert {task for task, line in lines.items() if line.faint} == set(INCOMPETENT)


def test_boxes_have_the_quartiles_of_numpy(inputs):
    chart = layers_chart(inputs)
    table, _ = sound_rows(inputs)
    for model in EXPERIMENTALS:
        matrix = task_layer_matrix(table, model)
        (mark,) = marks_of(chart, Boxes, palette.MODEL_NAMES[model])
        for box in mark.boxes:
            values = matrix.iloc[:, int(box.at)].dropna()
            np.testing.assert_allclose(box.quartiles, np.quantile(values, (0.25, 0.5, 0.75)))
            assert sorted(box.values) == pytest.approx(sorted(values))
            assert all(fixed(value) in text for value, text in zip(box.values, box.hover, strict=True))


def test_a_negative_debiased_value_is_inside_the_axis(inputs):
    table = inputs.table.copy()
    is_low = (table["task"] == "t00") & (table["layer"] == "4") & (table["estimator"] == HEADLINE)
    table.loc[is_low & (table["experimental"] == "pretrained"), "cka"] = -0.03
    chart = layers_chart(dataclasses.replace(inputs, table=table))
    assert first_view(chart, estimator=HEADLINE).panels[0].y.low == pytest.approx(-0.05)
    assert first_view(chart, estimator="biased").panels[0].y.low == 0.0


def test_held_out_tasks_are_lines_below_five_and_show_their_change(inputs):
    few = report_inputs(report_table((2,) * 8, held_out=2))
    chart = held_out_chart(few)
    assert not marks_of(chart, Boxes)
    assert {line.role for line in marks_of(chart, Line) if not line.on_request} >= set(EXPERIMENTALS)
    many = held_out_chart(inputs)
    (boxes,) = marks_of(many, Boxes, show="change")
    _, values = sound_rows(inputs, held_out=True)
    rows = {row["layer"]: row["difference"] for row in inputs.analysis["unseen"]["by_layer"]}
    for box in boxes.boxes:
        layer = values.columns[int(box.at)]
        np.testing.assert_allclose(np.sort(box.values), np.sort(values[layer].dropna()))
        if layer in rows:
            assert np.mean(box.values) == pytest.approx(rows[layer])


def test_clusters_stand_in_the_order_of_the_findings_with_left_out_tasks_in_grey(inputs):
    chart = clusters.clusters_chart(inputs)
    panels = chart.views[0].panels
    ranking = [row["cluster"] for row in inputs.analysis["clusters"]["ranking"]]
    assert [panel.title for panel in panels] == ranking
    for panel in panels:
        row = inputs.analysis["clusters"]["ranking"][ranking.index(panel.title)]
        lines = [mark for mark in panel.marks if isinstance(mark, Line) and mark.role in EXPERIMENTALS]
        boxes = [mark for mark in panel.marks if isinstance(mark, Boxes)]
        assert bool(boxes) == (len(row["tasks"]) >= 5)
        assert len([line for line in lines if not line.faint]) == (0 if boxes else 2 * len(row["tasks"]))
        names = {line.hover[0].split("\n")[0] for line in lines if line.faint}
        assert names <= set(INCOMPETENT)
        assert ("left out" in panel.note) == bool(names)
    assert sum("left out" in panel.note for panel in panels) == len(INCOMPETENT)
    # One label per row and per column of panels.
    columns = chart.views[0].columns
    assert all(bool(panel.y.label) == (place % columns == 0) for place, panel in enumerate(panels))
    assert sum(bool(panel.x.label) for panel in panels) == columns


def test_a_cluster_of_one_task_tells_base_from_e_by_colour_and_shape():
    chart = clusters.clusters_chart(report_inputs(report_table((1,) * 8, held_out=0)))
    for panel in chart.views[0].panels:
        lines = [mark for mark in panel.marks if isinstance(mark, Line) and mark.role in EXPERIMENTALS]
        assert {(line.role, line.name) for line in lines} == set(palette.MODEL_NAMES.items())
        assert len({line.symbol for line in lines}) == 2


@pytest.mark.parametrize("estimator", REPORTED_ESTIMATORS)
def test_slopes_are_the_means_of_the_ranking(inputs, estimator):
    chart = clusters.cluster_slopes_chart(inputs)
    ranking = inputs.analysis["clusters"]["ranking"]
    panel = first_view(chart, estimator=estimator).panels[0]
    assert list(panel.y.names) == [row["cluster"] for row in ranking]
    higher = 0.02 if estimator == "biased" else 0.0
    for model in EXPERIMENTALS:
        (points,) = marks_of(chart, Points, palette.MODEL_NAMES[model], estimator=estimator)
        np.testing.assert_allclose(points.x, [row[model]["mean"] + higher for row in ranking])
        for low, row in zip(points.x_low, ranking, strict=True):
            expected = row[model]["low"]
            assert np.isnan(low) if expected is None else low == pytest.approx(expected + higher)


def test_heat_map_first_shows_the_change_and_hatches_by_false_discovery_rate(inputs):
    chart = heatmap_chart(inputs)
    heat = chart.views[0].panels[0].marks[0]
    assert chart.views[0].choices == {"show": "change", "estimator": HEADLINE}
    names = chart.views[0].panels[0].y.names
    tasks = [name.split(" (")[0] for name in names]
    layers = cells_of(inputs).layers
    expected = differences(inputs.table, HEADLINE, held_out=None).reindex(index=tasks, columns=layers)
    np.testing.assert_allclose(heat.values, expected)
    tested = inputs.change[inputs.change["estimator"] == HEADLINE].set_index(["task", "layer"])["q"]
    for row, task in enumerate(tasks):
        for column, layer in enumerate(layers):
            q = tested.get((task, layer), np.nan)
            assert heat.hatched[row, column] == (q > 0.05)
            text = heat.cells[row][column]
            if np.isnan(heat.values[row, column]):
                assert "undefined, no variance" in text
            else:
                assert fixed(heat.values[row, column], signed=True) in text
                assert "n = 500" in text
                assert "95 %" in text
                assert f"q {'0.400' if q > 0.05 else '0.004'}" in text
    assert {tasks[row] for row in heat.faint_rows} == set(INCOMPETENT)
    # Labels leave clusters to the groups.
    assert all(group not in name for group, name in zip(heat.groups, names, strict=True))
    for model in EXPERIMENTALS:
        shown = first_view(chart, show=model, estimator="biased").panels[0].marks[0]
        assert shown.hatched is None
        matrix = task_layer_matrix(inputs.table, model, "biased", held_out=None).reindex(index=tasks, columns=layers)
        np.testing.assert_allclose(shown.values, matrix)


def test_specificity_is_that_of_the_findings_and_the_base_has_its_own(inputs):
    chart = specificity_chart(inputs)
    for kind, name in palette.FOREIGN_NAMES.items():
        rows = inputs.analysis["specificity"][kind]["by_layer"]
        (line,) = marks_of(chart, Line, name)
        for key, values in (("mean", line.y), ("low", line.low), ("high", line.high)):
            np.testing.assert_allclose(values, np.array([row[key] for row in rows], float))
    half = inputs.analysis["half"]["layers"]
    (base,) = marks_of(chart, Line, palette.FOREIGN_NAMES["other"], model="pretrained")
    data = chart.data[(chart.data["model"] == "pretrained") & (chart.data["against"] == "other")]
    data = data[(data["estimator"] == HEADLINE) & data["layer"].isin(half)]
    expected = inputs.analysis["specificity"]["other"]["pretrained"]["mean"]
    assert data["value"].mean() == pytest.approx(expected, abs=1e-6)
    assert set(data["value"]) <= set(base.y)


def test_estimators_have_a_point_per_cell_and_the_colour_of_the_model(inputs):
    chart = estimators_chart(inputs)
    for panel, model in zip(chart.views[0].panels, EXPERIMENTALS, strict=True):
        (points,) = [mark for mark in panel.marks if isinstance(mark, Points)]
        assert points.role == model
        np.testing.assert_allclose(points.y, np.asarray(points.x) + 0.02)
        assert len(points.x) == 34 * 9
        assert len(set(points.hover)) == len(points.hover)


def test_training_curves_are_told_apart_and_can_be_followed(inputs):
    curves = pd.DataFrame(
        [(model, step, 1.0 + 1 / step) for model in ("tuned", "t00", "t00.twin", "t00.seed1") for step in (5, 10, 15)],
        columns=["model", "step", "loss"],
    )
    chart = training.training_chart(dataclasses.replace(inputs, curves=curves))
    lines = marks_of(chart, Line)
    always = [line for line in lines if not line.on_request]
    assert always[-1].role == "tuned"
    assert always[-1].width > 2 * max(line.width for line in always[:-1])
    assert len({(line.role, line.dash) for line in always}) == 4
    assert {line.on_request for line in lines} == {"", "multi-task model (E)", "t00", "t00.twin", "t00.seed1"}
    for line in lines:
        assert list(line.x) == [5, 10, 15]
        assert line.hover[1].endswith("steps 6 to 10: loss 1.100 nats per answer token")
    assert list(chart.data["loss"][:3]) == list(lines[0].y)


def test_a_long_curve_is_averaged_over_steps_without_losing_any(inputs):
    step = np.cumsum(np.tile([1, 3], 501))[:1001]
    loss = np.random.default_rng(0).random(1001)
    curves = pd.DataFrame({"model": "tuned", "step": step, "loss": loss})
    chart = training.training_chart(dataclasses.replace(inputs, curves=curves))
    data = chart.data
    assert len(data) == training.MOST_POINTS
    assert data["records"].sum() == 1001
    assert list(data["first_step"][1:]) == list(data["step"][:-1] + 1)
    weights = np.diff(np.concatenate([[0], step]))
    total = (data["loss"] * (data["step"] - data["first_step"] + 1)).sum()
    assert total == pytest.approx((loss * weights).sum())


def test_equal_scores_do_not_hide_each_other(inputs):
    scores = inputs.scores.assign(value=0.5, low=0.4, high=0.6)
    chart = scores_chart(dataclasses.replace(inputs, scores=scores))
    assert list(chart.choices["metric"].options) == [name for name in palette.METRIC_NAMES]
    points = marks_of(chart, Points, metric="exact_match")
    places = [(x, y) for mark in points if mark.role != "majority" for x, y in zip(mark.x, mark.y, strict=True)]
    assert len(places) == 3 * 34 == len(set(places))
    for mark in points:
        if mark.role != "majority":
            np.testing.assert_allclose(
                (mark.x_low, mark.x_high), (np.full(len(mark.x), 0.4), np.full(len(mark.x), 0.6))
            )
        assert all("n = 100" in text for text in mark.hover)
    faint = {text.split("\n")[0] for mark in points if mark.faint for text in mark.hover}
    assert faint == set(INCOMPETENT)


def test_scores_stand_in_the_row_of_their_task(inputs):
    chart = scores_chart(inputs)
    names = [name.split(" (")[0] for name in chart.views[0].panels[0].y.names]
    metric = chart.views[0].choices["metric"]
    table = inputs.scores.set_index(["task", "model", "metric"])["value"]
    for role, model in (("pretrained", "base"), ("tuned", "tuned"), ("control", "control")):
        for mark in marks_of(chart, Points):
            if mark.role == role:
                tasks = [names[round(y)] for y in mark.y]
                np.testing.assert_allclose(mark.x, [table[task, model, metric] for task in tasks])


def test_time_is_stacked_by_cause_and_adds_up(inputs):
    causes = dict.fromkeys(CAUSES, 0.0)
    rows = [
        {"stage": "tuned", "attempts": 2, "wall": 300.0, "useful": 250.0, **causes, "compile": 40.0, "other": 10.0},
        {"stage": "report", "attempts": 1, "wall": 30.0, "useful": 20.0, **causes, "other": 10.0},
    ]
    chart = time_chart(dataclasses.replace(inputs, times=pd.DataFrame(rows)))
    bars = marks_of(chart, Bars)
    assert [bar.name for bar in bars] == ["useful", "compile", "other"]
    assert all(bar.level for bar in bars)
    ends = np.array(bars[-1].base) + np.array(bars[-1].x)
    np.testing.assert_allclose(ends * 60, [300, 30])
    np.testing.assert_allclose(bars[1].base, bars[0].x)
    assert "83 % of the 5:00 of this stage" in bars[0].hover[0]
    assert chart.data["seconds"].sum() == 330


def test_cells_are_read_once_per_report(inputs):
    assert cells_of(inputs) is cells_of(inputs)
    assert cells_of(dataclasses.replace(inputs)) is not cells_of(inputs)


def test_every_hover_text_names_a_value_that_the_data_has(inputs):
    """What is drawn is what the CSV holds."""
    chart = change.change_chart(inputs)
    data = chart.data
    (line,) = marks_of(chart, Line, change.MEAN_NAME)
    mean = data[(data["show"] == "mean") & (data["estimator"] == HEADLINE)]
    np.testing.assert_allclose(mean["value"], line.y)
    np.testing.assert_allclose(mean["high"], line.high)
    tasks = data[(data["show"] == "change") & (data["estimator"] == HEADLINE) & (data["layer"] == "5")]
    (boxes,) = marks_of(chart, Boxes)
    at = cells_of(inputs).layers.index("5")
    (box,) = [box for box in boxes.boxes if box.at == at]
    np.testing.assert_allclose(np.sort(tasks["value"]), np.sort(box.values))


def undefined(table):
    return table.assign(cka=np.nan, low=np.nan, high=np.nan, undefined="no variance")


ODD = {
    "one task": lambda: report_table((1,), held_out=0),
    "one cluster": lambda: report_table((6,), held_out=0),
    "one task per cluster": lambda: report_table((1,) * 9, held_out=0),
    "held out alone": lambda: report_table((2, 2), held_out=2),
    "eighty layers": lambda: report_table((2,) * 7, 80, (20, 40), held_out=1),
    "no clusters": lambda: report_table((6,), held_out=0).assign(cluster="-"),
    "everything undefined": lambda: undefined(report_table((2,) * 4, held_out=1)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ODD)
def test_odd_runs_have_charts_or_none(name):
    inputs = report_inputs(ODD[name]())
    charts = all_charts(inputs)
    names = list(charts)
    assert "scores" not in names
    assert "time" not in names
    assert ("held_out" in names) == bool(inputs.table["held_out"].any())
    for chart in charts.values():
        for view in chart.views:
            assert set(view.choices) == set(chart.choices)
            for panel in view.panels:
                assert has_data(panel) or panel.empty
        assert list(chart.data.columns)
    if name == "everything undefined":
        assert not {"clusters", "cluster_slopes", "estimators", "specificity"} & set(names)


def test_more_clusters_than_panels_are_said(inputs):
    chart = clusters.clusters_chart(report_inputs(report_table((1,) * 60, held_out=0)))
    assert len(chart.views[0].panels) == clusters.MOST_PANELS
    assert chart.caption.endswith("the first 48 of 60 clusters")


def test_an_untested_change_is_not_hatched(inputs):
    chart = heatmap_chart(dataclasses.replace(inputs, change=None))
    (heat,) = chart.views[0].panels[0].marks
    assert isinstance(heat, Heat)
    assert heat.hatched is None
    assert not any(" q " in text for row in heat.cells for text in row)


def test_nothing_trained_or_scored_has_no_chart(inputs):
    bare = dataclasses.replace(inputs, curves=inputs.curves[:0], scores=inputs.scores[:0])
    assert training.training_chart(bare) is None
    assert scores_chart(bare) is None
    assert time_chart(bare) is None
