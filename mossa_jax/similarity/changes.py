"""Changes of similarity: one pair of models against another over the same rows, with intervals and a test of 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from mossa_jax.similarity.combine import Similarities
from mossa_jax.similarity.intervals import LEVEL, jackknife_error

# Values of CKA nearer to each other than this cannot be told apart, since their sums are float32.
_RESOLUTION = 1e-6


@dataclasses.dataclass(frozen=True)
class Changes:
    """Change of CKA of P pairs of pairs at K layers; the last axis is in the order of `ESTIMATORS`.

    Attributes:
      value: [P, K, 2] CKA of the first pair minus that of the second; NaN where either has none.
      error: [P, K, 2] jackknife error of the difference.
      low: [P, K, 2] lower end of the 95 % interval.
      high: [P, K, 2] upper end.
      p: [P, K, 2] two-sided p-value of "no change"; NaN where both similarities are the same by construction.
      degrees: degrees of freedom of `error`: units (rows or items) minus one.
    """

    value: Float[np.ndarray, "P K 2"]
    error: Float[np.ndarray, "P K 2"]
    low: Float[np.ndarray, "P K 2"]
    high: Float[np.ndarray, "P K 2"]
    p: Float[np.ndarray, "P K 2"]
    degrees: int


def paired_changes(similarities: Similarities, first: Sequence[int], second: Sequence[int]) -> Changes:
    """Computes the change of CKA from one pair to another, as from (base, control) to (tuned, control).

    Both are left without the same unit at a time, so what the pairs have in common does not widen the interval.

    Args:
      similarities: of all pairs over the same rows.
      first: numbers of pairs.
      second: numbers of the pairs that are subtracted, as many.
    """
    a, b = list(first), list(second)
    value = similarities.value[a] - similarities.value[b]
    error = jackknife_error(similarities.replicates[a] - similarities.replicates[b])
    degrees = similarities.units - 1
    low, high, p = interval_of(value, error, degrees)
    return Changes(value, error, low, high, p, degrees)


def interval_of(
    value: Float[np.ndarray, " ..."],
    error: Float[np.ndarray, " ..."],
    degrees: float,
    variances: Sequence[tuple[Float[np.ndarray, " ..."] | float, Float[np.ndarray, " ..."] | float]] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes a 95 % interval and a test of 0, with further independent variances beside that of the rows.

    Args:
      value: [...] an estimate.
      error: [...] its standard error over rows or items.
      degrees: degrees of freedom of `error`.
      variances: further `(variance, degrees of freedom)` of `value`, as of the seeds; each broadcasts against it.

    Returns:
      Lower end, upper end and two-sided p-value, each [...]. p is NaN where neither the value nor its error can be
      told from 0.

    References:
      Satterthwaite 1946, "An approximate distribution of estimates of variance components".
    """
    parts = [(np.square(error), degrees), *variances]
    total = sum(np.asarray(variance, np.float64) for variance, _ in parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Each variance counts by its share; one that is zero takes no part.
        effective = np.square(total) / sum(np.square(variance) / freedom for variance, freedom in parts)
        effective = np.where(total > 0, effective, degrees)
        standard = np.sqrt(total)
        half_width = stdtrit(effective, (1 + LEVEL) / 2) * standard
        p = 2 * stdtr(effective, -np.abs(value) / standard)
    same = (np.abs(value) < _RESOLUTION) & (standard < _RESOLUTION)
    return value - half_width, value + half_width, np.where(same, np.nan, p)
