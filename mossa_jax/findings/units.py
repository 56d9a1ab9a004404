"""Inference over units: whole clusters of tasks, or tasks where a suite has no clusters.

Tasks of one cluster share data, templates and skills, so their results are not independent. Every test, interval and
power figure of the findings therefore rests on one value per unit. A unit's value is the mean over its tasks, and the
mean over units is what is estimated: each cluster counts once, whatever its number of tasks.

Rows are never resampled here: their noise is inside the spread of the units.

Shape letters: T tasks, U units, G signs (draws of a sign-flip test).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypedDict

import numpy as np
from jaxtyping import Float
from scipy import special

from mossa_jax.tasks.folder import NO_CLUSTER

LEVEL = 0.05
"""Level of two-sided tests, before it is divided among claims; intervals are at 1 - LEVEL."""

POWER = 0.8
"""Power at which the least detectable effect is stated."""

MIN_UNITS = 6
"""The fewest units that may carry a test: two-sided sign flips of five units cannot fall below p = 0.0625."""

MIN_UNITS_FOR_INTERVAL = 3

# All sign combinations are enumerated up to 2^12, the twelve clusters of FLAN 2021: the test is then exact.
_EXACT = 4096


class Estimate(TypedDict):
    """The mean of one figure per task, with its test over units.

    Attributes:
      mean: over units; NaN without any.
      low: lower end of the 95 % t interval; NaN with fewer than `MIN_UNITS_FOR_INTERVAL` units.
      high: upper end.
      p: two-sided p value of sign flips of whole units; NaN with fewer than `MIN_UNITS` units.
      robust_mean: mean over tasks without the lowest and the highest fifth.
      unit: "clusters" or "tasks".
      n_units: number of units.
      n_tasks: number of tasks with a value.
      rises: number of tasks with a value above zero.
      falls: number of tasks with a value below zero.
      least_p: the least p value that so many units can give.
      least_effect: the effect that a two-sided test at `LEVEL` finds with power `POWER`, given the spread of the units.
      reason: why there is no p value; empty otherwise.
    """

    mean: float
    low: float
    high: float
    p: float
    robust_mean: float
    unit: str
    n_units: int
    n_tasks: int
    rises: int
    falls: int
    least_p: float
    least_effect: float
    reason: str


def unit_name(clusters: Sequence[str]) -> str:
    """Returns "tasks" if the suite has no clusters, and "clusters" otherwise."""
    return "tasks" if set(clusters) <= {NO_CLUSTER, ""} else "clusters"


def unit_codes(clusters: Sequence[str]) -> np.ndarray:
    """Numbers the units: returns the unit of each task, [T] int64 from 0. A task without a cluster is a unit alone."""
    return _unit_codes(tuple(clusters))


@lru_cache(maxsize=64)
def _unit_codes(clusters: tuple[str, ...]) -> np.ndarray:
    names = [f"\0{index}" if cluster in (NO_CLUSTER, "") else str(cluster) for index, cluster in enumerate(clusters)]
    codes = np.unique(np.asarray(names, object).astype(str), return_inverse=True)[1]
    codes.flags.writeable = False
    return codes


def unit_means(values: Float[np.ndarray, "T ..."], clusters: Sequence[str]) -> Float[np.ndarray, "U ..."]:
    """Averages the defined values of each unit's tasks; NaN where a unit has none."""
    values, codes = np.asarray(values, float), unit_codes(clusters)
    count = int(codes.max()) + 1 if len(codes) else 0
    finite = np.isfinite(values)
    totals, counts = np.zeros((count, *values.shape[1:])), np.zeros((count, *values.shape[1:]))
    np.add.at(totals, codes, np.where(finite, values, 0.0))
    np.add.at(counts, codes, finite)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def t_interval(values: Float[np.ndarray, " U"], level: float = 1 - LEVEL) -> tuple[float, float]:
    """Computes the t interval of a mean over units.

    Bootstrap intervals of three to eleven values cover less than they say, whatever their kind (docs/statistics.md).

    Args:
      values: one value per unit; NaN are left out.
      level: nominal coverage.

    Returns:
      `(low, high)`, both NaN with fewer than `MIN_UNITS_FOR_INTERVAL` units.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    n = values.size
    if n < MIN_UNITS_FOR_INTERVAL:
        return float("nan"), float("nan")
    half_width = special.stdtrit(n - 1, 0.5 + level / 2) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean() - half_width), float(values.mean() + half_width)


def least_effect(values: Float[np.ndarray, " U"]) -> float:
    """Returns the mean that a two-sided t test of these units at `LEVEL` finds with power `POWER`; NaN below three."""
    values = values[np.isfinite(values)]
    n = values.size
    if n < MIN_UNITS_FOR_INTERVAL:
        return float("nan")
    quantiles = special.stdtrit(n - 1, 1 - LEVEL / 2) + special.stdtrit(n - 1, POWER)
    return float(quantiles * values.std(ddof=1) / np.sqrt(n))


def sign_table(units: int, draws: int, rng: np.random.Generator) -> tuple[Float[np.ndarray, "G U"], bool]:
    """Draws the signs of a sign-flip test.

    Args:
      units: number of units.
      draws: number of random flips. All combinations are enumerated if they are no more than this or 4,096.
      rng: source of randomness.

    Returns:
      Signs of +1 and -1, and whether they are all 2^units combinations, which makes the test exact.
    """
    if units < 31 and 2**units <= max(draws, _EXACT):
        return all_signs(units), True
    return rng.choice([-1.0, 1.0], size=(draws, units)), False


@lru_cache(maxsize=4)
def all_signs(units: int) -> Float[np.ndarray, "G U"]:
    """Returns all 2^units combinations of signs. Those of the second half are the first half's opposites."""
    codes = np.arange(2**units)[:, None] >> np.arange(units)[None, :]
    signs = 1.0 - 2.0 * (codes & 1)
    signs.flags.writeable = False
    return signs


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


