"""The sections of the paper's figures 4, 5 and 6: what they say, and that missing or undefined data never stop them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mossa_jax.findings.correlates import find_correlates
from mossa_jax.findings.separation import CLUSTER, ITEM, METHODS, TASK, TEMPLATE
from mossa_jax.report.analyses import correlates as correlates_section
from mossa_jax.report.analyses import map as map_section
from mossa_jax.report.analyses import spectrum as spectrum_section
from mossa_jax.report.drawing.figure_elements import figure_style
from tests.support.planted_report import report_inputs, report_scores, report_table

LAYERS = ["embed", *(str(layer) for layer in range(1, 9)), "final_norm"]
SECTIONS = [map_section.SECTION, spectrum_section.SECTION, correlates_section.SECTION]


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
        (model, layer, *task, prompt, method, *rng.normal(size=2), 0.4, 0.2)
        for task in tasks
        for model in ("pretrained", "tuned")
        for layer in ("1", "4", "8")
        for method in ("pca", "tsne")
        for prompt in range(3)
    ]
    names = "model layer task cluster held_out prompt method x y share_x share_y".split()
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


def draw(section, inputs):
    with figure_style():
        figures = {name: draw(inputs) for name, draw in section.figures.items()}
        for figure in figures.values():
            figure.draw_without_rendering()
    return figures


def words(figure):
    return [text.get_text() for axes in figure.axes for text in (axes.title, axes._right_title, *axes.texts)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_rows_fit_the_columns_and_each_figure_has_a_caption(section, inputs):
    rows = section.rows(inputs)
    assert [row[0] for row in rows] == [f"layer {layer}" for layer in LAYERS]
    assert all(len(row) == len(section.columns) for row in rows)
    assert set(section.figures) == set(section.captions) and all(section.captions.values())
    assert all(sentence.endswith(".") for sentence in section.sentences(inputs))


def test_spectrum_says_how_many_components_tuning_adds_in_the_upper_half(inputs):
    e, specialists, prompts = spectrum_section.SECTION.sentences(inputs)
    assert "layers 5 to 8" in e and "+5.0" in e and "9 clusters" in e
    assert "-3.0" in specialists and "64 prompts" in prompts
    (figure,) = draw(spectrum_section.SECTION, inputs).values()
    counted = spectrum_section.counted(inputs.analyses["spectrum"], inputs)
    assert not counted.held_out.any() and "t05" not in set(counted.task)
    base = next(line for line in figure.axes[0].lines if line.get_label() == "pre-trained")
    # Each cluster counts once.
    expected = counted[(counted.model == "pretrained") & (counted.layer == "4")].groupby("cluster").components_99.mean()
    assert base.get_ydata()[4] == pytest.approx(expected.mean())


def test_maps_draw_every_prompt_of_both_models_and_say_how_well_clusters_part(inputs):
    figures = draw(map_section.SECTION, inputs)
    assert set(figures) == {"map_pca", "map_tsne", "separation"}
    for name in ("map_pca", "map_tsne"):
        axes = figures[name].axes
        assert [panel.get_title(loc="left") for panel in axes] == 2 * ["layer 1", "layer 4", "layer 8"]
        tasks = inputs.table.task.nunique()
        assert all(sum(len(points.get_offsets()) for points in panel.collections) == 3 * tasks for panel in axes)
        assert axes[0].get_title(loc="right") == "cluster 0.52 (chance 0.10)"
        assert axes[3].get_title(loc="right") == "cluster 0.65 (chance 0.10)"
    assert figures["map_pca"].axes[0].get_xlabel() == "PC 1 (40 %)"
    names = [text.get_text() for text in figures["map_tsne"].legends[0].get_texts()]
    assert names[:-1] == sorted(inputs.table.cluster.unique()) and names[-1] == "held-out task"
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
    assert "tuned strongest with r = +0.98 [+0.90, +0.99] in layer 6, q <= 0.05 in layers 3, 6" in sentences[0]
    assert sentences[2] == "Similarity and training rows: not defined, the same value for all tasks."
    assert "clusters" in sentences[3]
    (figure,) = draw(correlates_section.SECTION, changed).values()
    assert sum("the same value for all tasks" in text for text in words(figure)) == 2


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_undefined_figures_leave_a_sentence_in_place_of_a_chart(section, inputs):
    spoilt = {}
    for name, table in inputs.analyses.items():
        floats = table.select_dtypes("float").columns
        spoilt[name] = table.assign(**dict.fromkeys(floats, np.nan))
    changed = dataclasses.replace(inputs, analyses=spoilt)
    for figure in draw(section, changed).values():
        texts = " ".join(words(figure))
        assert any(reason in texts for reason in ("no states", "fewer than two", "no task with", "not defined"))
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
    assert draw(section, changed)
    assert section.sentences(changed) and section.rows(changed) is not None
