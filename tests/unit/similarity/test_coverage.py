"""Intervals cover a known population value as often as they say: 93 to 97 % of 1,000 trials, in four families."""

import numpy as np
import pytest

from mossa_jax.similarity import compare_states

TRIALS = 1000


def family(n, d, rank, noise, tail, rng):
    """A sampler of pairs of [n, d] states and the CKA of their population covariances."""
    spectrum = 1 / np.sqrt(np.arange(1, rank + 1))[:, None]
    first, second = (rng.normal(size=(rank, d)).astype(np.float32) * spectrum.astype(np.float32) for _ in range(2))
    shared = rank // 2
    cross = np.linalg.norm(first[:shared].T @ second[:shared]) ** 2
    own = [np.linalg.norm(a.T @ a + noise**2 * np.eye(d)) for a in (first, second)]

    def sample():
        factors = rng.standard_normal((2, n, rank), np.float32)
        factors[1, :, :shared] = factors[0, :, :shared]
        rows = np.stack([factors[0] @ first, factors[1] @ second])
        rows += np.float32(noise) * rng.standard_normal((2, n, d), np.float32)
        # Heavy tails: a row's own scale, Student's t of 8 degrees of freedom, the same in both states.
        return rows * np.sqrt(8 / rng.chisquare(8, size=(n, 1))).astype(np.float32) if tail else rows

    return sample, cross / (own[0] * own[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "n, d, rank, noise, tail",
    [(200, 512, 8, 0.5, False), (250, 4096, 60, 2.0, False), (1000, 64, 64, 1.0, False), (400, 128, 16, 0.7, True)],
    ids=["low-rank", "wide", "tall", "heavy-tailed"],
)
def test_intervals_cover(n, d, rank, noise, tail):
    rng = np.random.default_rng(7)
    sample, truth = family(n, d, rank, noise, tail, rng)
    found = []
    for _ in range(TRIALS // 20):
        states = np.stack([sample() for _ in range(20)], 1)
        found.append(compare_states(states, np.ones(n, bool), [(0, 1)]))
    value, low, high = (np.concatenate([getattr(f, key)[0] for f in found]) for key in ("value", "low", "high"))
    # The biased estimator aims at its own expectation at this n, the debiased one at the population.
    target = np.array([value[:, 0].mean(), truth])
    cover = ((low <= target) & (target <= high)).mean(0)
    print(f"n={n} d={d} truth {truth:.3f} mean {value.mean(0)} cover {cover}")
    assert (0.93 <= cover).all() and (cover <= 0.97).all(), cover
