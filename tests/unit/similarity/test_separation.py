"""Neighbours against distances by SciPy, and probes against scikit-learn, refitted for each group that is left out."""

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.linear_model import Ridge

from mossa_jax.similarity import separation


def planted(n=60, width=20, classes=3, seed=0):
    """Rows [n, width] of three classes under a common offset, in groups of unequal size."""
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(0, 11, n))
    labels = rng.permutation(11)[groups] % classes
    points = rng.normal(size=(n, width)) * np.arange(1, width + 1) ** -0.5 + 100
    points[:, 0] += 2 * labels
    return points, labels, groups


def test_neighbours_are_the_nearest_rows_of_other_groups():
    points, _, groups = planted()
    distances = np.where(groups[:, None] == groups, np.inf, cdist(points, points))
    np.testing.assert_array_equal(separation.nearest(points, groups, 4), np.argsort(distances, axis=1)[:, :4])


def test_a_row_without_other_groups_has_no_neighbours():
    points, labels, _ = planted(n=6)
    neighbours = separation.nearest(points, np.array([0, 0, 0, 0, 0, 1]), 3)
    assert (neighbours[:5] == [[5, -1, -1]] * 5).all() and sorted(neighbours[5]) != [-1, -1, -1]
    alone = separation.nearest(points, np.zeros(6, int), 3)
    assert (alone == -1).all() and (separation.vote(alone, labels, 3) == -1).all()


def test_equal_rows_are_near_by_chance_and_not_by_their_place():
    points = np.repeat(np.random.default_rng(0).normal(size=(2, 5)) + 50, 40, axis=0)
    first = separation.nearest(points, np.arange(80), 1)[:40, 0]
    assert (first < 40).all() and len(np.unique(first)) > 1 and np.median(first) > 0
    # In row order every row but the first would have row 0 as its neighbour.
    assert (separation.nearest(points, np.arange(80), 1, seed=1)[:40, 0] != first).any()


def test_votes_are_counted_and_the_nearest_decides_a_tie():
    labels = np.array([0, 1, 1, 2, 2])
    neighbours = np.array([[0, 1, 2], [0, 1, 3], [1, 3, 4], [3, 1, -1]])
    np.testing.assert_array_equal(separation.vote(neighbours, labels, 3), [1, 0, 2, 2])


def test_probe_predicts_as_ridge_regression_refitted_without_each_group():
    points, labels, groups = planted()
    probe = separation.fit_probe(points, labels, groups, 3)
    total = np.square(points - points.mean(0)).sum()
    eye = np.eye(3)[labels]

    def refitted(share):
        outputs = np.zeros((len(points), 3))
        for group in np.unique(groups):
            rest = groups != group
            # The penalty stays that of all rows.
            model = Ridge(alpha=share * total).fit(points[rest], eye[rest])
            outputs[~rest] = model.predict(points[~rest])
        return outputs

    errors = {share: np.square(refitted(share) - eye).sum() for share in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)}
    outputs = refitted(min(errors, key=errors.get))
    np.testing.assert_allclose(probe.left_out(eye[None])[0], outputs, atol=1e-8)
    shares = np.stack([eye[groups != group].mean(0) for group in groups])
    np.testing.assert_array_equal(probe.predict(labels[None], 3)[0], (outputs / shares).argmax(1))


def test_probe_never_answers_a_class_it_has_not_seen():
    points, _, _ = planted(n=12)
    # Class 2 is group 5 alone.
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
    groups = np.array([0, 0, 1, 1, 2, 3, 3, 4, 4, 4, 5, 5])
    predicted = separation.fit_probe(points, labels, groups, 3).predict(labels[None], 3)[0]
    assert (predicted[groups == 5] != 2).all()


def test_recall_is_the_share_of_each_class():
    predicted, labels = np.array([[0, 1, 1, 0], [1, 1, 1, 1]]), np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    np.testing.assert_array_equal(separation.recall(predicted, labels, 3)[:, :2], [[0.5, 0.5], [0, 1]])
    assert np.isnan(separation.recall(predicted, labels, 3)[:, 2]).all()
