"""t-SNE of states: what it must keep. scikit-learn counts the cores by a process of its own."""

import numpy as np
from threadpoolctl import threadpool_limits

from mossa_jax.similarity.maps import neighbour_map


def test_neighbour_map_keeps_groups_and_is_the_same_each_time():
    rng = np.random.default_rng(0)
    points = np.repeat(20 * rng.normal(size=(3, 30)), 40, axis=0) + rng.normal(size=(120, 30)) + 500
    with threadpool_limits(1):
        first, again = neighbour_map(points, seed=3), neighbour_map(points, seed=3)
    assert first.tobytes() == again.tobytes()
    distances = np.linalg.norm(first[:, None] - first[None], axis=-1) + 1e9 * np.eye(len(first))
    assert (distances.argmin(1) // 40 == np.arange(120) // 40).all()
