"""Resampling over tasks, the unit of every claim: sign flips, permutations, bootstrap intervals.

Rows are never resampled here: a row bootstrap puts copies into off-diagonal pairs and undoes the debiasing of
CKA.
"""

import numpy as np
from scipy import stats


def sign_table(tasks: int, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Signs [draws, tasks] of +1 and -1 for a sign-flip test, and whether they are all there are.

    All 2^tasks combinations when these are no more than `draws` (the test is then exact), random ones
    otherwise.
    """
    if tasks < 31 and 2**tasks <= draws:
        codes = np.arange(2**tasks)[:, None] >> np.arange(tasks)[None, :]
        return 1.0 - 2.0 * (codes & 1), True
    return rng.choice([-1.0, 1.0], size=(draws, tasks)), False


def p_value(observed: float, null: np.ndarray, exact: bool) -> float:
    """Share of the null at or above the observed value; the observed counts as a draw unless exact.

    Phipson and Smyth 2010, "Permutation p-values should never be zero".
    """
    reached = int((null >= observed - 1e-12 * max(1.0, abs(observed))).sum())
    return reached / null.size if exact else (reached + 1) / (null.size + 1)


def sign_flip(values: np.ndarray, draws: int, rng: np.random.Generator) -> float:
    """Two-sided p value of "the mean over tasks is zero", by flipping signs of tasks.

    Args:
        values: Float array [tasks], one paired difference per task; NaN are left out.
        draws: Number of random flips where full enumeration is larger.
        rng: Source of randomness.

    Returns:
        The p value, or NaN with fewer than two defined tasks. Fisher's randomisation test for pairs.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if values.size < 2:
        return float("nan")
    signs, exact = sign_table(values.size, draws, rng)
    return p_value(abs(values.mean()), np.abs(signs @ values) / values.size, exact)


def interval_of_mean(values: np.ndarray, draws: int, rng: np.random.Generator, level: float = 0.95) -> tuple:
    """Expanded percentile bootstrap interval of a mean over tasks.

    The percentile interval is too narrow with few tasks; its level is widened so that for normal data it
    matches the t interval (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.4).

    Args:
        values: Float array [tasks]; NaN are left out.
        draws: Number of resamples of tasks.
        rng: Source of randomness.
        level: Coverage aimed at.

    Returns:
        `(low, high)`, both NaN with fewer than three defined tasks.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    n = values.size
    if n < 3:
        return float("nan"), float("nan")
    means = values[rng.integers(0, n, size=(draws, n))].mean(1)
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.5 + level / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def spearman(x: np.ndarray, y: np.ndarray, draws: int, rng: np.random.Generator) -> tuple[float, float, int]:
    """Rank correlation over tasks with a two-sided permutation p value.

    Args:
        x: Float array [tasks].
        y: Float array [tasks]; pairs with an undefined side are left out.
        draws: Number of permutations.
        rng: Source of randomness.

    Returns:
        `(rho, p, n)`; rho and p are NaN with fewer than five pairs or when a side does not vary.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    keep = np.isfinite(x) & np.isfinite(y)
    n = int(keep.sum())
    if n < 5 or np.ptp(x[keep]) == 0 or np.ptp(y[keep]) == 0:
        return float("nan"), float("nan"), n
    a, b = (stats.rankdata(side[keep]) - (n + 1) / 2 for side in (x, y))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    null = np.array([abs(a @ rng.permutation(b)) for _ in range(draws)]) / scale
    rho = float(a @ b / scale)
    return rho, p_value(abs(rho), null, exact=False), n
