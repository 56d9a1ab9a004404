"""Where a base turns, and whether that foretells where tuning departs from it."""

import numpy as np
import pytest
import scipy.stats

from mossa_jax.similarity.turning import find_turning, rank_correlation

LAYERS = 6


def turning_at(block, departs_at=4):
    """A base that is the same state but for one block, and an E that leaves it at another."""
    layers = np.arange(LAYERS + 1)
    base = np.where((layers[:, None] >= block) == (layers >= block), 1.0, 0.2)
    return find_turning(base, np.where(layers >= departs_at, 0.6, 1.0), 0.1 * layers, 0.1 * layers + (layers >= 5))


def test_a_planted_turn_is_found_at_its_block():
    found = turning_at(3)
    assert found.novelty == pytest.approx([0, 0, 0.8, 0, 0, 0])
    # Both sides of the turn have one neighbour beyond it.
    assert found.turning == pytest.approx([0, 0.4, 0.4, 0, 0, 0])


def test_steps_belong_to_the_block_that_makes_them():
    found = turning_at(3)
    assert found.departure == pytest.approx([0, 0, 0, 0.4, 0.4, 0.4])
    assert found.departure_step == pytest.approx([0, 0, 0, 0.4, 0, 0])
    assert found.change_step == pytest.approx([0, 0, 0, 0, 1, 0])


def test_a_state_without_variance_leaves_its_neighbours_alone():
    base = np.full((4, 4), 0.5)
    base[0] = base[:, 0] = np.nan
    found = find_turning(base, np.ones(4), np.ones(4), np.ones(4))
    assert np.isnan(found.novelty).tolist() == [True, False, False]
    assert found.turning == pytest.approx([0.5, 0.5, 0.5])


def test_rank_correlations_are_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12)).round(1)
    x[3] = np.nan
    keep = np.isfinite(x)
    assert rank_correlation(x, y) == pytest.approx(scipy.stats.spearmanr(x[keep], y[keep]).statistic, abs=1e-12)


def test_two_curves_that_only_share_a_trend_do_not_correlate_beyond_depth():
    rng = np.random.default_rng(1)
    depth, values = np.arange(40.0), []
    for _ in range(200):
        x, y = depth + rng.normal(0, 3, (2, 40))
        values.append((rank_correlation(x, y), rank_correlation(x, y, depth)))
    plain, partial = np.mean(values, axis=0)
    assert plain > 0.9 and abs(partial) < 0.05


def test_the_partial_correlation_is_that_of_the_residuals_of_a_regression():
    rng = np.random.default_rng(2)
    x, y, z = rng.normal(size=(3, 30))
    y += x + z
    ranks = [scipy.stats.rankdata(side) for side in (x, y, z)]
    design = np.stack([np.ones(30), ranks[2]], 1)
    left = [rank - design @ np.linalg.lstsq(design, rank, rcond=None)[0] for rank in ranks[:2]]
    assert rank_correlation(x, y, z) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-9)


@pytest.mark.parametrize("x", [np.ones(8), np.arange(8.0), np.full(8, np.nan)])
def test_a_curve_without_a_rank_of_its_own_has_no_correlation(x):
    depth = np.arange(8.0)
    assert np.isnan(rank_correlation(x, np.random.default_rng(3).normal(size=8), depth))
