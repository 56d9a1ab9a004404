"""The panel: each cell is its definition on the transformed states, and planted cases end as they were planted."""

import numpy as np
import pandas as pd
import pytest

from mossa_jax.findings import SCORE_COLUMNS, find
from mossa_jax.similarity import reference
from mossa_jax.similarity.measures.panel import PANEL, VARIANTS, measure_panel, panel_operations
from tests.support.measure_oracles import ORACLES, svcca
from tests.support.planted_panel import PAIRS, ROWS, planted_cka, planted_measures, planted_states


def oracle(measure, x, y):
    if measure.startswith("cka_"):
        return getattr(reference, measure.removeprefix("cka_"))(x, y)
    if measure == "svcca":
        return svcca(x, y, most=len(x) // 5)
    if measure in ("mutual_knn", "cknna", "cknna_released"):
        x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    return ORACLES[measure](x, y)


def transform(variant, x):
    if variant == "standardised":
        return (x - x.mean(0)) / x.std(0)
    if variant == "top_removed":
        u, s, v = np.linalg.svd(x - x.mean(0), full_matrices=False)
        return (u * s)[:, 1:] @ v[1:]
    return x


def test_every_cell_is_its_definition_on_the_transformed_states():
    states = planted_states("dominated", 0) + 3
    valid = np.arange(ROWS) < 60
    seen = []
    for cells in measure_panel(states, valid, PAIRS):
        seen.append((cells.variant, cells.measure))
        assert cells.n == 60 and (cells.undefined == "").all()
        for p, pair in enumerate(PAIRS):
            for k in range(states.shape[1]):
                x, y = (transform(cells.variant, states[m, k, valid].astype(np.float64)) for m in pair)
                expected = oracle(cells.measure, x, y)
                assert cells.value[p, k] == pytest.approx(expected, abs=2e-5), (cells.variant, cells.measure)
    assert seen == [(variant, measure) for variant in VARIANTS for measure in PANEL]


def test_related_rows_are_left_out_of_the_debiased_value_alone():
    states, items = planted_states("honest", 1), np.arange(ROWS) // 2
    states[:, :, 1::2] = states[:, :, ::2] + 0.1 * states[:, :, 1::2]
    alone, related = (
        {cells.measure: cells.value for cells in measure_panel(states, np.ones(ROWS, bool), PAIRS, ("raw",), given)}
        for given in (None, items)
    )
    assert (np.abs(alone["cka_debiased"] - related["cka_debiased"]) > 1e-3).any()
    for measure in set(PANEL) - {"cka_debiased"}:
        np.testing.assert_allclose(alone[measure], related[measure], atol=1e-6)


@pytest.fixture(scope="module")
def planted():
    no_scores = pd.DataFrame(columns=SCORE_COLUMNS)
    result = {}
    for kind in ("honest", "dominated", "replaced"):
        measures = planted_measures(kind)
        table = planted_cka(measures)
        result[kind] = find(table, no_scores, draws=300, analyses={"measures": measures})
        result[f"{kind}, without the panel"] = find(table, no_scores, draws=300)
    return result


def finding(analysis, name):
    return next(each for each in analysis["findings"] if each["id"] == name)


def test_a_change_that_all_measures_show_stays_supported(planted):
    shift = finding(planted["honest"], "shift")
    assert shift["verdict"] == "supported", shift["sentence"]
    assert "The panel of measures agrees: 36 of 36 in sign on 8 tasks" in shift["sentence"]
    assert all(view["shares"] for view in planted["honest"]["panel"]["findings"]["shift"]["views"])


@pytest.mark.parametrize("kind", ["dominated", "replaced"])
def test_a_change_that_one_dominant_dimension_carries_is_flagged(planted, kind):
    analysis = planted[kind]
    assert analysis["shift"]["mean"] > 0.3 and analysis["shift"]["p"] < 0.05
    shift = finding(analysis, "shift")
    assert shift["verdict"] == "undecided"
    assert "not shared by" in shift["sentence"] and "states without their top component" in shift["sentence"]
    views = {view["view"]: view for view in analysis["panel"]["findings"]["shift"]["views"]}
    assert views["raw"]["shares"] and views["mean"]["shares"] and not views["top_removed"]["shares"]
    without = planted[f"{kind}, without the panel"]
    assert finding(without, "shift")["verdict"] == "supported" and not without["panel"]["measured"]


def test_the_cost_of_a_panel_grows_with_all_its_sizes():
    base = panel_operations(5, 8, 256, 4096, 4, 3)
    assert panel_operations(5, 4, 256, 4096, 4, 3) == pytest.approx(base / 2)
    assert panel_operations(5, 8, 128, 4096, 4, 3) < base / 2
    assert panel_operations(5, 8, 256, 64, 4, 3) < base
