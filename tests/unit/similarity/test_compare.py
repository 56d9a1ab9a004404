"""compare_states: values, intervals, undefined states and rows that do not count."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mossa_jax.errors import Refusal
from mossa_jax.similarity import ESTIMATORS, compare_states, gram, reference

PAIRS = [(0, 1), (2, 1)]
N, D = 40, 24


def make_states(layers, seed=0, models=3, n=N, d=D):
    """[models, layers, n, d] float32; models share a part of what they see."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(layers, n, 4))
    mixing = rng.normal(size=(models, layers, 4, d))
    return (np.einsum("kns,mksd->mknd", shared, mixing) + rng.normal(size=(models, layers, n, d))).astype(np.float32)


def assert_values(found, states, tolerance=1e-6, rows=slice(None)):
    for i, (a, b) in enumerate(PAIRS):
        for k in range(states.shape[1]):
            for e, name in enumerate(ESTIMATORS):
                expected = getattr(reference, name)(states[a, k, rows], states[b, k, rows])
                assert found.value[i, k, e] == pytest.approx(expected, abs=tolerance), (i, k, name)


def same(first, second, tolerance=1e-6):
    for name in ("value", "low", "high", "null_mean", "p"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=tolerance, err_msg=name)


def test_hard_numerics_agree_with_float64():
    # One call: offsets 0 to 1000, one massive dimension, scales from 1e-20 to 1e20, rank 1.
    states = make_states(12)
    direction = np.random.default_rng(9).normal(size=D).astype(np.float32)
    for k, rho in enumerate((0, 1, 10, 100, 1000)):
        states[:, k] += rho * direction
    states[:, 5, :, 3] += 1000
    states[:, 6, :, 3] *= 1000
    for k, scale in zip(range(7, 11), (1e-20, 1e-15, 1e15, 1e20), strict=True):
        states[:, k] *= np.float32(scale)
    states[:, 11] = states[:, 11, :, :1] * direction
    found = compare_states(states, np.ones(N, bool), PAIRS)
    assert (found.undefined == "").all() and found.n == N and found.dropped == 0
    assert_values(found, states)
    assert (found.low <= found.value).all() and (found.value <= found.high).all()
    covariance = np.cov(states[0, 4].astype(np.float64).T)
    ratio = np.trace(covariance) ** 2 / (covariance**2).sum()
    assert found.participation_ratio[0, 4] == pytest.approx(ratio, rel=1e-5)
    rows = states[0, 4].astype(np.float64)
    spread = np.sqrt(np.square(rows - rows.mean(0)).sum(1).mean())
    assert found.offset[0, 4] == pytest.approx(np.linalg.norm(rows.mean(0)) / spread, rel=1e-5)


@pytest.mark.parametrize("n, d", [(20, 60), (32, 8), (5, 8)])
def test_interval_is_the_brute_force_jackknife(n, d):
    states = make_states(1, n=n, d=d)
    found = compare_states(states, np.ones(n, bool), PAIRS)
    for i, (a, b) in enumerate(PAIRS):
        for e, name in enumerate(ESTIMATORS):
            value = getattr(reference, name)(states[a, 0], states[b, 0])
            error = reference.jackknife(states[a, 0], states[b, 0], name)[1]
            reach = stats.t.ppf(0.975, n - 1) * error / (1 - value**2)
            ends = np.tanh(np.arctanh(value) + np.array([-reach, reach]))
            assert [found.low[i, 0, e], found.high[i, 0, e]] == pytest.approx(ends, abs=2e-6)


def test_states_that_differ_by_rounding_have_a_narrow_interval():
    """Their jackknife error is rounding, and so is their distance from 1: the ratio of the two means nothing."""
    for seed in range(8):
        states = make_states(1, seed=seed, n=60, d=64)
        noise = np.random.default_rng(seed).normal(size=states[0].shape)
        states[1] = states[0] * (1 + 10.0 ** -np.linspace(4, 7, 8)[seed] * noise)
        found = compare_states(states, np.ones(60, bool), [(0, 1)])
        assert np.all(found.value > 1 - 1e-6) and np.all(found.low > 1 - 1e-5) and np.all(found.high <= 1 + 1e-7)


def test_identical_states_give_one_with_a_point_interval():
    states = make_states(3)
    states[1] = states[0]
    found = compare_states(states, np.ones(N, bool), PAIRS)
    assert (found.value[0] == 1).all() and (found.low[0] == 1).all() and (found.high[0] == 1).all()
    assert (found.value[1] < 0.99).all()


def test_a_state_without_variance_is_undefined_and_says_so():
    states = make_states(3)
    states[1, 0] = np.float32(0.1) * np.arange(1, D + 1, dtype=np.float32)
    states[:, 1] = 0
    found = compare_states(states, np.ones(N, bool), PAIRS, permutations=5)
    assert (found.undefined[0, 0] == "no variance in b").all()
    assert (found.undefined[0, 1] == "no variance in a and b").all()
    assert (found.undefined[:, 2] == "").all()
    for name in ("value", "low", "high", "null_mean", "p"):
        assert (np.isnan(getattr(found, name)) == (found.undefined != "")).all(), name
    assert np.isnan(found.participation_ratio[1, 0]) and np.isfinite(found.participation_ratio[0, 0])


