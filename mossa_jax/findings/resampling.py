"""Resampling over tasks, the unit of every claim: sign flips, permutations, bootstrap intervals.

Rows are never resampled here. A bootstrap of rows puts copies of a row into off-diagonal pairs, which undoes the
debiasing of CKA.
"""

from typing import TypedDict

import numpy as np
from jaxtyping import Float
from scipy import special

MIN_PAIRS = 5
"""The fewest paired differences that may carry a claim."""


class PairedChange(TypedDict):
    """The mean of paired differences over tasks, with its test.

    Attributes:
      mean: mean over tasks; NaN without any.
      low: lower end of the 95 % interval.
      high: upper end of the 95 % interval.
      p: two-sided sign-flip p value.
      n_tasks: number of tasks with a defined difference.
      positive: number of tasks that rose.
      smallest_p: the smallest p value that this many tasks can give.
      reason: why there is neither interval nor p value; empty otherwise.
    """

    mean: float
    n_tasks: int
    positive: int
    low: float
    high: float
    p: float
    smallest_p: float
    reason: str


def sign_table(tasks: int, draws: int, rng: np.random.Generator) -> tuple[Float[np.ndarray, "draws tasks"], bool]:
    """Draws the signs of a sign-flip test.

    Args:
      tasks: number of tasks.
      draws: number of random flips. If there are no more than this many combinations, all are enumerated and the test
        is exact.
      rng: source of randomness.

    Returns:
      Signs of +1 and -1, and whether they are all 2^tasks combinations.
    """
    if tasks < 31 and 2**tasks <= draws:
        codes = np.arange(2**tasks)[:, None] >> np.arange(tasks)[None, :]
        return 1.0 - 2.0 * (codes & 1), True
    return rng.choice([-1.0, 1.0], size=(draws, tasks)), False


def p_value(observed: float, null: np.ndarray, exact: bool) -> float:
    """Returns the share of the null at or above the observed value.

    Args:
      observed: the statistic of the data.
      null: the statistic of every draw, any shape.
      exact: whether `null` enumerates all cases. Otherwise the observed value counts as one more draw.

    References:
      Phipson and Smyth 2010, "Permutation p-values should never be zero".
    """
    # A tolerance, since a draw that equals the observed case may sum in another order.
    reached = int((null >= observed - 1e-12 * max(1.0, abs(observed))).sum())
    return reached / null.size if exact else (reached + 1) / (null.size + 1)


def sign_flip(values: Float[np.ndarray, " tasks"], draws: int, rng: np.random.Generator) -> float:
    """Computes the two-sided p value of "the mean over tasks is zero": Fisher's randomisation test for pairs.

    Args:
      values: one paired difference per task; NaN are left out.
      draws: number of random flips, unless all combinations are fewer.
      rng: source of randomness.

    Returns:
      The p value, or NaN with fewer than two defined tasks.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if values.size < 2:
        return float("nan")
    signs, exact = sign_table(values.size, draws, rng)
    return p_value(abs(values.mean()), np.abs(signs @ values) / values.size, exact)


def interval_of_mean(
    values: Float[np.ndarray, " tasks"], draws: int, rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Computes an expanded percentile bootstrap interval of a mean over tasks.

    With few tasks the percentile interval is too narrow. Its level is widened so that it matches the t interval for
    normal data.

    Args:
      values: one value per task; NaN are left out.
      draws: number of resamples of tasks.
      rng: source of randomness.
      level: nominal coverage.

    Returns:
      `(low, high)`, both NaN with fewer than three defined tasks.

    References:
      Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.4.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    n = values.size
    if n < 3:
        return float("nan"), float("nan")
    means = values[rng.integers(0, n, size=(draws, n))].mean(1)
    student_quantile = special.stdtrit(n - 1, 0.5 + level / 2)
    tail = special.ndtr(-np.sqrt(n / (n - 1)) * student_quantile)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_change(values: Float[np.ndarray, " tasks"], seed: int = 0, draws: int = 2000) -> PairedChange:
    """Averages paired differences over tasks, with an interval and a two-sided sign-flip p value.

    Args:
      values: tuned minus pre-trained per task, or another difference; NaN are left out.
      seed: seed of the bootstrap and of the sign flips.
      draws: number of resamples.

    Returns:
      See `PairedChange`; p value and interval are NaN with fewer than `MIN_PAIRS` tasks.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    n = values.size
    change = PairedChange(
        mean=float(values.mean()) if n else float("nan"),
        n_tasks=n,
        positive=int((values > 0).sum()),
        low=float("nan"),
        high=float("nan"),
        p=float("nan"),
        smallest_p=2.0 ** (1 - n),
        reason="",
    )
    if n < MIN_PAIRS:
        tasks = "1 task is" if n == 1 else f"{n} tasks are"
        change["reason"] = f"{tasks} too few for a claim; at least {MIN_PAIRS} are needed"
        return change
    change["low"], change["high"] = interval_of_mean(values, draws, np.random.default_rng([seed, 20]))
    change["p"] = sign_flip(values, draws, np.random.default_rng([seed, 21]))
    return change


def spearman(
    x: Float[np.ndarray, " tasks"], y: Float[np.ndarray, " tasks"], draws: int, rng: np.random.Generator
) -> tuple[float, float, int]:
    """Computes a rank correlation over tasks with a two-sided permutation p value.

    Args:
      x: one value per task.
      y: one value per task. Pairs with an undefined side are left out.
      draws: number of permutations.
      rng: source of randomness.

    Returns:
      `(rho, p, n)`; rho and p are NaN with fewer than five pairs or if a side does not vary.
    """
    from scipy.stats import rankdata

    x, y = np.asarray(x, float), np.asarray(y, float)
    keep = np.isfinite(x) & np.isfinite(y)
    n = int(keep.sum())
    if n < MIN_PAIRS or np.ptp(x[keep]) == 0 or np.ptp(y[keep]) == 0:
        return float("nan"), float("nan"), n
    a, b = (rankdata(side[keep]) - (n + 1) / 2 for side in (x, y))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    null = np.array([abs(a @ rng.permutation(b)) for _ in range(draws)]) / scale
    rho = float(a @ b / scale)
    return rho, p_value(abs(rho), null, exact=False), n
