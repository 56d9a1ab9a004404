"""The permutation null: exact products, exact means, honest p-values."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mossa_jax.similarity import compare_states, null, reference


@pytest.mark.parametrize("n, d", [(8, 64), (30, 4)])
def test_both_routes_give_the_permuted_products(n, d):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, n, d))
    x -= x.mean(1, keepdims=True)
    norms = np.square(x).sum(2)
    shuffles = rng.permuted(np.tile(np.arange(n), (5, 1)), axis=1)
    found = null.permuted_products(
        jnp.asarray(x, jnp.float32), jnp.asarray(norms, jnp.float32), jnp.asarray(shuffles), [(0, 1)]
    )
    k, m = (a @ a.T for a in x)
    for i, p in enumerate(shuffles):
        expected = (k * m[np.ix_(p, p)]).sum(), norms[0] @ norms[1][p]
        assert np.asarray(found[0, :, i]) == pytest.approx(expected, rel=1e-5)


def test_permutations_are_of_the_kept_rows_and_uniform():
    valid = np.array([True, False, True, True, True, False])
    kept = valid & (np.arange(6) != 3)
    ranks = null.draw_ranks(valid, 3000, seed=0)
    found = np.asarray(null.permutations(jnp.asarray(ranks), jnp.asarray(kept)))
    assert (np.sort(found, 1) == np.arange(6)).all()
    lines, counts = np.unique(found[:, kept], axis=0, return_counts=True)
    assert {tuple(line) for line in lines} == set(itertools.permutations([0, 2, 4]))
    assert stats.chisquare(counts).pvalue > 1e-3


def test_null_mean_is_the_mean_over_every_pairing():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    found = compare_states(np.stack([x, y])[:, None], np.ones(6, bool), [(0, 1)])
    pairings = [list(p) for p in itertools.permutations(range(6))]
    for e, estimator in enumerate((reference.biased, reference.debiased)):
        exact = np.mean([estimator(x, y[p]) for p in pairings])
        assert found.null_mean[0, 0, e] == pytest.approx(exact, abs=1e-6)


def test_p_is_uniform_for_independent_and_small_for_dependent_states():
    rng = np.random.default_rng(5)
    layers, n, d = 200, 16, 6
    states = rng.normal(size=(3, layers, n, d)).astype(np.float32)
    states[2] += states[0]
    found = compare_states(states, np.ones(n, bool), [(0, 1), (0, 2)], permutations=49, seed=1)
    for e in range(2):
        # Spread the ties of the 1/50 grid, then compare with the uniform law.
        spread = found.p[0, :, e] - rng.uniform(size=layers) / 50
        assert stats.kstest(spread, "uniform").pvalue > 1e-3
    assert (found.p[1] <= 0.04).mean() > 0.9
    again = compare_states(states, np.ones(n, bool), [(0, 1), (0, 2)], permutations=49, seed=1)
    np.testing.assert_array_equal(found.p, again.p)
    other = compare_states(states, np.ones(n, bool), [(0, 1), (0, 2)], permutations=49, seed=2)
    assert (found.p != other.p).any()


def test_p_counts_as_the_definition_does():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 10, 5)).astype(np.float32)
    valid = np.ones(10, bool)
    found = compare_states(np.stack([x, y])[:, None], valid, [(0, 1)], permutations=60, seed=3)
    shuffles = null.permutations(jnp.asarray(null.draw_ranks(valid, 60, 3)), jnp.asarray(valid))
    for e, estimator in enumerate((reference.biased, reference.debiased)):
        reached = sum(estimator(x, y[p]) >= estimator(x, y) for p in np.asarray(shuffles))
        assert 5 < reached < 60
        assert found.p[0, 0, e] == pytest.approx((1 + reached) / 61)


def test_without_permutations_there_is_no_p_but_a_null_mean():
    states = np.random.default_rng(0).normal(size=(2, 1, 10, 5)).astype(np.float32)
    found = compare_states(states, np.ones(10, bool), [(0, 1)])
    assert np.isnan(found.p).all() and np.isfinite(found.null_mean).all() and (found.undefined == "").all()


FAMILIES = {
    "tall": lambda rng, n: rng.normal(size=(100, n, 6)),
    "wide": lambda rng, n: rng.normal(size=(100, n, 200)),
    "heavy-tailed": lambda rng, n: rng.standard_t(3, size=(100, n, 1)) * rng.normal(size=(100, n, 12)),
    "few directions": lambda rng, n: 9 + rng.exponential(size=(100, n, 3)) @ rng.normal(size=(100, 3, 24)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_p_is_uniform_without_an_effect(name):
    """3,000 p-values of 199 permutations: Kolmogorov and Smirnov at 1 %, and the share below 0.05 and 0.01."""
    rng = np.random.default_rng(sum(map(ord, name)))
    n, found = 30, []
    for seed in range(30):
        states = np.stack([FAMILIES[name](rng, n) for _ in range(2)]).astype(np.float32)
        found.append(compare_states(states, np.ones(n, bool), [(0, 1)], permutations=199, seed=seed).p[0])
    p = np.concatenate(found)
    # p lies on the grid 1/200 .. 1, equally often on each point: spread over the cell below it, it is uniform.
    spread = p - rng.uniform(size=p.shape) / 200
    for e in range(2):
        test = stats.kstest(spread[:, e], "uniform")
        print(f"{name}: KS p {test.pvalue:.3f}, below 0.05 {(p[:, e] <= 0.05).mean():.4f}")
        assert test.pvalue > 0.01
        for level in (0.05, 0.01):
            assert abs((p[:, e] <= level).mean() - level) < 3 * np.sqrt(level * (1 - level) / len(p))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_p_falls_as_the_effect_grows(name):
    rng = np.random.default_rng(1)
    n, power = 60, []
    for strength in (0.0, 0.5, 1.0, 3.0):
        x, own = (FAMILIES[name](rng, n) for _ in range(2))
        states = np.stack([x, own + strength * x]).astype(np.float32)
        p = compare_states(states, np.ones(n, bool), [(0, 1)], permutations=199).p[0]
        power.append((p <= 0.05).mean(0))
    print(name, np.round(power, 2).tolist())
    assert (p == 1 / 200).mean() > 0.95
    # Within the noise of 100 layers.
    assert (np.diff(power, axis=0) > -0.05).all() and (power[0] < 0.15).all() and (power[-1] > 0.98).all()
