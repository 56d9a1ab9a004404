"""Streamed moments equal the whole set, whatever the batching, order and merging."""

import numpy as np
import pytest

from mossa_jax.similarity import UndefinedSimilarity, moments, reference

BATCH = 32


def make_pair(offset, n=200, widths=(12, 20)):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n, 4))
    return [
        (shared @ rng.normal(size=(4, d)) + rng.normal(size=(n, d)) + offset * rng.normal(size=d)).astype(np.float32)
        for d in widths
    ]


def stream(state, x, y):
    for i in range(0, len(x), BATCH):
        rows = len(x[i : i + BATCH])
        grown = [np.pad(a[i : i + BATCH], ((0, BATCH - rows), (0, 0)), constant_values=np.nan) for a in (x, y)]
        state = moments.update(state, *grown, np.arange(BATCH) < rows)
    return state


@pytest.mark.parametrize("offset", [0, 30, 1000])
def test_stream_equals_the_whole(offset):
    x, y = make_pair(offset)
    found = moments.finish(stream(moments.start(x[:32].mean(0), y[:32].mean(0)), x, y))
    assert found.n == 200
    assert found.biased == pytest.approx(reference.biased(x, y), abs=1e-6)
    assert found.debiased == pytest.approx(reference.debiased(x, y), abs=1e-6)
    covariance = np.cov(y.astype(np.float64).T)
    ratio = np.trace(covariance) ** 2 / (covariance**2).sum()
    assert found.participation_ratio[1] == pytest.approx(ratio, rel=1e-5)


def test_merging_and_order_change_nothing():
    x, y = make_pair(100)
    empty = moments.start(x[0], y[0])
    parts = [stream(empty, x[rows], y[rows]) for rows in (slice(0, 50), slice(50, 57), slice(57, 200))]
    expected = reference.debiased(x, y)
    for order in ((0, 1, 2), (2, 1, 0)):
        first, second, third = (parts[i] for i in order)
        for joined in (
            moments.merge(moments.merge(first, second), third),
            moments.merge(first, moments.merge(second, third)),
        ):
            assert moments.finish(joined).debiased == pytest.approx(expected, abs=1e-6)


def test_a_long_stream_of_small_batches_keeps_its_digits():
    # 4000 additions: without carry-over the float32 sums of squares lose the seventh digit.
    x, y = make_pair(0, n=4 * 4000, widths=(2, 2))
    state = moments.start(np.zeros(2), np.zeros(2))
    for i in range(0, len(x), 4):
        state = moments.update(state, x[i : i + 4], y[i : i + 4], np.ones(4, bool))
    exact = np.square(x.astype(np.float64)).sum()
    carried = float(state.sums.norms[0]) - float(state.carry.norms[0])
    assert carried == pytest.approx(exact, rel=1e-7)


def test_rows_not_finite_are_left_out_on_both_sides():
    x, y = make_pair(0)
    rows = np.setdiff1d(np.arange(200), [3, 90])
    expected = reference.debiased(x[rows], y[rows])
    x[3, 0], y[90, 1] = np.nan, np.inf
    found = moments.finish(stream(moments.start(x[0], y[0]), x, y))
    assert found.n == 198 and found.debiased == pytest.approx(expected, abs=1e-6)


def test_undefined_is_said():
    x, y = make_pair(0)
    with pytest.raises(UndefinedSimilarity, match="no variance in y"):
        moments.finish(stream(moments.start(x[0], y[0]), x, np.tile(y[:1], (200, 1))))
    with pytest.raises(UndefinedSimilarity, match="3 finite rows"):
        moments.finish(stream(moments.start(x[0], y[0]), x[:3], y[:3]))
