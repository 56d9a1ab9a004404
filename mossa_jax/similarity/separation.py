"""How well groups of rows are told apart in a state: by nearest neighbours and by a linear probe.

Every prediction leaves out what the row belongs to (its item, or its task), so that rows of one passage or one task do
not recognise each other. Everything is float64 on the host, for samples of a few thousand rows.

Shape letters: n rows, P dimensions, C classes, Q label sets, k neighbours, R = min(n, P).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

# Squared distances below this share of the mean are rounding: the rows are equal.
_EQUAL = 1e-12

# Ridge penalties to choose from, as shares of the total variance times n.
_STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def nearest(
    points: Float[np.ndarray, "n P"], groups: Int[np.ndarray, " n"], k: int, seed: int = 0
) -> Int[np.ndarray, "n k"]:
    """Returns the k nearest rows of each row in Euclidean distance, among rows of other groups, nearest first.

    Args:
      points: [n, P] finite.
      groups: the group of each row, which is left out of its neighbours.
      k: neighbours; fewer where no row has as many candidates.
      seed: of the order among equal distances.

    Returns:
      [n, k] row numbers; -1 where a row has fewer candidates.
    """
    points = np.asarray(points, np.float64)
    points = points - points.mean(0)
    squares = np.square(points).sum(1)  # [n]
    distances = squares[:, None] + squares[None, :] - 2 * points @ points.T  # [n, n]
    distances[distances < _EQUAL * squares.mean()] = 0
    distances[groups[:, None] == groups[None, :]] = np.inf
    # Rows of one task stand beside each other, so equal distances in row order would favour some tasks.
    order = np.random.default_rng(seed).permutation(len(points))
    rows = order[np.argsort(distances[:, order], axis=1, kind="stable")[:, :k]]
    return np.where(np.isfinite(np.take_along_axis(distances, rows, axis=1)), rows, -1)


def vote(neighbours: Int[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, " n"]:
    """Returns the most frequent label among each row's neighbours; of equally frequent ones that of the nearest.

    Args:
      neighbours: from `nearest`.
      labels: the class of each row, 0 to `classes` - 1.
      classes: number of classes.

    Returns:
      [n] classes; -1 for a row without neighbours.
    """
    n, k = neighbours.shape
    votes = np.zeros((n, classes))
    for rank in range(k):
        rows = neighbours[:, rank]
        present = rows >= 0
        # The excess of all ranks is below one vote, and that of a nearer neighbour is above that of all farther ones.
        votes[np.flatnonzero(present), labels[rows[present]]] += 1 + 2.0 ** -(rank + 2)
    return np.where(votes.max(1) > 0, votes.argmax(1), -1)


@dataclass(frozen=True)
class Probe:
    """A linear probe that was fitted without each group in turn: ridge regression on one column per class.

    Its outputs are divided by the classes' shares of the rows it was fitted on, so that a large class is not preferred.
    The fits are exact: for a linear smoother H the prediction without group I is
    `Y_I - (1 - H_II)^-1 (Y_I - (H Y)_I)`.

    Attributes:
      smoother: [n, n] the matrix H that maps labels to fitted values with all rows present, intercept included.
      groups: [n] the group of each row.
      strength: the penalty, as a share of the total variance times n.
    """

    smoother: Float[np.ndarray, "n n"]
    groups: Int[np.ndarray, " n"]
    strength: float

    def predict(self, labels: Int[np.ndarray, "Q n"], classes: int) -> Int[np.ndarray, "Q n"]:
        """Predicts the class of every row by the probe that was fitted without its group.

        Args:
          labels: [Q, n] classes of the rows, 0 to `classes` - 1, for Q sets of labels.
          classes: number of classes C.

        Returns:
          [Q, n] classes.
        """
        one_hot = np.eye(classes)[labels]  # [Q, n, C]
        outputs = _left_out(self.smoother, one_hot, self.groups)
        _, of_row = np.unique(self.groups, return_inverse=True)
        in_group = np.zeros((int(of_row.max()) + 1, len(labels), classes))  # [groups, Q, C]
        np.add.at(in_group, of_row, one_hot.transpose(1, 0, 2))
        # [Q, n, C], rows of each class that the fit without the row's group had.
        present = one_hot.sum(1)[:, None] - in_group[of_row].transpose(1, 0, 2)
        return np.where(present > 0, outputs / np.maximum(present, 1), -np.inf).argmax(-1)


def fit_probe(
    points: Float[np.ndarray, "n P"], labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], classes: int
) -> Probe:
    """Fits a linear probe; its penalty is the one with the least squared error on rows of groups that are left out.

    Args:
      points: [n, P] finite.
      labels: the class of each row, 0 to `classes` - 1.
      groups: the group of each row; each is left out in turn.
      classes: number of classes.
    """
    points = np.asarray(points, np.float64)
    points = points - points.mean(0)
    n = len(points)
    scores, variances = _principal_scores(points)  # [n, R], [R]
    one_hot = np.eye(classes)[labels][None]  # [1, n, C]
    best, best_error = None, np.inf
    for strength in _STRENGTHS:
        shrunk = variances / (variances + max(strength * variances.sum(), np.finfo(float).tiny))  # [R]
        smoother = 1 / n + (scores * shrunk) @ scores.T  # [n, n]
        error = float(np.square(one_hot - _left_out(smoother, one_hot, groups)).sum())
        if error < best_error:
            best, best_error = Probe(smoother, groups, strength), error
    assert best is not None
    return best


def _principal_scores(points: Float[np.ndarray, "n P"]) -> tuple[Float[np.ndarray, "n R"], Float[np.ndarray, " R"]]:
    """Returns orthonormal scores of centred rows on their principal components, and the variances times n."""
    left, singular, _ = np.linalg.svd(points, full_matrices=False)
    kept = singular > 1e-10 * max(singular[0], np.finfo(float).tiny)
    return left[:, kept], np.square(singular[kept])


def _left_out(
    smoother: Float[np.ndarray, "n n"], one_hot: Float[np.ndarray, "Q n C"], groups: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "Q n C"]:
    """Returns what the probe fitted without each row's group says about the row."""
    sets, n, classes = one_hot.shape
    flat = one_hot.transpose(1, 0, 2).reshape(n, -1)  # [n, Q C]
    errors = flat - smoother @ flat
    _, of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    alone = sizes[of_row] == 1
    errors[alone] /= (1 - np.diag(smoother)[alone])[:, None]
    for group in np.flatnonzero(sizes > 1):
        rows = np.flatnonzero(of_row == group)
        own = np.eye(len(rows)) - smoother[np.ix_(rows, rows)]
        errors[rows] = np.linalg.solve(own, errors[rows])
    return (flat - errors).reshape(n, sets, classes).transpose(1, 0, 2)


def recall(predicted: Int[np.ndarray, "... n"], labels: Int[np.ndarray, "... n"], classes: int) -> np.ndarray:
    """Returns the share of each class's rows that are predicted as this class.

    Returns:
      [..., C] float64; NaN for a class without rows.
    """
    of_class = labels[..., None, :] == np.arange(classes)[:, None]  # [..., C, n]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (of_class & (predicted == labels)[..., None, :]).sum(-1) / of_class.sum(-1)
