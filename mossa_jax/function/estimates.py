"""Means over prompts with 95 % intervals over items.

Prompts of one item are related, so the item is what counts as evidence. An interval is Student's with the variance of
the items' sums (a cluster-robust linearisation); for items of one prompt each it is the ordinary one.

Shape letters: n prompts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean with its interval.

    Attributes:
      value: the mean.
      low, high: ends of the 95 % interval; NaN with fewer than two items.
    """

    value: float
    low: float
    high: float


def ratio(sums: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], items: Int[np.ndarray, " n"]) -> Estimate:
    """Estimates the sum of `sums` over the sum of `weights`; weights of one make it a mean over prompts.

    Args:
      sums: of each prompt.
      weights: of each prompt.
      items: the same number for prompts of one item.
    """
    value = math.fsum(sums) / math.fsum(weights)
    half = _half_width(sums - value * weights, float(np.sum(weights)), items)
    return Estimate(value, value - half, value + half)


def mean(values: Float[np.ndarray, " n"], items: Int[np.ndarray, " n"]) -> Estimate:
    """Estimates a mean over prompts."""
    return ratio(values, np.ones(len(values)), items)


def share(hits: Float[np.ndarray, " n"], items: Int[np.ndarray, " n"]) -> Estimate:
    """Estimates a share by Wilson's interval, for as many independent prompts as the items are worth.

    References:
      Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22; Korn and Graubard
      1998, "Confidence intervals for proportions with small expected number of positive counts", Survey Methodology 24,
      for the effective number.
    """
    from scipy.stats import t

    hits = np.asarray(hits, float)
    value, count = float(hits.mean()), len(np.unique(items))
    if count < 2:
        return Estimate(value, math.nan, math.nan)
    variance = _variance(hits - value, len(hits), items)
    # Where all prompts agree, nothing tells how related those of an item are: each item then counts once.
    effective = min(value * (1 - value) / variance, len(hits)) if variance > 0 else count
    z = float(t.ppf((1 + _LEVEL) / 2, count - 1))
    centre = (value + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z / (1 + z**2 / effective) * math.sqrt(value * (1 - value) / effective + z**2 / (4 * effective**2))
    return Estimate(value, max(centre - half, 0.0), min(centre + half, 1.0))


def _half_width(residuals: np.ndarray, total: float, items: np.ndarray) -> float:
    from scipy.stats import t

    count = len(np.unique(items))
    if count < 2:
        return math.nan
    return float(t.ppf((1 + _LEVEL) / 2, count - 1)) * math.sqrt(_variance(residuals, total, items))


def _variance(residuals: np.ndarray, total: float, items: np.ndarray) -> float:
    """Returns the variance of a mean or ratio, from residuals whose sum is zero.

    Args:
      residuals: [n], of the prompts.
      total: sum of the weights.
      items: [n], at least two different ones.
    """
    _, index = np.unique(items, return_inverse=True)
    sums = np.bincount(index, residuals)
    return float(len(sums) / (len(sums) - 1) * np.sum(sums**2) / total**2)
