"""Sections on layers against layers, weights and the mean of the specialists: numbers, figures, and absent data."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mossa_jax.report.analyses import layer_matrix as layer_matrix_section
from mossa_jax.report.analyses import merged as merged_section
from mossa_jax.report.analyses import sections_of
from mossa_jax.report.analyses import weights as weights_section
from mossa_jax.report.drawing import figure_elements
from tests.support.planted_report import report_inputs, report_scores, report_table

LAYERS = ("embed", "1", "2", "3", "4", "final_norm")
DEEP = ("embed", "1", "2", "3", "4", "5", "6", "final_norm")
"""Layers of the matrix: rank correlations need five blocks."""

MODELS = ("pretrained", "tuned", "control")
INCOMPETENT = ("t05",)
SECTIONS = (layer_matrix_section.SECTION, weights_section.SECTION, merged_section.SECTION)


def words(figure):
    """Returns all text that a figure shows."""
    return " | ".join(text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text")))


def places(table):
    return table.drop_duplicates("task")[["task", "cluster", "held_out"]].to_dict("records")


def layer_tables(table):
    """The base turns at layer 3: CKA falls with the layers between two states, and by 0.3 across that turn."""
    cells, turning = [], []
    states = [(model, layer) for model in range(3) for layer in range(len(DEEP))]
    for place in places(table):
        for i, (a, k) in enumerate(states):
            for b, m in states[i:]:
                cka = 1 - 0.05 * abs(k - m) - 0.3 * ((k >= 3) != (m >= 3)) - 0.1 * abs(a - b)
                for estimator in ("debiased", "biased"):
                    cells.append(
                        {
                            **place, "model_a": MODELS[a], "model_b": MODELS[b], "layer_a": DEEP[k],
                            "layer_b": DEEP[m], "estimator": estimator, "cka": cka if k and m else np.nan, "n": 9,
                            "undefined": "" if k and m else "no variance in a",
                        }
                    )  # fmt: skip
        for block in range(1, 7):
            novelty = 0.05 + 0.3 * (block == 3) + 0.001 * (block % 2)
            row = {**place, "layer": str(block), "estimator": "debiased", "novelty": novelty, "turning": novelty}
            step = {"departure": 0.2, "departure_step": novelty / 2, "change": 0.1, "change_step": -novelty}
            turning.append(row | step)
    return {"layers": pd.DataFrame(cells), "turning": pd.DataFrame(turning)}


def weight_table(table):
    rows = []
    for place in places(table):
        for layer in LAYERS[1:-1]:
            row = {**place, "layer": layer, "target": "q_proj", "norm_tuned": 2.0, "norm_control": 1.0}
            row |= {"relative_tuned": 0.4, "relative_control": 0.2, "chance_in": 0.1, "chance_out": 0.1}
            for name, value in (("cosine", 0.3), ("overlap_in", 0.5), ("overlap_out", 0.6)):
                row |= {name: value, f"{name}_other": 0.2, f"{name}_seed": np.nan}
            rows.append(row)
    return {"weights": pd.DataFrame(rows)}


def merged_tables(table):
    cells, scores = [], []
    for place in places(table):
        for at, layer in enumerate(LAYERS):
            numbers = {"cka": 0.4, "tuned": 0.4 + 0.1 * at, "pretrained": 0.3, "cka_tuned": 0.5, "difference": 0.1 * at}
            numbers |= {"update_cosine_tuned": 0.2, "update_cosine_control": 0.3, "update_size_tuned": 0.25}
            cells.append({**place, "layer": layer, "estimator": "debiased", **numbers})
        scores.append({**place, "model": "merged", "metric": "information", "value": 0.4, "low": 0, "high": 1, "n": 9})
    return {"merged": pd.DataFrame(cells), "merged_scores": pd.DataFrame(scores)}


@pytest.fixture(scope="module")
def inputs():
    table = report_table((2, 2, 2, 1, 1, 1), 4, (1, 2), held_out=1)
    bare = report_inputs(table, report_scores(table, INCOMPETENT))
    return dataclasses.replace(bare, analyses={**layer_tables(table), **weight_table(table), **merged_tables(table)})


def draw(section, inputs, tmp_path):
    (figure,) = section.figures.values()
    with figure_elements.figure_style():
        drawn = figure(inputs)
        figure_elements.save(drawn, tmp_path, section.name)
    return drawn


def test_a_section_appears_only_where_its_tables_are(inputs):
    shown = {section.name for section in sections_of(inputs)}
    assert shown >= {"layer_matrix", "weights", "merged"}
    without = dataclasses.replace(inputs, analyses={"layers": inputs.analyses["layers"]})
    assert not {section.name for section in sections_of(without)} & {"layer_matrix", "weights", "merged"}


def test_the_layer_matrix_names_the_turn_and_fills_both_triangles(inputs, tmp_path):
    section = layer_matrix_section.SECTION
    sentences = section.sentences(inputs)
    assert "turns most at layer 3" in sentences[0] and "in 5 of 5 clusters" in sentences[0]
    assert "+1.00" in sentences[1]
    figure = draw(section, inputs, tmp_path)
    images = {axes.get_title(loc="left"): axes.images[0].get_array() for axes in figure.axes if axes.images}
    values = images["base with itself"]
    assert values[2, 4] == values[4, 2] == pytest.approx(1 - 0.1 - 0.3)
    assert values.mask[0].all() and not values.mask[1:, 1:].any()
    assert images["base and E"][2, 2] == pytest.approx(0.9)


def test_the_weights_say_own_against_other_and_chance(inputs, tmp_path):
    section = weights_section.SECTION
    shown = " ".join(section.sentences(inputs))
    assert "0.400 of the norm" in shown and "a specialist's 0.200" in shown
    assert "task's own specialist is 0.300" in shown and "+0.100 [+0.100, +0.100] over 5 clusters" in shown
    assert "random directions 0.100" in shown and "two seeds" not in shown
    assert section.rows(inputs) == [
        ("q_proj", "0.400", "0.200", "0.300", "0.200", "", "0.500", "0.100", "0.600", "0.100")
    ]
    assert len(section.rows(inputs)[0]) == len(section.columns)
    assert "random directions" in words(draw(section, inputs, tmp_path))


def test_the_mean_of_the_specialists_stands_beside_e(inputs, tmp_path):
    section = merged_section.SECTION
    shown = " ".join(section.sentences(inputs))
    assert "has CKA 0.400" in shown and "E 0.750" in shown and "+0.350" in shown
    assert "from layer 1 on" in shown and "0.25 of the size of E's" in shown
    assert "mean 0.40" in shown and "E 0.90" in shown
    figure = draw(section, inputs, tmp_path)
    points = figure.axes[2].collections
    # One point per competent task of the mixture and model.
    assert [len(each.get_offsets()) for each in points] == [7, 7, 7]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
@pytest.mark.parametrize("absent", ["all undefined", "no competent task", "one task"])
def test_absent_data_is_said_and_drawn(section, absent, inputs, tmp_path):
    analyses = {name: table.copy() for name, table in inputs.analyses.items()}
    changed = inputs
    for name, table in analyses.items():
        if absent == "all undefined":
            numbers = table.select_dtypes("float").columns
            analyses[name][numbers] = np.nan
        if absent == "one task":
            analyses[name] = table[table.task == "t00"]
    if absent == "no competent task":
        competence = inputs.analysis["competence"] | {"incompetent": sorted(set(inputs.table.task))}
        changed = dataclasses.replace(inputs, analysis=inputs.analysis | {"competence": competence})
    changed = dataclasses.replace(changed, analyses=analyses)
    assert all(isinstance(sentence, str) and "nan" not in sentence for sentence in section.sentences(changed))
    draw(section, changed, tmp_path)
    section.rows(changed)
