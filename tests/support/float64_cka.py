"""Linear CKA in float64 from the textbook formulas, independent of the library's own reference."""

import numpy as np


def biased(x: np.ndarray, y: np.ndarray) -> float:
    """|Yc' Xc|^2 / (|Xc' Xc| |Yc' Yc|), Kornblith et al. 2019, equation of section 3."""
    x, y = (np.asarray(z, np.float64) - np.asarray(z, np.float64).mean(0) for z in (x, y))
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def debiased(x: np.ndarray, y: np.ndarray) -> float:
    """Ratio of the unbiased HSIC estimates of Song et al. 2012, equation 5."""
    x, y = (np.asarray(z, np.float64) - np.asarray(z, np.float64).mean(0) for z in (x, y))
    n, one = len(x), np.ones(len(x))

    def hsic(k, m):
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        terms = np.trace(k @ m), (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)), one @ k @ m @ one
        return (terms[0] + terms[1] - 2 / (n - 2) * terms[2]) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return float(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


ESTIMATORS = {"biased": biased, "debiased": debiased}
