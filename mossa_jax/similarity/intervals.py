"""Confidence intervals of CKA from the exact leave-one-out jackknife.

Rows are never resampled with replacement: a copy and its original would form an off-diagonal pair that holds a diagonal
entry of the Gram matrix, which undoes the debiasing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from mossa_jax.similarity.estimators import ratio

LEVEL = 0.95
# Values nearer to 1 than this cannot be told from 1, since the sums are float32.
_RESOLUTION = 1e-6


def jackknife_values(
    value: Float[np.ndarray, " ..."], whole: tuple[np.ndarray, ...], left_out: tuple[np.ndarray, ...]
) -> Float[np.ndarray, "... m"]:
    """Computes `xy / sqrt(xx yy)` with each of m units (rows or items) left out.

    Args:
      value: [...] the ratio over all units.
      whole: `(xy, xx, yy)`, each [...], over all units.
      left_out: the same three with each unit left out, each [..., m].

    Returns:
      [..., m], finite wherever `value` and `left_out` are. If the ratio does not exist without some unit, it is
      linearised in all replicates of the cell.
    """
    # [..., 1] each. Ones stand in where there is no value, so that nothing is divided by zero.
    xy, xx, yy = (np.where(np.isfinite(value), w, 1.0)[..., None] for w in whole)
    # If one row carries a state, the remaining rows may have no ratio. Then the ratio is linearised.
    floor = 1e-6
    steady = ~((left_out[1] <= floor * xx) | (left_out[2] <= floor * yy))  # [..., m]
    exact = ratio(left_out[0], np.where(steady, left_out[1], 1.0), np.where(steady, left_out[2], 1.0))
    # [..., m], the first-order change of the ratio as the three products change.
    slope = (left_out[0] - xy) / np.sqrt(xx * yy) - xy / np.sqrt(xx * yy) / 2 * (
        (left_out[1] - xx) / xx + (left_out[2] - yy) / yy
    )
    linear = value[..., None] + slope
    # One unsteady row linearises all replicates of its cell, so that these are comparable.
    use_linear = ~steady.all(-1, keepdims=True)
    return np.where(np.isfinite(value)[..., None], np.where(use_linear, linear, exact), np.nan)


def jackknife_error(replicates: Float[np.ndarray, "... m"]) -> Float[np.ndarray, " ..."]:
    """Computes the standard error from the values with each of m units left out; NaN without any, or where one is.

    References:
      Efron and Stein 1981, "The jackknife estimate of variance".
    """
    m = replicates.shape[-1]
    if not m:  # sums of moments have no rows that could be left out
        return np.full(replicates.shape[:-1], np.nan)
    # Variance of the jackknife: (m - 1)/m times the sum of squares about the mean of the replicates.
    spread = np.square(replicates - replicates.mean(-1, keepdims=True)).sum(-1)
    return np.sqrt((m - 1) / m * spread)


def confidence_interval(
    value: Float[np.ndarray, " ..."], error: Float[np.ndarray, " ..."], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Computes a 95 % interval by Student's quantile on Fisher's z scale; it contains the value, within -1 and 1.

    On the plain scale intervals of 12 to 30 rows covered 91 to 93 % of synthetic truths, on this one 94 to 96 %;
    from 200 rows on the two agree.

    Args:
      value: [...] CKA.
      error: [...] its standard error, on the scale of `value`.
      n: number of rows, or of items if rows share them.

    Returns:
      Lower and upper ends, each [...].
    """
    # Nearer to 1 than the sums can resolve, the z scale would stretch rounding over the whole range.
    inside = np.clip(np.where(np.abs(value) < 1, value, 0.0), _RESOLUTION - 1, 1 - _RESOLUTION)
    # The derivative of artanh is 1 / (1 - x^2): it carries the error over to the z scale.
    half_width = stdtrit(n - 1, (1 + LEVEL) / 2) * error / (1 - inside**2)
    low, high = np.tanh(np.arctanh(inside) - half_width), np.tanh(np.arctanh(inside) + half_width)
    # At 1 (the same state twice) the interval is a point. Elsewhere tanh(artanh(x)) may miss x by a rounding, and the
    # interval has to contain the value.
    at_end = ~(np.abs(value) < 1)
    return np.where(at_end, value, np.minimum(low, value)), np.where(at_end, value, np.maximum(high, value))