def sign_flip(values: Float[np.ndarray, " U"], draws: int, rng: np.random.Generator) -> float:
    """Computes the two-sided p value of "the mean over units is zero": Fisher's randomisation test for pairs.

    Args:
      values: one difference per unit; NaN are left out.
      draws: number of random flips, unless all combinations are enumerated.
      rng: source of randomness.

    Returns:
      The p value; NaN with fewer than two units.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if values.size < 2:
        return float("nan")
    signs, exact = sign_table(values.size, draws, rng)
    return p_value(abs(values.mean()), np.abs(signs @ values) / values.size, exact)


def trimmed_mean(values: np.ndarray, share: float = 0.2) -> float:
    """Averages without the lowest and the highest `share` of the defined values; NaN without any."""
    values = np.sort(values[np.isfinite(values)])
    cut = int(share * values.size)
    return float(values[cut : values.size - cut].mean()) if values.size else float("nan")


def least_p_of(n_units: int) -> float:
    """Returns the least p value of two-sided sign flips of so many units."""
    return min(1.0, 2.0 ** (1 - n_units))


def too_few(n_units: int, unit: str) -> str:
    """Returns why so many units carry no test; empty if they do."""
    if n_units >= MIN_UNITS:
        return ""
    noun = unit.removesuffix("s") if n_units == 1 else unit
    verb = "is" if n_units == 1 else "are"
    return f"{n_units} {noun} {verb} too few for a test; at least {MIN_UNITS} are needed"


def estimate(
    values: Float[np.ndarray, " T"], clusters: Sequence[str], seed: tuple[int, ...] = (0,), draws: int = 2000
) -> Estimate:
    """Averages one figure per task over units, with a t interval and a sign-flip test of whole units.

    Args:
      values: one value per task, such as a change of CKA; NaN are left out.
      clusters: the cluster of each task.
      seed: of the random flips.
      draws: number of random flips, unless all combinations are enumerated.
    """
    values = np.asarray(values, float)
    keep = np.isfinite(values)
    values, clusters = values[keep], [name for name, kept in zip(clusters, keep, strict=True) if kept]
    means = unit_means(values, clusters)
    unit = unit_name(clusters) if clusters else "clusters"
    low, high = t_interval(means)
    result = Estimate(
        mean=float(means.mean()) if means.size else float("nan"),
        low=low,
        high=high,
        p=float("nan"),
        robust_mean=trimmed_mean(values),
        unit=unit,
        n_units=means.size,
        n_tasks=values.size,
        rises=int((values > 0).sum()),
        falls=int((values < 0).sum()),
        least_p=least_p_of(means.size),
        least_effect=least_effect(means),
        reason=too_few(means.size, unit),
    )
    if not result["reason"]:
        result["p"] = sign_flip(means, draws, np.random.default_rng(seed))
    return result


def equivalence_p(values: Float[np.ndarray, " U"], margin: float) -> float:
    """Computes the p value of "the mean over units is at least `margin` away from zero": two one-sided t tests.

    Args:
      values: one value per unit; NaN are left out.
      margin: the largest change that counts as none, in the unit of `values`.

    Returns:
      A small p says that the mean is within the margin; NaN with fewer than `MIN_UNITS` units.

    References:
      Schuirmann 1987, "A comparison of the two one-sided tests procedure", J. Pharmacokinetics and Biopharmaceutics 15.
    """
    values = values[np.isfinite(values)]
    n = values.size
    if n < MIN_UNITS:
        return float("nan")
    error = max(float(values.std(ddof=1)) / np.sqrt(n), 1e-12)
    return float(special.stdtr(n - 1, -(margin - abs(values.mean())) / error))
