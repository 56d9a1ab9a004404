"""Sections on planted curves: where E and the base part, and shapes that are no transition."""

import numpy as np
import pytest

from mossa_jax.benchmarks.planted_findings import (
    FLAN_SIZES,
    SHAPE_KINDS,
    Noise,
    cluster_sizes,
    draw_noise,
    ramp,
    shape_changes,
)
from mossa_jax.findings.ramps import depth_p_values, fit_ramps, robust_curves
from mossa_jax.findings.sections import find_sections, first_for_good, plateau_of, summary_sections

LAYERS = tuple(range(1, 33))


def names(sizes):
    return [f"c{code}" for code in np.repeat(np.arange(len(sizes)), sizes)]


def sections(change, sizes, base=0.55, **options):
    return find_sections(base + change, change, names(sizes), tuple(range(1, change.shape[1] + 1)), 0, 200, **options)


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    return draw_noise(rng, FLAN_SIZES, 32, Noise(0.3)) + ramp(32, 9, 15, 0.35)


def test_the_fit_is_the_best_of_all_ramps():
    """Against least squares of every pair of layers, by hand."""
    curve = np.random.default_rng(1).normal(size=9).cumsum()
    best = (np.inf, None)
    for p in range(9):
        for q in range(p + 1, 9):
            shape = np.clip((np.arange(9) - p) / (q - p), 0, 1)
            design = np.stack([np.ones(9), shape], 1)
            solution, *_ = np.linalg.lstsq(design, curve, rcond=None)
            if solution[1] > 0:
                best = min(best, (((design @ solution - curve) ** 2).sum(), (p + 1, q + 1)))
    fit = fit_ramps(np.ones((1, 9)), curve[None], tuple(range(1, 10)))
    assert (fit.last_shared[0], fit.last_transition[0]) == best[1]


def test_robust_curves_are_trimmed_means():
    from scipy.stats import trim_mean

    values = np.random.default_rng(2).normal(size=(20, 3))
    assert robust_curves(values, np.ones((1, 20)))[0] == pytest.approx(trim_mean(values, 0.2, axis=0))


def test_a_planted_transition_is_found(planted):
    found = sections(planted, FLAN_SIZES)
    assert found["shape"] == "transition" and found["unit"] == "clusters" and found["n_units"] == 12
    assert (found["shared"], found["transition"], found["refinement"]) == ([1, 9], [10, 15], [16, 32])
    assert found["fit"]["start"]["interval"][0] <= 10 <= found["fit"]["start"]["interval"][1]
    low, high = found["fit"]["after"]["interval"]
    assert low < 0.35 < high
    assert abs(found["crossing"]["first"] - 10) <= 2


def test_outliers_do_not_move_a_transition(planted):
    odd = planted.copy()
    odd[::11] += 0.8 * (np.arange(32) >= 20) - ramp(32, 9, 15, 0.35)
    assert sections(odd, FLAN_SIZES)["transition"] == [10, 15]


@pytest.mark.parametrize("name", SHAPE_KINDS)
def test_other_shapes_are_named(name):
    sizes = cluster_sizes(60, 12)
    change, base = shape_changes(name, np.random.default_rng(3), sizes, 32, Noise(0.0, 0.1, 0.1))
    found = sections(change, sizes, 0.55 if base is None else base)
    assert found["shape"] in SHAPE_KINDS[name] and not found["is_transition"]
    assert found["shared"] is None and found["reason"]


def test_one_cluster_carries_no_transition():
    sizes = cluster_sizes(60, 12)
    change = draw_noise(np.random.default_rng(4), sizes, 32, Noise(0.0, 0.02, 0.02))
    change += ramp(32, 9, 15, 0.03)
    change[:5] += ramp(32, 9, 15, 0.8)
    assert sections(change, sizes)["shape"] in ("one cluster", "a few tasks")


def test_clusters_and_not_tasks_are_flipped():
    """One cluster of sixty tasks that all rise is one piece of evidence, and five more without a rise are none."""
    sizes = (60, 1, 1, 1, 1, 1)
    change = draw_noise(np.random.default_rng(5), sizes, 8, Noise(0.0, 0.05, 0.05))
    change[:60] += ramp(8, 2, 4, 0.3)
    assert sections(change, sizes)["p_rise"] > 0.025


def test_few_clusters_are_too_few():
    sizes = cluster_sizes(60, 5)
    found = sections(np.tile(ramp(8, 2, 4, 0.3), (60, 1)), sizes)
    assert found["shape"] is None and "5 clusters are too few" in found["reason"] and found["p"] is None


def test_a_rise_has_an_exact_p():
    curves = np.tile(ramp(8, 2, 4, 0.3), (6, 1)) + np.random.default_rng(6).normal(0, 1e-3, (6, 8))
    assert depth_p_values(curves, tuple(range(1, 9)), 100, np.random.default_rng(0))[0] == pytest.approx(1 / 64)


def test_a_plateau_is_measured_against_the_ceiling(planted):
    tuned = np.tile(np.interp(np.arange(1, 33), [1, 12, 20, 32], [0.5, 0.9, 0.9, 0.6]), (66, 1))
    change = planted
    found = find_sections(tuned, change, names(FLAN_SIZES), LAYERS, 0, 200, ceiling=np.full(32, 0.92))
    assert (found["plateau"]["first"], found["plateau"]["last"]) == (12, 21)  # 0.875 in layer 21
    assert found["plateau"]["against"] == "the ceiling" and found["plateau"]["interval"] == [12, 12]


def test_plateaus_and_crossings_by_hand():
    at = (1, 2, 3, 4, 5)
    assert plateau_of(np.array([1, 0, 1, 1, 0]), np.ones(5), at) == (3, 4)
    assert plateau_of(np.array([1, 1, 1, 0, 1]), np.ones(5), at, after=3) == (5, 5)
    assert first_for_good(np.array([True, False, True, True, True]), at) == 3
    assert np.isnan(first_for_good(np.array([True, True, True, True, False]), at))


def test_the_papers_figure_by_all_definitions():
    from mossa_jax.benchmarks.published_figure import figure2

    table = figure2().set_index("definition")
    assert table.loc["the paper", "transition"] == "10 to 15"
    assert table.loc["plateau", "shared"] == "1 to 9"
    assert table.loc["crossing", "transition"] == "from 9"


def test_a_summary_needs_no_tasks():
    layers = tuple(range(1, 13))
    pretrained = np.tile(np.full(12, 0.6), (3, 1))
    tuned = pretrained + ramp(12, 4, 6, 0.3)
    found = summary_sections(pretrained, tuned, layers)
    assert found["parting"] == [5, 6] and found["own_share"] == pytest.approx(1.0)
