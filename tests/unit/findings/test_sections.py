"""The rule for shared, transition and refinement layers, on planted curves."""

import numpy as np
import pytest

from mossa_jax.findings.sections import fit_ramp, sections_of
from tests.support.planted import planted_differences

RUNS = 40


def layer_numbers(layers):
    return tuple(range(1, layers + 1))


@pytest.mark.parametrize(("tasks", "layers", "breaks"), [(25, 8, (3, 5)), (53, 32, (9, 15)), (12, 32, (9, 15))])
def test_planted_breaks_are_found_within_one_layer(tasks, layers, breaks):
    good = 0
    for seed in range(RUNS):
        d = planted_differences(np.random.default_rng(seed), tasks, layers, breaks)
        sections = sections_of(d, layer_numbers(layers), seed=seed, draws=200)
        near = sections["found"] and abs(sections["shared"][1] - breaks[0]) <= 1
        good += near and abs(sections["transition"][1] - breaks[1]) <= 1
    assert good >= 0.95 * RUNS


@pytest.mark.parametrize(("tasks", "layers"), [(25, 8), (53, 32), (7, 8)])
def test_no_effect_gives_no_transition(tasks, layers):
    false = sum(
        sections_of(
            planted_differences(np.random.default_rng(1000 + seed), tasks, layers, None),
            layer_numbers(layers),
            seed=seed,
            draws=200,
        )["found"]
        for seed in range(RUNS)
    )
    assert false <= 0.05 * RUNS


def test_a_constant_gain_is_no_transition():
    """Tuned is above pre-trained by the same amount everywhere: a level, not a rise."""
    d = 0.3 + 0.02 * np.random.default_rng(0).normal(size=(20, 12))
    sections = sections_of(d, layer_numbers(12), draws=300)
    assert not sections["found"] and "no rise" in sections["reason"]


def test_a_fall_is_no_transition():
    d = planted_differences(np.random.default_rng(0), 20, 12, (4, 8), rise=-0.3)
    assert not sections_of(d, layer_numbers(12), draws=300)["found"]


def test_the_fit_is_the_best_of_all_pairs():
    """The reference is an exhaustive search with numpy's least squares."""
    curve = np.array([-0.02, -0.01, -0.04, 0.01, 0.12, 0.16, 0.27, 0.25, 0.26])
    at = np.arange(1, 10)
    best = (np.inf, None)
    for p in at:
        for q in at[at > p]:
            design = np.column_stack([np.ones(9), np.clip((at - p) / (q - p), 0, 1)])
            levels = np.linalg.lstsq(design, curve, rcond=None)[0]
            error = ((design @ levels - curve) ** 2).sum()
            if error < best[0]:
                best = (error, (p, q, levels[0], levels.sum()))
    fit = fit_ramp(np.ones((1, 9)), curve[None], tuple(at))
    p, q, before, after = best[1]
    assert (fit["last_shared"][0], fit["last_transition"][0]) == (p, q)
    np.testing.assert_allclose([fit["before"][0], fit["after"][0]], [before, after], atol=1e-12)


def test_undefined_cells_are_left_out():
    """Neither an undefined layer nor scattered holes move the breaks, since the planted curve has no noise."""
    ramp = np.clip((np.arange(1, 11) - 3) / 4, 0, 1)
    d = np.tile(0.3 * ramp, (8, 1)) + 1e-6 * np.random.default_rng(0).normal(size=(8, 10))
    d[:, 8] = np.nan
    d[2, :3] = d[5, 6:8] = np.nan
    sections = sections_of(d, layer_numbers(10), draws=100)
    assert (sections["shared"], sections["transition"], sections["refinement"]) == ([1, 3], [4, 7], [8, 10])
    assert sections["before"]["level"] == pytest.approx(0.0, abs=1e-4)
    assert sections["after"]["level"] == pytest.approx(0.3, abs=1e-4)


def test_a_sharp_step_in_the_smallest_network_is_one_transition_layer():
    d = np.tile([0.0, 0.0, 0.4, 0.4], (9, 1)) + 1e-4 * np.random.default_rng(0).normal(size=(9, 4))
    sections = sections_of(d, layer_numbers(4), draws=100)
    assert (sections["shared"], sections["transition"], sections["refinement"]) == ([1, 2], [3, 3], [4, 4])


@pytest.mark.parametrize(("shape", "word"), [((5, 8), "tasks"), ((20, 3), "layers"), ((0, 8), "layers")])
def test_too_little_data_gives_a_reason(shape, word):
    sections = sections_of(np.ones(shape), layer_numbers(shape[1]), draws=50)
    assert not sections["found"] and word in sections["reason"] and sections["p"] is None


def test_crossing_is_the_first_layer_that_stays_above():
    d = np.tile([-0.1, 0.05, -0.1, -0.05, 0.02, 0.2, 0.3, 0.3], (8, 1))
    d = d + 1e-6 * np.random.default_rng(0).normal(size=d.shape)
    assert sections_of(d, layer_numbers(8), draws=50)["crossing"]["layer"] == 5


def test_break_intervals_hold_the_planted_breaks():
    """Percentile intervals of discrete breaks are conservative, so nearly all must hold the truth."""
    held = 0
    for seed in range(RUNS):
        d = planted_differences(np.random.default_rng(seed), 15, 16, (5, 10), noise=0.15)
        sections = sections_of(d, layer_numbers(16), seed=seed, draws=200)
        held += sections["start"][0] <= 6 <= sections["start"][1] and sections["end"][0] <= 10 <= sections["end"][1]
    assert held >= 0.85 * RUNS
