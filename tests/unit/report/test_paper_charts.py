"""Charts and words of the paper's figures 4, 5 and 6, also where data are missing or undefined."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mossa_jax.findings.correlates import find_correlates
from mossa_jax.findings.separation import CLUSTER, ITEM, METHODS, TASK, TEMPLATE
from mossa_jax.report.analyses import correlates as correlates_section
from mossa_jax.report.analyses import dimensions as dimensions_section
from mossa_jax.report.analyses import map as map_section
from mossa_jax.report.charts.grammar import has_data
from tests.support.charts import check_chart, mark_of, marks_of, panels_of
from tests.support.planted_report import report_inputs, report_scores, report_table

LAYERS = ["embed", *(str(layer) for layer in range(1, 9)), "final_norm"]
SECTIONS = [map_section.SECTION, dimensions_section.SECTION, correlates_section.SECTION]


def spectrum_table(table):
    """Tasks of a cluster agree; E has 5 components more than the base, and specialists 3 fewer."""
    tasks = table.drop_duplicates("task")[["task", "cluster", "held_out"]]
    rows = []
    for task in tasks.itertuples():
        own = int(task.cluster[1:]) % 3
        for model, shift in (("pretrained", 0), ("tuned", 5), ("control", -3)):
            for place, layer in enumerate(LAYERS):
                components = 20 + place + own + shift * (layer != "embed")
                rows.append(
                    {
                        **{"task": task.task, "cluster": task.cluster, "held_out": task.held_out, "model": model},
                        **{"layer": layer, "components_99": float(components), "participation_ratio": components / 4},
                        **{"n": 64, "undefined": ""},
                    }
                )
    return pd.DataFrame(rows)


def map_tables(table):
    rng = np.random.default_rng(0)
    tasks = table.drop_duplicates("task")[["task", "cluster", "held_out"]].itertuples(index=False, name=None)
    points = [
        (model, layer, *task, prompt, 7 - prompt, method, *rng.normal(size=2), 0.4, 0.2)
        for task in tasks
        for model in ("pretrained", "tuned")
        for layer in ("1", "4", "8")
        for method in ("pca", "tsne")
        for prompt in range(3)
    ]
    names = "model layer task cluster held_out prompt template method x y share_x share_y".split()
    measures = [
        {
            **{"model": model, "layer": layer, "label": label, "method": method, "left_out": left_out, "units": 9},
            **{"value": 0.5 + place / 50 + (model == "tuned") / 8, "low": 0.4, "high": 0.9, "chance": 0.1, "p": 0.02},
        }
        for model in ("pretrained", "tuned")
        for place, layer in enumerate(LAYERS)
        for label, left_out in ((CLUSTER, ITEM), (CLUSTER, TASK), (TEMPLATE, ITEM))
        for method in METHODS
    ]
    return {"map": pd.DataFrame(points, columns=names), "separation": pd.DataFrame(measures)}


@pytest.fixture(scope="module")
def inputs():
    table = report_table()
    tasks = table.drop_duplicates("task")[["task"]]
    rng = np.random.default_rng(1)
    figures = {"flesch_kincaid": rng.normal(8, 3, len(tasks)), "coleman_liau": rng.normal(9, 3, len(tasks))}
    tasks = tasks.assign(**figures, training_rows=512)
    scores = report_scores(table, ("t05",))
    analyses = {
        "spectrum": spectrum_table(table),
        **map_tables(table),
        "correlates": find_correlates(table, scores, tasks),
    }
    return dataclasses.replace(report_inputs(table, scores), analyses=analyses)


def charts_of(section, inputs):
    return {chart.name: chart for chart in section.charts(inputs)}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_rows_fit_the_columns_and_charts_are_sound(section, inputs):
    rows = section.rows(inputs)
    assert [row[0] for row in rows] == [f"layer {layer}" for layer in LAYERS]
    assert all(len(row) == len(section.columns) for row in rows)
    for chart in section.charts(inputs):
        check_chart(chart)
    assert all(sentence.endswith(".") for sentence in section.sentences(inputs))


def test_dimensions_say_how_many_components_tuning_adds_in_the_upper_half(inputs):
    e, specialists, prompts = dimensions_section.SECTION.sentences(inputs)
    assert "layers 5 to 8" in e and "+5.0" in e and "9 clusters" in e
    assert "−3.0" in specialists and "64 prompts" in prompts
    (chart,) = dimensions_section.SECTION.charts(inputs)
    assert chart.file == "figure5_dimensions"
    counted = dimensions_section.counted_rows(inputs.analyses["spectrum"], inputs)
    assert not counted.held_out.any() and "t05" not in set(counted.task)
    components, ratio = chart.views[0].panels
    base = mark_of(components, "pre-trained")
    # Each cluster counts once.
    expected = counted[(counted.model == "pretrained") & (counted.layer == "4")].groupby("cluster").components_99.mean()
    assert base.y[4] == pytest.approx(expected.mean())
    half_width = stats.t.ppf(0.975, len(expected) - 1) * expected.std(ddof=1) / np.sqrt(len(expected))
    assert base.low[4] == pytest.approx(expected.mean() - half_width)
    assert base.hover[4].splitlines()[0] == "layer 4" and base.hover[4].endswith("9 clusters")
    followed = {mark.on_request for mark in ratio.marks if mark.on_request}
    assert followed == set(counted.task)


def test_maps_show_every_prompt_of_both_models_and_say_how_well_clusters_part(inputs):
    charts = charts_of(map_section.SECTION, inputs)
    assert [chart.file for chart in charts.values()] == ["figure4_map_tsne", "figure4_map_pca", "separation"]
    for name in ("map_pca", "map_tsne"):
        panels = panels_of(charts[name])
        assert list(panels) == [
            f"{model}, layer {layer}" for model in ("pre-trained", "tuned") for layer in ("1", "4", "8")
        ]
        tasks = inputs.table.task.nunique()
        assert all(sum(len(mark.x) for mark in panel.marks) == 3 * tasks for panel in panels.values())
        assert panels["pre-trained, layer 1"].note == "0.52 (chance 0.10)"
        assert panels["tuned, layer 1"].note == "0.65 (chance 0.10)"
        assert not panels["tuned, layer 1"].x.ticks
    panel = panels_of(charts["map_pca"])["tuned, layer 4"]
    assert panel.x.label == "PC 1 (40 %)"
    own = inputs.analyses["map"]
    own = own[(own.model == "tuned") & (own.layer == "4") & (own.method == "pca") & (own.cluster == "c00")]
    mark = mark_of(panel, "c00")
    np.testing.assert_allclose(mark.x, own.x, atol=1e-3)
    assert mark.hover[1].splitlines() == [own.task.iloc[1], "c00", "prompt 1, template 6"]
    held_out = set(inputs.table.cluster[inputs.table.held_out])
    assert {mark.name for mark in panel.marks if mark.hollow} == {f"{cluster} (held out)" for cluster in held_out}


def test_separation_shows_one_way_of_recognising_at_a_time_beside_chance(inputs):
    chart = charts_of(map_section.SECTION, inputs)["separation"]
    table = inputs.analyses["separation"]
    for method in METHODS:
        panel = panels_of(chart, method=method)["clusters, own task left out"]
        own = table[(table.model == "tuned") & (table.method == method) & (table.left_out == TASK)]
        np.testing.assert_allclose(mark_of(panel, "tuned").y, own.value)
        np.testing.assert_allclose(mark_of(panel, "chance, tuned").y, own.chance)


def test_maps_say_in_words_where_clusters_part_best(inputs):
    best = map_section.SECTION.sentences(inputs)[1]
    templates = map_section.SECTION.sentences(inputs)[2]
    assert "pre-trained 0.66 [0.40, 0.90], tuned 0.79 [0.40, 0.90], where chance gives 0.10" in templates
    assert best.startswith("Tuned") and "layer 8" in best and "0.79 [0.40, 0.90]" in best


def test_clusters_look_different(inputs):
    styles = map_section.cluster_styles([f"c{number}" for number in range(40)])
    assert len(set(styles.values())) == 40


def test_correlates_name_the_layers_below_the_false_discovery_rate(inputs):
    table = inputs.analyses["correlates"].copy()
    rows = (table.correlate == "flesch_kincaid") & (table.experimental == "tuned") & (table.estimator == "debiased")
    table.loc[rows, "q"] = np.where(table.loc[rows, "layer"].isin(["3", "6"]), 0.01, 0.4)
    table.loc[rows & (table.layer == "6"), ["r", "low", "high"]] = [0.98, 0.9, 0.99]
    changed = dataclasses.replace(inputs, analyses={**inputs.analyses, "correlates": table})
    sentences = correlates_section.SECTION.sentences(changed)
    assert "tuned strongest with r = +0.98 [+0.90, +0.99] in layer 6, q ≤ 0.05 in layers 3, 6" in sentences[0]
    assert sentences[2] == "Similarity and training rows: not defined, the same value for all tasks."
    assert "clusters" in sentences[3]
    (chart,) = correlates_section.SECTION.charts(changed)
    check_chart(chart)
    panels = panels_of(chart)
    similarity = panels["similarity and Flesch-Kincaid grade"]
    clear = mark_of(similarity, "tuned, q ≤ 0.05")
    assert list(clear.x) == [LAYERS.index("3"), LAYERS.index("6")] and clear.y[1] == 0.98 and not clear.hollow
    assert clear.hover[1].splitlines()[1] == "CKA, tuned: r = +0.98 [+0.90, +0.99]" and "q 0.010" in clear.hover[1]
    # The embedding is undefined.
    assert len(mark_of(similarity, "tuned, q > 0.05").x) == len(LAYERS) - 3
    rows = [panels[f"{what} and training rows"] for what in ("similarity", "change")]
    assert all(panel.empty == "Not defined: the same value for all tasks." and not panel.marks for panel in rows)
    biased = panels_of(chart, estimator="biased")["similarity and Flesch-Kincaid grade"]
    own = table[(table.correlate == "flesch_kincaid") & (table.experimental == "tuned") & (table.estimator == "biased")]
    np.testing.assert_allclose(mark_of(biased, "CKA, tuned").y, own.set_index("layer").r[LAYERS])
    assert not marks_of(biased, "tuned, q ≤ 0.05")


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_undefined_figures_leave_a_sentence_in_place_of_marks(section, inputs):
    spoilt = {}
    for name, table in inputs.analyses.items():
        floats = table.select_dtypes("float").columns
        spoilt[name] = table.assign(**dict.fromkeys(floats, np.nan))
    changed = dataclasses.replace(inputs, analyses=spoilt)
    for chart in section.charts(changed):
        check_chart(chart)
        for panel in panels_of(chart).values():
            reasons = ("No states", "fewer than two", "no task has", "Not defined")
            assert not has_data(panel) and any(reason in panel.empty for reason in reasons)
    assert all(sentence.endswith(".") for sentence in section.sentences(changed))
    assert all("–" in row or "nan" not in "".join(row) for row in section.rows(changed))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_one_layer_one_model_and_one_task_are_enough(section, inputs):
    task = inputs.table.task.iloc[0]
    few = {}
    for name, table in inputs.analyses.items():
        table = table[table.layer == "4"]
        table = table[table.task == task] if "task" in table else table
        few[name] = table[table.model == "tuned"] if "model" in table else table
    changed = dataclasses.replace(inputs, analyses=few)
    charts = section.charts(changed)
    assert charts
    for chart in charts:
        check_chart(chart)
    assert section.sentences(changed) and section.rows(changed) is not None
