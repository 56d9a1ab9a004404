"""Linear CKA as it is commonly written, each procedure plainly; the float64 oracles are among them.

Shape letters: n rows, D width of the states, L layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def feature_float64(x: np.ndarray, y: np.ndarray) -> float:
    """Computes biased CKA as the procedure of the MOSSA paper does: in float64 NumPy, in feature space, pair by pair.

    Args:
      x: [n, D] states.
      y: [n, D'] states of the same rows.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(x.T @ y) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def gram_float32(x: np.ndarray, y: np.ndarray) -> float:
    """Computes biased CKA by a widely copied recipe: Gram matrices of raw float32 rows, centred afterwards.

    Args:
      x: [n, D] float32 states.
      y: [n, D'] float32 states of the same rows.
    """

    def centred(gram: np.ndarray) -> np.ndarray:
        means = gram.mean(0)
        means = means - means.mean() / 2
        return gram - means[:, None] - means[None, :]

    # [n, n] each.
    k, m = centred(x @ x.T), centred(y @ y.T)
    return float(k.ravel() @ m.ravel() / (np.linalg.norm(k) * np.linalg.norm(m)))


def debiased_float64(x: np.ndarray, y: np.ndarray) -> float:
    """Computes debiased CKA in float64 and in feature space: the oracle of that estimator, for n well above 4.

    Args:
      x: [n, D] states.
      y: [n, D'] states of the same rows.
    """
    n = len(x)
    x, y = x.astype(np.float64), y.astype(np.float64)
    x, y = x - x.mean(0), y - y.mean(0)

    def inner(u: np.ndarray, v: np.ndarray) -> float:
        r, s = np.square(u).sum(1), np.square(v).sum(1)
        h = np.square(u.T @ v).sum()
        return float(h - n / (n - 2) * (r @ s) + r.sum() * s.sum() / ((n - 1) * (n - 2)))

    return inner(x, y) / np.sqrt(inner(x, x) * inner(y, y))


ORACLES = {"biased": feature_float64, "debiased": debiased_float64}
"""Estimator -> its value in float64."""


def torch_features(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Computes biased CKA in torch by hand: centred first, in feature space, in the dtype of the rows.

    Args:
      x: [n, D] states.
      y: [n, D'] states of the same rows.
    """
    import torch

    x, y = x - x.mean(0), y - y.mean(0)
    norms = torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)
    return torch.linalg.norm(x.T @ y) ** 2 / norms


def torch_matrix(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Computes biased CKA of all layers against all layers: Gram matrices of centred rows, then one product.

    Args:
      x: [L, n, D] states of one model.
      y: [L', n, D'] states of the other.

    Returns:
      [L, L'] values.
    """
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    # [L, n * n] each.
    k, m = (a.bmm(a.transpose(1, 2)).flatten(1) for a in (x, y))
    return k @ m.T / k.norm(dim=1)[:, None] / m.norm(dim=1)[None, :]
