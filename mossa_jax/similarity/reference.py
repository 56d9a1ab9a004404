"""Float64 NumPy reference of linear CKA: slow, explicit, written from the definitions rather than closed forms."""

import numpy as np


def _grams(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    return x @ x.T, y @ y.T


def biased(x: np.ndarray, y: np.ndarray) -> float:
    """Biased linear CKA (Kornblith et al. 2019) of [n, D_x] and [n, D_y] from doubly centred Gram matrices."""
    n = len(x)
    centring = np.eye(n) - 1 / n
    k, m = (centring @ a @ centring for a in _grams(x, y))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def u_centre(gram: np.ndarray) -> np.ndarray:
    """U-centred [n, n] Gram matrix with zero diagonal (Szekely and Rizzo 2014)."""
    n = len(gram)
    gram = gram - np.diag(np.diag(gram))
    rows = gram.sum(0) / (n - 2)
    out = gram - rows[:, None] - rows[None, :] + gram.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(out, 0)
    return out


def debiased(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased linear CKA of [n, D_x] and [n, D_y]: cosine of the U-centred Gram matrices."""
    k, m = (u_centre(a) for a in _grams(x, y))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def jackknife(x: np.ndarray, y: np.ndarray, estimator: str) -> tuple[np.ndarray, float]:
    """Values with each row left out, recomputed one by one ([n]), and the jackknife standard error."""
    compute = {"biased": biased, "debiased": debiased}[estimator]
    n = len(x)
    values = np.array([compute(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(n)])
    return values, float(np.sqrt((n - 1) / n * np.square(values - values.mean()).sum()))
