"""Other similarity measures: their definitions in float64, invariances, ties, and states without a value."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist, squareform

from mossa_jax.errors import Refusal
from mossa_jax.similarity.measures import distances, same_layer
from mossa_jax.similarity.measures.same_layer import INVARIANCES, MEASURES, NEIGHBOUR_MEASURES, measure_states
from tests.support.measure_oracles import ORACLES, K, rbf_cka, svcca, unit


def related(n, d, models, layers, seed=0):
    """[models, layers, n, d] float32 that share factors to different degrees, under an offset of 20 times the noise."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(layers, n, 6)) * [4, 3, 2, 1, 1, 1]
    states = [
        factors @ rng.normal(size=(6, d)) / 2 + (1 + m) * rng.normal(size=(layers, n, d)) + 20 * rng.normal(size=d)
        for m in range(models)
    ]
    return np.asarray(states, np.float32)


@pytest.mark.parametrize("n, d", [(150, 24), (60, 100)], ids=["tall", "wide"])
def test_values_are_those_of_the_definitions(n, d):
    assert set(ORACLES) == set(MEASURES)
    states = related(n, d, models=3, layers=2)
    states[1, 0, 7, 3] = np.nan
    states[0, 1, 9, 0] = np.inf
    valid = np.arange(n) != 5
    kept = valid & ~np.isin(np.arange(n), (7, 9))
    pairs = [(0, 1), (2, 0)]
    found = measure_states(states, valid, pairs)
    assert (found.n, found.dropped) == (n - 3, 2)
    for name, oracle in ORACLES.items():
        assert found.value[name].shape == (2, 2) and (found.undefined[name] == "").all()
        for i, (a, b) in enumerate(pairs):
            expected = [oracle(*(states[m, k, kept].astype(np.float64) for m in (a, b))) for k in range(2)]
            np.testing.assert_allclose(found.value[name][i], expected, atol=1e-5, err_msg=name)
            assert np.ptp(expected) > 1e-4 and min(expected) > 0.02


def test_settings_reach_the_measures():
    states = related(60, 100, models=2, layers=1)
    x, y = states[:, 0].astype(np.float64)
    names = ["rbf_cka", "svcca", "mutual_knn"]
    found = measure_states(states, np.ones(60, bool), [(0, 1)], names, bandwidth=0.2, neighbours=1, share=0.5)
    assert list(found.value) == names
    assert found.value["rbf_cka"] == pytest.approx(rbf_cka(x, y, 0.2), abs=1e-5)
    nearest = [cKDTree(a).query(a, 2)[1][:, 1] for a in (x, y)]
    assert found.value["mutual_knn"] == pytest.approx((nearest[0] == nearest[1]).mean(), abs=1e-6)
    (full,) = measure_states(states, np.ones(60, bool), [(0, 1)], ["svcca"]).value.values()
    assert found.value["svcca"] > full + 0.05
    (few,) = measure_states(states, np.arange(60) < 40, [(0, 1)], ["svcca"], rows_per_component=5).value.values()
    assert few == pytest.approx(svcca(x[:40], y[:40], most=8), abs=1e-5)


def test_declared_invariances_hold_and_no_others():
    rng = np.random.default_rng(1)
    n, d = 60, 100
    y, x = related(n, d, models=2, layers=1, seed=2)[:, 0].astype(np.float64)
    rotation = stats.ortho_group.rvs(d, random_state=3)
    changes = [
        ("permutation", x[:, rng.permutation(d)]),
        ("orthogonal", x @ rotation),
        ("isotropic_scaling", 37.0 * x),
        ("translation", x + 100 * rng.normal(size=d)),
        ("translation", x - x.mean(0)),
        ("invertible_linear", x @ rotation @ np.diag(np.geomspace(1, 30, d))),
    ]
    states = np.stack([y, x, *(rows for _, rows in changes)]).astype(np.float32)[:, None]
    found = measure_states(states, np.ones(n, bool), [(0, m) for m in range(1, len(states))])
    for name, declared in INVARIANCES.items():
        base, *changed = found.value[name][:, 0]
        largest: dict[str, float] = {}
        for (change, _), value in zip(changes, changed, strict=True):
            largest[change] = max(largest.get(change, 0), abs(value - base))
        for change, difference in largest.items():
            assert difference < 2e-5 if getattr(declared, change) else difference > 1e-3, (name, change, difference)


