"""A few rows of states on the host, and what a random basis does to their distances."""

import jax.numpy as jnp
import numpy as np

from mossa_jax.similarity.sample import random_basis, sample_states


def test_narrow_states_come_as_they_are():
    states = np.random.default_rng(0).normal(size=(3, 2, 9, 8)).astype(np.float32)
    sample = sample_states(jnp.asarray(states), np.array([7, 2, 2]), models=2, dimensions=8, seed=0)
    np.testing.assert_array_equal(sample, states[:2][:, :, [7, 2, 2]])


def test_wide_states_are_projected_on_one_orthonormal_basis():
    states = np.random.default_rng(0).normal(size=(2, 2, 9, 64)).astype(np.float32)
    sample = sample_states(jnp.asarray(states), np.array([1, 4]), models=2, dimensions=16, seed=5)
    basis = random_basis(64, 16, 5)
    np.testing.assert_allclose(basis.T @ basis, 64 / 16 * np.eye(16), atol=1e-5)
    expected = states[:, :, [1, 4]].astype(np.float64) @ basis.astype(np.float64)
    np.testing.assert_allclose(sample, expected, rtol=1e-5, atol=1e-5)


def test_distances_keep_their_size_within_the_stated_error():
    rng = np.random.default_rng(1)
    # A heavy spectrum: the error does not depend on it.
    rows = rng.normal(size=(60, 1024)) * np.arange(1, 1025) ** -1.0
    pairs = np.triu_indices(60, 1)
    exact = np.square(rows[pairs[0]] - rows[pairs[1]]).sum(1)
    ratios = []
    for seed in range(30):
        small = rows @ random_basis(1024, 128, seed)
        ratios.append(np.square(small[pairs[0]] - small[pairs[1]]).sum(1) / exact)
    ratios = np.stack(ratios)
    stated = np.sqrt(2 * (1024 - 128) / (1024 * (128 + 2)))
    assert abs(ratios.mean() - 1) < 0.03
    assert 0.85 * stated < np.sqrt(np.square(ratios - 1).mean()) < 1.15 * stated
