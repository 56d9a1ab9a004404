"""How well groups of rows are told apart in a state: by nearest neighbours and by a linear probe.

Every prediction leaves out what the row belongs to (its item, or its task), so that rows of one passage or one task do
not recognise each other. Everything is float64 on the host, for samples of a few thousand rows.

Shape letters: n rows, P dimensions, C classes, Q label sets, k neighbours, R components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

# Squared distances below this share of the mean are rounding: the rows are equal.
_EQUAL = 1e-12

# Ridge penalties to choose from, as shares of the total variance times n.
_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)

# Components with less than this share of the largest variance are rounding.
_LOST = 1e-12


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
    distances = distances[:, order]
    k = min(k, len(points))
    columns = np.argpartition(distances, k - 1, axis=1)[:, :k]
    by_distance = np.argsort(np.take_along_axis(distances, columns, axis=1), axis=1, kind="stable")
    columns = np.take_along_axis(columns, by_distance, axis=1)
    rows = order[columns]
    return np.where(np.isfinite(np.take_along_axis(distances, columns, axis=1)), rows, -1)


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
    """A linear probe that is fitted without each group in turn: ridge regression on one column per class.

    Its outputs are divided by the classes' shares of the rows it was fitted on, so that a large class is not preferred.
    The fits are exact: with H the matrix that maps labels to fitted values, the prediction without group I is
    `Y_I - (1 - H_II)^-1 (Y_I - (H Y)_I)`.

    Attributes:
      scores: [n, R] orthonormal scores of the centred rows on their principal components.
      shrunk: [R] the share that the penalty leaves of each component. H is `1 / n + scores * shrunk @ scores^T`.
      groups: [n] the group of each row.
    """

    scores: Float[np.ndarray, "n R"]
    shrunk: Float[np.ndarray, " R"]
    groups: Int[np.ndarray, " n"]

    def predict(self, labels: Int[np.ndarray, "Q n"], classes: int) -> Int[np.ndarray, "Q n"]:
        """Predicts the class of every row by the probe that was fitted without its group.

        Args:
          labels: [Q, n] classes of the rows, 0 to `classes` - 1, for Q sets of labels.
          classes: number of classes C.

        Returns:
          [Q, n] classes.
        """
        one_hot = np.eye(classes)[labels]  # [Q, n, C]
        outputs = self.left_out(one_hot)
        _, of_row = np.unique(self.groups, return_inverse=True)
        in_group = np.zeros((int(of_row.max()) + 1, len(labels), classes))  # [groups, Q, C]
        np.add.at(in_group, of_row, one_hot.transpose(1, 0, 2))
        # [Q, n, C], rows of each class that the fit without the row's group had.
        present = one_hot.sum(1)[:, None] - in_group[of_row].transpose(1, 0, 2)
        return np.where(present > 0, outputs / np.maximum(present, 1), -np.inf).argmax(-1)

    def left_out(self, targets: Float[np.ndarray, "Q n C"]) -> Float[np.ndarray, "Q n C"]:
        """Returns what the probe that is fitted without each row's group says of the row.

        Args:
          targets: [Q, n, C] values to fit.

        Returns:
          [Q, n, C].
        """
        sets, n, classes = targets.shape
        flat = targets.transpose(1, 0, 2).reshape(n, -1)  # [n, Q C]
        weighted = self.scores * self.shrunk  # [n, R]
        errors = flat - flat.mean(0) - weighted @ (self.scores.T @ flat)
        _, of_row, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        alone = sizes[of_row] == 1
        errors[alone] /= (1 - 1 / n - (weighted * self.scores).sum(1)[alone])[:, None]
        for group in np.flatnonzero(sizes > 1):
            rows = np.flatnonzero(of_row == group)
            own = np.eye(len(rows)) - 1 / n - weighted[rows] @ self.scores[rows].T
            errors[rows] = np.linalg.solve(own, errors[rows])
        return (flat - errors).reshape(n, sets, classes).transpose(1, 0, 2)


def fit_probe(
    points: Float[np.ndarray, "n P"], labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], classes: int
) -> Probe:
    """Fits a linear probe; its penalty is the one with the least squared error on rows of groups that are left out.

    Args:
      points: [n, P] finite rows that vary.
      labels: the class of each row, 0 to `classes` - 1.
      groups: the group of each row; each is left out in turn.
      classes: number of classes.
    """
    scores, variances = _principal_scores(np.asarray(points, np.float64))  # [n, R], [R]
    one_hot = np.eye(classes)[labels][None]  # [1, n, C]
    probes = [Probe(scores, variances / (variances + share * variances.sum()), groups) for share in _PENALTIES]
    errors = [np.square(one_hot - probe.left_out(one_hot)).sum() for probe in probes]
    return probes[int(np.argmin(errors))]


def _principal_scores(points: Float[np.ndarray, "n P"]) -> tuple[Float[np.ndarray, "n R"], Float[np.ndarray, " R"]]:
    """Returns orthonormal scores of centred rows on their principal components, and the variances times n.

    They come from eigenvectors of the smaller of the two Gram matrices. Components that this loses in rounding are far
    below the smallest penalty.
    """
    points = points - points.mean(0)
    is_wide = points.shape[0] < points.shape[1]
    variances, vectors = np.linalg.eigh(points @ points.T if is_wide else points.T @ points)
    kept = variances > _LOST * variances[-1]
    variances, vectors = variances[kept], vectors[:, kept]
    return (vectors if is_wide else points @ vectors / np.sqrt(variances)), variances


def recall(predicted: Int[np.ndarray, "... n"], labels: Int[np.ndarray, "... n"], classes: int) -> np.ndarray:
    """Returns the share of each class's rows that are predicted as this class.

    Returns:
      [..., C] float64; NaN for a class without rows.
    """
    of_class = labels[..., None, :] == np.arange(classes)[:, None]  # [..., C, n]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (of_class & (predicted == labels)[..., None, :]).sum(-1) / of_class.sum(-1)