def test_equidistant_rows_have_only_a_biased_value():
    states = make_states(1, n=6, d=6)
    states[0, 0] = np.eye(6)
    found = compare_states(states, np.ones(6, bool), PAIRS)
    assert list(found.undefined[0, 0]) == ["", "debiased self-similarity is not positive in a"]
    assert found.value[0, 0, 0] > 0 and np.isnan(found.value[0, 0, 1])


def test_one_row_that_carries_everything():
    # Without that row nothing is left to divide by, and a single far point has no U-centred Gram at all.
    states = make_states(1)
    states[:, 0, 1:] *= 1e-5
    found = compare_states(states, np.ones(N, bool), PAIRS)
    assert found.value[..., 0] == pytest.approx(1, abs=1e-6)
    assert np.isfinite(found.low[..., 0]).all() and np.isfinite(found.high[..., 0]).all()
    assert (found.undefined[..., 1] == "debiased self-similarity is not positive in a and b").all()


@pytest.mark.parametrize("rows, defined", [(0, False), (3, False), (4, True), (5, True)])
def test_few_rows(rows, defined):
    states = make_states(2)
    found = compare_states(states, np.arange(N) < rows, PAIRS, permutations=7)
    assert found.n == rows
    if not defined:
        assert (found.undefined == f"{rows} finite rows; at least 4 are needed").all()
        assert np.isnan(found.value).all()
        return
    assert (found.undefined == "").all()
    assert_values(found, states, 2e-6, slice(0, rows))
    assert (found.low <= found.value).all() and (found.value <= found.high).all()


def test_rows_not_finite_are_dropped_jointly_and_counted():
    states = make_states(2)
    states[0, 0, 7, 3] = np.nan
    states[2, 1, 11, 0] = np.inf
    valid = np.ones(N, bool)
    valid[20] = False
    states[1, 1, 20, 0] = np.nan
    found = compare_states(states, valid, PAIRS)
    rows = np.setdiff1d(np.arange(N), [7, 11, 20])
    assert (found.n, found.dropped) == (N - 3, 2)
    assert_values(found, states, rows=rows)


def test_padding_and_order_change_nothing():
    states = make_states(2)
    found = compare_states(states, np.ones(N, bool), PAIRS, permutations=30)
    padded = np.full((3, 2, N + 150, D), 1e30, np.float32)
    slots = np.sort(np.random.default_rng(0).permutation(N + 150)[:N])
    padded[:, :, slots] = states
    same(found, compare_states(padded, np.isin(np.arange(N + 150), slots), PAIRS, permutations=30))
    order = np.random.default_rng(1).permutation(N)
    shuffled = compare_states(states[:, :, order], np.ones(N, bool), PAIRS, permutations=30)
    for name in ("value", "low", "high", "null_mean"):
        np.testing.assert_allclose(getattr(shuffled, name), getattr(found, name), atol=1e-6)


def test_many_tiles_agree_with_one():
    states = make_states(1, n=200)
    sums = [
        gram.gram_sums(
            jnp.asarray(states),
            np.ones(200, bool),
            np.zeros((0, 200), np.int32),
            combinations=((0, 0), (0, 1)),
            pairs=((0, 1),),
            tile=tile,
            mesh=None,
        )
        for tile in (200, 24)
    ]
    np.testing.assert_allclose(sums[0].g, sums[1].g, rtol=1e-5, atol=1e-4)
    rows = states[:2, 0].astype(np.float64)
    rows -= rows.mean(1, keepdims=True)
    # The device divides each state by a power of two; its own squared norms say which.
    rows *= np.sqrt(np.asarray(sums[0].r)[0, :2].sum(1) / np.square(rows).sum((1, 2)))[:, None, None]
    product = (rows[0] @ rows[0].T) * (rows[1] @ rows[1].T)
    np.testing.assert_allclose(sums[1].g[0, 1], product.sum(1) - np.diag(product), rtol=1e-5, atol=1e-4)


def test_bfloat16_states_are_compared_as_stored():
    states = jnp.asarray(make_states(2) + 3, jnp.bfloat16)
    found = compare_states(states, np.ones(N, bool), PAIRS)
    assert_values(found, np.asarray(states, np.float64))


def test_bad_arguments_are_refused():
    states = make_states(1)
    valid = np.ones(N, bool)
    for arguments, said in (
        ((states[0], valid, PAIRS), r"\[models, layers, rows, width\]"),
        ((states, valid[:-1], PAIRS), "one bool for each of 40 rows"),
        ((states, valid, [(0, 3)]), "indices below 3"),
        ((states.astype(np.int32), valid, PAIRS), "int32"),
    ):
        with pytest.raises(Refusal, match=said) as raised:
            compare_states(*arguments)
        assert raised.value.code == 3
