"""The trap table: every engine gives float64's value or says that there is none; on one device and on eight."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.engines import ENGINES
from tests.support.paths import ROOT
from tests.support.processes import free_address, together
from tests.support.traps import PAIRS, N, benign, expected, shifted, table, undefined_table

TRAPS = table()
UNDEFINED = undefined_table()
ALL = np.ones(N, bool)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("trap", TRAPS)
def test_values_are_those_of_float64(engine, trap):
    states, tolerance = TRAPS[trap]
    found = ENGINES[engine](states, np.ones(states.shape[1], bool))
    exact = expected(states)
    for i, (a, b) in enumerate(PAIRS):
        assert list(found.undefined[i]) == ["", ""]
        assert found.value[i] == pytest.approx(exact[a, b], abs=tolerance)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("trap", UNDEFINED)
def test_an_engine_without_a_value_says_why(engine, trap):
    states, said = UNDEFINED[trap]
    found = ENGINES[engine](states, np.ones(states.shape[1], bool))
    assert list(found.undefined[0]) == said
    assert list(np.isnan(found.value[0])) == [bool(reason) for reason in said]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_that_is_not_finite_leaves_all_models(engine, side):
    states = benign()
    states[side, 7, 3], states[side, 11, 0] = np.nan, -np.inf
    valid = ALL.copy()
    valid[20] = False
    states[1 - side, 20] = np.nan
    found = ENGINES[engine](states, valid)
    assert (found.n, found.dropped) == (N - 3, 2)
    exact = expected(states[:, np.setdiff1d(np.arange(N), [7, 11, 20])])
    assert found.value == pytest.approx(np.array([exact[pair] for pair in PAIRS]), abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_states_are_compared_as_stored(engine):
    states = jnp.asarray(benign() + 3, jnp.bfloat16)
    exact = expected(np.asarray(states, np.float64))
    assert ENGINES[engine](states, ALL).value == pytest.approx(np.array([exact[pair] for pair in PAIRS]), abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_order_matters_on_one_side_only(engine):
    plain, both, one = (
        ENGINES[engine](states, ALL).value
        for states in (benign(), *(TRAPS[f"rows in another order, {sides}"][0] for sides in ("both sides", "one side")))
    )
    assert both == pytest.approx(plain, abs=1e-6)
    assert np.abs(one - plain).min() > 0.1


@pytest.mark.parametrize("engine", ENGINES)
def test_diagnostics_under_an_offset(engine):
    states = shifted(benign(), 1000)
    found = ENGINES[engine](states, ALL)
    for m, rows in enumerate(states.astype(np.float64)):
        covariance = np.cov(rows.T)
        ratio = np.trace(covariance) ** 2 / np.square(covariance).sum()
        assert found.participation_ratio[m] == pytest.approx(ratio, rel=1e-5)
        spread_of_rows = np.sqrt(np.square(rows - rows.mean(0)).sum(1).mean())
        assert found.offset[m] == pytest.approx(np.linalg.norm(rows.mean(0)) / spread_of_rows, rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_real_states(engine, stories):
    import mossa_jax as mossa

    prompts = [
        f"{who} {did} the {thing} and {then}"
        for who in ("One day a boy", "The old cat", "Lily", "A big dog")
        for did in ("saw", "wanted", "lost")
        for thing in ("ball", "red hat", "little bird", "cake")
        for then in ("was happy", "ran home to mom")
    ]
    kept = mossa.layer_states(mossa.load_model(str(stories), dtype="float32"), prompts, pool="mean")
    for layer in (1, 3, -1):
        first, second = (np.asarray(list(kept.values())[k]) for k in (0, layer))
        states = np.stack([first, second, 2 * first - second])
        found = ENGINES[engine](states, np.ones(len(prompts), bool))
        exact = expected(states)
        assert found.value == pytest.approx(np.array([exact[pair] for pair in PAIRS]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_on_eight_devices(root, tmp_path, processes):
    """The same table, by one process and by two; test_sharded and test_matrix have quicker tests of several devices."""
    command = [sys.executable, ROOT / "tests/support/traps_on_devices.py"]
    address = free_address()
    more = [[processes, address, index] for index in range(processes)] if processes > 1 else [[]]
    said = together([[*command, *each] for each in more], root, 8 // processes, tmp_path, timeout=900)
    assert [line.splitlines()[-1] for line in said] == [f"{processes} 8 right"] * processes
