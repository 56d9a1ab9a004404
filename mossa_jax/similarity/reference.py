"""Float64 NumPy reference of linear CKA: slow, explicit, written from the definitions rather than closed forms."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def _grams(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the Gram matrices of the centred rows, two of [n, n] float64."""
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    # Centred before the product: entries of the Gram matrix of uncentred rows would be mostly offset.
    x, y = x - x.mean(0), y - y.mean(0)
    return x @ x.T, y @ y.T


def biased(x: Float[np.ndarray, "n Dx"], y: Float[np.ndarray, "n Dy"]) -> float:
    """Computes biased linear CKA from doubly centred Gram matrices.

    Args:
      x: [n, Dx] real rows.
      y: [n, Dy] real rows, paired with those of `x`.

    Returns:
      The value in float64, between 0 and 1.

    References:
      Kornblith et al. 2019, "Similarity of neural network representations revisited", equations 3 and 4.
    """
    n = len(x)
    # [n, n], the H of the paper. Rows are centred already, so H K H equals K up to rounding; it is written out because
    # the definition has it.
    centring = np.eye(n) - 1 / n
    k, m = (centring @ a @ centring for a in _grams(x, y))
    # The factor 1 / (n - 1)^2 of each HSIC cancels in the ratio.
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def u_centre(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Returns the U-centred Gram matrix, whose diagonal is zero.

    Args:
      gram: [n, n] float64, symmetric, n >= 3. Its diagonal is ignored.

    References:
      Szekely and Rizzo 2014, "Partial distance correlation with methods for dissimilarities".
    """
    n = len(gram)
    # The unbiased estimate never uses K_ii.
    gram = gram - np.diag(np.diag(gram))
    # With these divisors every row of the result sums to zero over its n - 1 off-diagonal entries.
    rows = gram.sum(0) / (n - 2)
    out = gram - rows[:, None] - rows[None, :] + gram.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(out, 0)
    return out


def debiased(x: Float[np.ndarray, "n Dx"], y: Float[np.ndarray, "n Dy"]) -> float:
    """Computes debiased linear CKA: the cosine of the U-centred Gram matrices; n >= 4."""
    # Each inner product is n (n - 3) times the unbiased HSIC of Song et al. 2012, equation 5; the factor cancels.
    k, m = (u_centre(a) for a in _grams(x, y))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def jackknife(
    x: Float[np.ndarray, "n Dx"], y: Float[np.ndarray, "n Dy"], estimator: str
) -> tuple[Float[np.ndarray, " n"], float]:
    """Computes the jackknife by brute force.

    Returns:
      The values with each row left out, recomputed one by one, [n] float64; and the jackknife standard error.
    """
    compute = {"biased": biased, "debiased": debiased}[estimator]
    n = len(x)
    # Each sample of n - 1 rows is centred on its own mean, inside `compute`.
    values = np.array([compute(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(n)])
    return values, float(np.sqrt((n - 1) / n * np.square(values - values.mean()).sum()))


def projected(gram: Float[np.ndarray, "n n"], items: np.ndarray) -> Float[np.ndarray, "n n"]:
    """Takes the best additive part `a_i + a_j` out of a Gram matrix over the pairs of rows of different items.

    Args:
      gram: [n, n] float64, symmetric.
      items: [n] ids.

    Returns:
      [n, n], zero on pairs of one item; with one row per item the U-centred matrix.
    """
    rows, columns = np.nonzero(np.triu(items[:, None] != items[None, :], 1))
    # One equation per pair and one unknown per row, solved by least squares.
    design = np.zeros((len(rows), len(gram)))
    design[np.arange(len(rows)), rows] = design[np.arange(len(rows)), columns] = 1
    wanted = gram[rows, columns]
    rest = wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    out = np.zeros_like(gram)
    out[rows, columns] = out[columns, rows] = rest
    return out


def debiased_by_items(x: Float[np.ndarray, "n Dx"], y: Float[np.ndarray, "n Dy"], items: np.ndarray) -> float:
    """Computes debiased linear CKA from pairs of rows of different items alone: the cosine of both projections."""
    k, m = (projected(a, np.asarray(items)) for a in _grams(x, y))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def item_jackknife(
    x: Float[np.ndarray, "n Dx"], y: Float[np.ndarray, "n Dy"], items: np.ndarray, estimator: str
) -> tuple[Float[np.ndarray, " m"], float]:
    """Leaves out one item at a time by brute force; values in the order of the sorted ids, and the standard error."""

    def compute(rows: np.ndarray) -> float:
        return biased(x[rows], y[rows]) if estimator == "biased" else debiased_by_items(x[rows], y[rows], items[rows])

    items = np.asarray(items)
    values = np.array([compute(np.flatnonzero(items != item)) for item in np.unique(items)])
    return values, float(np.sqrt((len(values) - 1) / len(values) * np.square(values - values.mean()).sum()))
