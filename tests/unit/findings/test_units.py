"""Tests, intervals and power over units against SciPy, and the meaning of a unit."""

import numpy as np
import pytest
from scipy import stats

from mossa_jax.findings import units


def test_a_unit_is_a_cluster_and_a_task_where_there_are_none():
    values = np.array([1.0, 3.0, 10.0, np.nan])
    assert units.unit_means(values, ["a", "a", "b", "b"]).tolist() == [2.0, 10.0]
    assert units.unit_means(values[:3], ["tasks"] * 3).tolist() == [1.0, 3.0, 10.0]
    assert (units.unit_name(["a", "b"]), units.unit_name(["tasks", "tasks"])) == ("clusters", "tasks")


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(size=9)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert units.t_interval(values) == pytest.approx((reference.low, reference.high))


def test_sign_flips_of_twelve_units_are_exact():
    values = np.random.default_rng(1).normal(0.5, 1, 12)
    reference = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert units.sign_flip(values, 100, np.random.default_rng(0)) == pytest.approx(reference.pvalue)


def test_tasks_of_a_cluster_count_once():
    """Sixty tasks that are six different numbers have the p value of six."""
    means = np.array([0.1, 0.2, 0.3, 0.15, 0.25, 0.05])
    result = units.estimate(np.repeat(means, 10), list(np.repeat(list("abcdef"), 10)))
    assert (result["n_units"], result["n_tasks"], result["unit"]) == (6, 60, "clusters")
    assert result["p"] == result["least_p"] == 2 / 2**6
    assert (result["rises"], result["falls"]) == (60, 0)


def test_few_units_carry_no_p():
    result = units.estimate(np.full(50, 0.3) + np.arange(50) * 1e-3, list(np.repeat(list("abcde"), 10)))
    assert np.isnan(result["p"]) and "5 clusters are too few" in result["reason"]
    assert result["low"] > 0  # the t interval is there


def test_the_least_effect_has_the_stated_power():
    rng = np.random.default_rng(2)
    samples = rng.normal(0, 1, (4000, 12))
    effect = np.mean([units.least_effect(sample) for sample in samples[:500]])
    power = np.mean(stats.ttest_1samp(samples + effect, 0, axis=1).pvalue <= 0.05)
    assert 0.74 <= power <= 0.86


def test_equivalence_is_two_one_sided_tests():
    values = np.random.default_rng(3).normal(0.01, 0.03, 10)
    above = stats.ttest_1samp(values, -0.05, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 0.05, alternative="less").pvalue
    assert units.equivalence_p(values, 0.05) == pytest.approx(max(above, below))
