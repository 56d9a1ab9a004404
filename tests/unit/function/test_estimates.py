"""Means with intervals over items, against SciPy and statistics by hand."""

import numpy as np
import pytest
from scipy import stats

from mossa_jax.function.estimates import mean, ratio, share


def test_prompts_that_are_items_have_the_ordinary_interval():
    values = np.random.default_rng(0).normal(2, 3, 40)
    value, low, high = mean(values, np.arange(40))
    wanted = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert value == pytest.approx(values.mean()) and (low, high) == pytest.approx(wanted)


def test_copies_of_a_prompt_are_no_evidence():
    values, items = np.random.default_rng(1).normal(size=12), np.arange(12)
    assert mean(np.repeat(values, 5), np.repeat(items, 5)) == pytest.approx(mean(values, items))
    hits = (values > 0).astype(float)
    assert share(np.repeat(hits, 5), np.repeat(items, 5)) == pytest.approx(share(hits, items))


def test_a_ratio_covers_its_truth_with_items_of_many_sizes():
    rng, covered = np.random.default_rng(2), 0
    for _ in range(400):
        items = np.repeat(np.arange(50), rng.integers(1, 6, 50))
        weights = rng.integers(1, 5, len(items)).astype(float)
        level = rng.normal(1, 1, 50)[items] + rng.normal(0, 1, len(items))
        _, low, high = ratio(level * weights, weights, items)
        covered += low <= 1 <= high
    assert 0.91 <= covered / 400 <= 0.985


@pytest.mark.parametrize("hits", [0, 3, 20])
def test_a_share_has_wilsons_interval_and_is_never_certain(hits):
    values = (np.arange(20) < hits).astype(float)
    value, low, high = share(values, np.arange(20))
    # Student's quantile, and with Wilson's variance of a share over n - 1, as that of a mean.
    z = stats.t.ppf(0.975, 19)
    n = 20 if hits in (0, 20) else 19
    # The ends solve |p - share| = z sqrt(p (1 - p) / n).
    wanted = np.roots([1 + z**2 / n, -(2 * value + z**2 / n), value**2])
    assert (low, high) == pytest.approx(sorted(wanted), abs=1e-9)
    assert value == hits / 20 and low < high


def test_one_item_has_no_interval():
    for estimate in (mean(np.ones(4), np.zeros(4, int)), share(np.ones(4), np.zeros(4, int))):
        assert estimate.value == 1 and np.isnan(estimate[1:]).all()
