"""The trap table: every engine gives float64's value or says that there is none; on one device and on eight."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.engines import ENGINES
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