def test_tied_rows_share_ranks_and_places():
    rng = np.random.default_rng(4)
    # Twelve prompts five times each: ties at distance 0 and at the tenth place.
    x, y = (np.repeat(rng.normal(size=(12, 100)), 5, 0).astype(np.float32) + 3 for _ in range(2))
    states = np.stack([x, y, x])[:, None]
    found = measure_states(states, np.ones(60, bool), [(0, 1), (0, 2)])
    x, y = x.astype(np.float64), y.astype(np.float64)
    for name in ("rsa", "rbf_cka", "procrustes", "svcca"):
        assert found.value[name][0] == pytest.approx(ORACLES[name](x, y), abs=1e-5), name
    # Of the K places the 4 twins take one each, the next five rows one each, and five more share the last one.
    places = []
    for rows in (x, y):
        groups = np.argsort(squareform(pdist(rows[::5])), 1)
        weight = np.zeros((12, 12))
        np.put_along_axis(weight, groups[:, :3], [[1, 1, 0.2]], 1)
        weight = np.kron(weight, np.ones((5, 5)))
        np.fill_diagonal(weight, 0)
        places.append(weight)
    assert (places[0].sum(1) == K).all()
    dots = [(a * b).sum(1) for a, b in ((places[0], places[1]), (places[0],) * 2, (places[1],) * 2)]
    assert found.value["mutual_knn"][0] == pytest.approx((dots[0] / np.sqrt(dots[1] * dots[2])).mean(), abs=1e-6)
    near = [w * (unit(a) @ unit(a).T) for w, a in zip(places, (x, y), strict=True)]
    expected = (near[0] * near[1]).sum() / np.sqrt(np.square(near[0]).sum() * np.square(near[1]).sum())
    assert found.value["cknna"][0] == pytest.approx(expected, abs=1e-6)
    for name in set(MEASURES) - {"procrustes_distance"}:
        assert found.value[name][1] == pytest.approx(1, abs=1e-5), name
    assert found.value["procrustes_distance"][1] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("n", [6, 150, 151])
def test_the_median_is_selected_exactly(n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(3, 160, 3)).astype(np.float32)
    x[1] *= np.float32(1e-3)
    x[2] = np.round(x[2])
    kept = np.arange(160) < n
    rows = distances.tiled_rows(jnp.asarray(x), jnp.asarray(kept), 80)
    found = np.asarray(jax.jit(distances.median_distance, static_argnums=1)(rows, 80))
    expected = [np.median(pdist(a[:n].astype(np.float64))) for a in x]
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_a_measure_without_a_value_says_why():
    rng = np.random.default_rng(5)
    n, d = 60, 100
    states = rng.normal(size=(5, 1, n, d)).astype(np.float32)
    states[1] = 7.0
    states[2, 0] = np.eye(n, d)
    states[3, 0, :55] = 1.0
    pairs = [(0, 1), (2, 0), (0, 3), (2, 2), (0, 4)]
    found = measure_states(states, np.ones(n, bool), pairs)
    for name in MEASURES:
        reason = found.undefined[name][:, 0]
        assert reason[0] == "no variance in b" and reason[4] == ""
        np.testing.assert_array_equal(np.isnan(found.value[name]), found.undefined[name] != "")
        equidistant = name in (*NEIGHBOUR_MEASURES, "rsa")
        assert reason[1] == ("all distances are equal in a" if equidistant else ""), name
        assert reason[3] == ("all distances are equal in a and b" if equidistant else ""), name
        assert reason[2] == ("the median distance is zero in b" if name == "rbf_cka" else ""), name
    few = measure_states(states, np.arange(n) < 11, pairs)
    for name in NEIGHBOUR_MEASURES:
        assert few.undefined[name][4] == "11 finite rows; at least 12 are needed"
    assert all(few.undefined[name][4] == "" for name in ("rsa", "rbf_cka", "procrustes", "svcca"))
    none = measure_states(states, np.arange(n) < 3, pairs)
    assert all((none.undefined[name] == "3 finite rows; at least 4 are needed").all() for name in ("rsa", "svcca"))


def test_bad_arguments_are_refused():
    states, valid = related(20, 4, models=2, layers=1), np.ones(20, bool)
    for code, words, change in (
        (2, "cka2", {"measures": ["cka2"]}),
        (2, "bandwidth", {"bandwidth": 0.0}),
        (2, "neighbours", {"neighbours": 0}),
        (2, "share", {"share": 1.0}),
        (2, "rows_per_component", {"rows_per_component": 0}),
        (3, "pairs", {"pairs": [(0, 2)]}),
        (3, "valid", {"valid": valid[1:]}),
        (3, "states", {"states": states[0]}),
        (3, "46340", {"states": jnp.zeros((1, 1, 46_341, 1)), "valid": np.ones(46_341, bool), "pairs": [(0, 0)]}),
    ):
        with pytest.raises(Refusal, match=words) as refused:
            measure_states(**{"states": states, "valid": valid, "pairs": [(0, 1)]} | change)
        assert refused.value.code == code


def lowered(n, d, models=2):
    """Returns the lines of the program of all measures."""
    settings = {"bandwidth": 0.8, "neighbours": K, "share": 0.99, "rows_per_component": 1, "tile": 64, "mesh": None}
    states = jnp.asarray(related(n, d, models=models, layers=1))
    return (
        same_layer._measure_sums.lower(states, np.ones(n, bool), pairs=((0, 1),), measures=MEASURES, **settings)
        .as_text()
        .splitlines()
    )


def test_every_product_is_at_full_precision():
    products = [line for line in lowered(60, 100) if "stablehlo.dot_general" in line]
    assert len(products) >= 5 and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize("n, d", [(150, 24), (60, 100)], ids=["tall", "wide"])
def test_every_factorisation_takes_one_matrix(n, d):
    # A batch of them makes several CPU devices wait for one another for ever, with jaxlib 0.10.
    calls = [line for line in lowered(n, d, models=3) if "@lapack_" in line]
    operands = [re.findall(r"tensor<([\dx]+)xf32>", line.split(" : (")[1])[0] for line in calls]
    assert len(operands) >= 3 and all(operand.count("x") == 1 for operand in operands), operands
