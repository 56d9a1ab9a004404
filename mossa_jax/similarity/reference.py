"""Float64 NumPy reference of linear CKA: slow, explicit, written from the definitions rather than closed forms."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def _grams(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    return x @ x.T, y @ y.T


def biased(x: Float[np.ndarray, "n Dx"], y: Float[np.ndarray, "n Dy"]) -> float:
    """Computes biased linear CKA from doubly centred Gram matrices.

    References:
      Kornblith et al. 2019, "Similarity of neural network representations revisited".
    """
    n = len(x)
    centring = np.eye(n) - 1 / n
    k, m = (centring @ a @ centring for a in _grams(x, y))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def u_centre(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Returns the U-centred Gram matrix, whose diagonal is zero.

    References:
      Szekely and Rizzo 2014, "Partial distance correlation with methods for dissimilarities".
    """
    n = len(gram)
    gram = gram - np.diag(np.diag(gram))
    rows = gram.sum(0) / (n - 2)
    out = gram - rows[:, None] - rows[None, :] + gram.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(out, 0)
    return out


def debiased(x: Float[np.ndarray, "n Dx"], y: Float[np.ndarray, "n Dy"]) -> float:
    """Computes debiased linear CKA: the cosine of the U-centred Gram matrices."""
    k, m = (u_centre(a) for a in _grams(x, y))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def jackknife(
    x: Float[np.ndarray, "n Dx"], y: Float[np.ndarray, "n Dy"], estimator: str
) -> tuple[Float[np.ndarray, " n"], float]:
    """Returns the values with each row left out, recomputed one by one ([n]), and the jackknife standard error."""
    compute = {"biased": biased, "debiased": debiased}[estimator]
    n = len(x)
    values = np.array([compute(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(n)])
    return values, float(np.sqrt((n - 1) / n * np.square(values - values.mean()).sum()))
