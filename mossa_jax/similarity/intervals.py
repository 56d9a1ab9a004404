"""Confidence intervals of CKA from the exact leave-one-out jackknife.

Rows are never resampled with replacement: copies of a row enter the off-diagonal pairs and undo the debiasing.
"""

import numpy as np
from scipy import stats

from mossa_jax.similarity.estimators import ratio

LEVEL = 0.95


def jackknife_error(value: np.ndarray, whole: tuple, left_out: tuple) -> np.ndarray:
    """Jackknife standard error of `xy / sqrt(xx yy)`.

    Args:
        value: [...] the ratio of all rows.
        whole: `(xy, xx, yy)`, each [...], of all rows.
        left_out: the same three with each row left out, each [..., n].

    Returns:
        [...] standard errors, finite wherever `value` is.
    """
    n = left_out[0].shape[-1]
    xy, xx, yy = (np.where(np.isfinite(value), w, 1.0)[..., None] for w in whole)
    # Where one row carries a state, what is left without it may have no ratio: linearise it there.
    floor = 1e-6
    steady = (left_out[1] > floor * xx) & (left_out[2] > floor * yy)
    exact = ratio(left_out[0], np.where(steady, left_out[1], 1.0), np.where(steady, left_out[2], 1.0))
    slope = (left_out[0] - xy) / np.sqrt(xx * yy) - xy / np.sqrt(xx * yy) / 2 * (
        (left_out[1] - xx) / xx + (left_out[2] - yy) / yy
    )
    linear = value[..., None] + slope
    use_linear = ~steady.all(-1, keepdims=True)
    replicates = np.where(use_linear, linear, exact)
    spread = np.square(replicates - replicates.mean(-1, keepdims=True)).sum(-1)
    return np.where(np.isfinite(value), np.sqrt((n - 1) / n * spread), np.nan)


def interval(value: np.ndarray, error: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval with Student's quantile; it contains the value."""
    reach = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    return value - reach, value + reach
