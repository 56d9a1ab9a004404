"""The principal plane against singular values, and states without a map."""

import numpy as np
import pytest

from mossa_jax.similarity.maps import neighbour_map, principal_plane


def groups(seed=0, n=40, width=30):
    """Three far groups of n rows under an offset."""
    rng = np.random.default_rng(seed)
    centres = 20 * rng.normal(size=(3, width))
    return (np.repeat(centres, n, axis=0) + rng.normal(size=(3 * n, width)) + 500).astype(np.float32)


def test_plane_is_that_of_the_singular_vectors():
    points = groups()
    plane, shares = principal_plane(points)
    centred = points.astype(np.float64) - points.astype(np.float64).mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    for axis in range(2):
        expected = u[:, axis] * s[axis]
        np.testing.assert_allclose(plane[:, axis] * np.sign(plane[0, axis] * expected[0]), expected, atol=1e-8)
    np.testing.assert_allclose(shares, s[:2] ** 2 / (s**2).sum())


@pytest.mark.parametrize("points", [np.full((30, 4), 7.0), np.random.default_rng(0).normal(size=(3, 4))])
def test_rows_that_do_not_vary_or_are_few_have_no_map(points):
    plane, shares = principal_plane(points)
    assert np.isnan(plane).all() and plane.shape == (len(points), 2) and np.isnan(shares).all()
    assert np.isnan(neighbour_map(points, 0)).all()
