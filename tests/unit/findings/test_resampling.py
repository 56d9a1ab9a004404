"""Resampling over tasks, checked against scipy and against known coverage."""

import numpy as np
import pytest
from mossa_jax.findings.resampling import interval_of_mean, sign_flip, spearman
from scipy import stats


def test_exact_sign_flip_agrees_with_scipy():
    values = np.array([0.12, -0.03, 0.2, 0.05, 0.31, -0.01, 0.08])
    ours = sign_flip(values, 2000, np.random.default_rng(0))
    reference = stats.permutation_test(
        (values,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert ours == pytest.approx(reference, abs=1e-12)


def test_five_of_five_tasks_give_the_smallest_p():
    assert sign_flip(np.array([0.1, 0.2, 0.3, 0.1, 0.2]), 2000, np.random.default_rng(0)) == 2 / 32


def test_random_sign_flips_are_near_the_exact_test_and_never_zero():
    values = np.random.default_rng(1).normal(0.2, 0.5, size=14)
    exact = sign_flip(values, 2**14, np.random.default_rng(0))
    assert sign_flip(values, 4000, np.random.default_rng(0)) == pytest.approx(exact, abs=0.03)
    assert sign_flip(np.ones(40), 500, np.random.default_rng(0)) == 1 / 501


@pytest.mark.parametrize("tasks", [5, 20])
def test_interval_covers_the_mean(tasks):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = interval_of_mean(rng.normal(0.3, 0.1, size=tasks), 400, rng)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 400 <= 0.98


def test_interval_needs_three_tasks():
    assert np.isnan(interval_of_mean(np.array([0.1, 0.2, np.nan]), 100, np.random.default_rng(0))).all()


def test_spearman_agrees_with_scipy():
    rng = np.random.default_rng(3)
    x = rng.normal(size=30).round(1)
    y = x + rng.normal(size=30).round(1)
    y[4] = np.nan
    rho, p, n = spearman(x, y, 999, rng)
    keep = np.isfinite(y)
    expected = stats.spearmanr(x[keep], y[keep])
    assert n == 29 and rho == pytest.approx(expected.statistic, abs=1e-12)
    assert p == pytest.approx(expected.pvalue, abs=0.02)
