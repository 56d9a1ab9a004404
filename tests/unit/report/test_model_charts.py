"""Charts and words on layers against layers, weights and the mean of the specialists, also where data are absent."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mossa_jax.report.analyses import layer_matrix as layer_matrix_section
from mossa_jax.report.analyses import merged as merged_section
from mossa_jax.report.analyses import sections_of
from mossa_jax.report.analyses import weights as weights_section
from mossa_jax.report.charts.grammar import has_data
from tests.support.charts import check_chart, mark_of, marks_of, panels_of
from tests.support.planted_report import report_inputs, report_scores, report_table

LAYERS = ("embed", "1", "2", "3", "4", "final_norm")
DEEP = ("embed", "1", "2", "3", "4", "5", "6", "final_norm")
"""Layers of the matrix: rank correlations need five blocks."""

MODELS = ("pretrained", "tuned", "control")
INCOMPETENT = ("t05",)
SECTIONS = (layer_matrix_section.SECTION, weights_section.SECTION, merged_section.SECTION)


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


def test_a_section_appears_only_where_its_tables_are(inputs):
    shown = {section.name for section in sections_of(inputs)}
    assert shown >= {"layer_matrix", "weights", "merged"}
    without = dataclasses.replace(inputs, analyses={"layers": inputs.analyses["layers"]})
    assert not {section.name for section in sections_of(without)} & {"layer_matrix", "weights", "merged"}


def test_the_layer_matrix_names_the_turn_and_fills_both_triangles(inputs):
    section = layer_matrix_section.SECTION
    sentences = section.sentences(inputs)
    assert "turns most at layer 3" in sentences[0] and "in 5 of 5 clusters" in sentences[0]
    assert "+1.00" in sentences[1]
    matrix, _ = section.charts(inputs)
    panels = panels_of(matrix)
    heats = {title: panel.marks[0] for title, panel in panels.items()}
    values = heats["base with itself"].values
    assert values[2, 4] == values[4, 2] == pytest.approx(1 - 0.1 - 0.3)
    assert np.isnan(values[0]).all() and np.isfinite(values[1:, 1:]).all()
    assert heats["base and E"].values[2, 2] == pytest.approx(0.9)
    assert heats["base and E"].hover[2] == "base, layer 2"
    assert heats["base and E"].cells[2][2] == "E, layer 2\nCKA: 0.900\n95 % 0.900 to 0.900\n5 clusters"
    assert heats["base and E"].cells[2][0] == "E, layer embed\nundefined: no variance in base"
    assert [rule.at for rule in marks_of(panels["base and E"], "the base turns most")] == [3, 3]


def test_one_pair_of_models_can_be_shown_alone(inputs):
    matrix, _ = layer_matrix_section.SECTION.charts(inputs)
    assert [len(view.panels) for view in matrix.views] == [6, *[1] * 6]
    for models, name in list(matrix.choices["models"].options.items())[1:]:
        assert list(panels_of(matrix, models=models)) == [name]


def test_the_base_turns_where_it_was_planted_and_blocks_add_what_was_planted(inputs):
    _, turning = layer_matrix_section.SECTION.charts(inputs)
    panels = panels_of(turning)
    at = DEEP.index("3") - 1
    line = mark_of(panels["How the base turns"], "across the block")
    assert int(np.argmax(line.y)) == at and line.y[at] == pytest.approx(0.351)
    assert mark_of(panels["What a block adds to E's departure"], "added to the departure").y[at] == pytest.approx(
        0.1755
    )
    assert mark_of(panels["What a block adds to d"], "the base turns most").at == at


def test_the_weights_say_own_against_other_and_chance(inputs):
    section = weights_section.SECTION
    shown = " ".join(section.sentences(inputs))
    assert "0.400 of the norm" in shown and "a specialist's 0.200" in shown
    assert "task's own specialist is 0.300" in shown and "+0.100 [+0.100, +0.100] over 5 clusters" in shown
    assert "random directions 0.100" in shown and "two seeds" not in shown
    assert section.rows(inputs) == [
        ("q_proj", "0.400", "0.200", "0.300", "0.200", "–", "0.500", "0.100", "0.600", "0.100")
    ]
    assert len(section.rows(inputs)[0]) == len(section.columns)
    (chart,) = section.charts(inputs)
    panels = panels_of(chart)
    assert list(mark_of(panels["size of the updates"], "E").y) == pytest.approx([0.4] * 4)
    read = panels["overlap of what they read"]
    assert list(mark_of(read, "random directions").y) == pytest.approx([0.1] * 4)
    own, other = (
        mark_of(read, f"E and {name}") for name in ("the task's specialist", "a specialist of another cluster")
    )
    assert list(own.y) == pytest.approx([0.5] * 4) and list(other.y) == pytest.approx([0.2] * 4)
    assert own.hover[0] == "layer 1\nE and the task's specialist: 0.500\n95 % 0.500 to 0.500\n5 clusters"


def test_each_projection_can_be_shown_alone(inputs):
    table = inputs.analyses["weights"]
    both = pd.concat([table, table.assign(target="v_proj", cosine=0.7)], ignore_index=True)
    (chart,) = weights_section.SECTION.charts(dataclasses.replace(inputs, analyses={"weights": both}))
    assert list(chart.choices["projection"].options) == ["all", "q_proj", "v_proj"]
    name = "E and the task's specialist"
    for projection, cosine in (("all", 0.5), ("q_proj", 0.3), ("v_proj", 0.7)):
        panel = panels_of(chart, projection=projection)["cosine of the updates"]
        assert list(mark_of(panel, name).y) == pytest.approx([cosine] * 4)


def test_the_mean_of_the_specialists_stands_beside_e(inputs):
    section = merged_section.SECTION
    shown = " ".join(section.sentences(inputs))
    assert "has CKA 0.400" in shown and "E 0.750" in shown and "+0.350" in shown
    assert "from layer 1 on" in shown and "0.25 of the size of E's" in shown
    assert "mean 0.40" in shown and "E 0.90" in shown
    (chart,) = section.charts(inputs)
    panels = panels_of(chart)
    near = mark_of(panels["Nearness to the specialists"], "E")
    assert list(near.y) == pytest.approx([0.4 + 0.1 * at for at in range(len(LAYERS))])
    gap = mark_of(panels["E less the mean of the specialists"], "E less the mean")
    assert gap.y[2] == pytest.approx(0.2) and "E less the mean: +0.200" in gap.hover[2]
    known = panels["What they know of the answers"]
    # One point per competent task of the mixture and model.
    points = {name: mark_of(known, name) for name in ("E", "mean of the specialists", "base")}
    assert [len(each.x) for each in points.values()] == [7, 7, 7]
    scores = inputs.scores[(inputs.scores.metric == "information") & (inputs.scores.model == "control")]
    own = scores.set_index("task").value
    tasks = [text.splitlines()[0] for text in points["E"].hover]
    np.testing.assert_allclose(points["E"].x, own[tasks])
    assert set(points["mean of the specialists"].y) == {0.4} and set(points["E"].y) == {0.9}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
@pytest.mark.parametrize("absent", ["all undefined", "no competent task", "one task"])
def test_absent_data_leave_charts_that_say_so(section, absent, inputs):
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
    for chart in section.charts(changed):
        check_chart(chart)
        assert absent == "one task" or not any(has_data(panel) for panel in panels_of(chart).values())
    section.rows(changed)
