"""Curves over layers as a level, a linear rise and a second level: the fit, its bootstrap, and the test for a rise.

The fit is exact: every pair (p, q) of layers is tried, and both levels have a closed form (weighted least squares).
Layers up to p are shared, p+1..q are the transition, and those after q are the refinement.

Shape letters: T tasks, U units, L layers, N curves, R ramps (pairs of layers), B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from mossa_jax.findings.units import p_value, sign_table, unit_codes

TRIM = 0.2
"""Share of the tasks that a robust mean leaves out at either end."""

# Resamples per matrix product: bounds memory at any number of layers.
_CHUNK = 250


@lru_cache(maxsize=8)
def ramps_over(positions: tuple[int, ...]) -> tuple[Float[np.ndarray, "R L"], Int[np.ndarray, "R 2"]]:
    """Returns all ramps 0..1 over the layer positions, and the indices of their start and end."""
    at = np.array(positions, float)
    pairs = np.array([(p, q) for p in range(len(at)) for q in range(p + 1, len(at))])
    start, end = at[pairs[:, 0], None], at[pairs[:, 1], None]
    return np.clip((at - start) / (end - start), 0.0, 1.0), pairs


def _projection(
    weights: Float[np.ndarray, "N L"], sums: Float[np.ndarray, "N L"], ramps: Float[np.ndarray, "R L"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Regresses each curve on each ramp.

    Returns:
      Cross product and ramp variance (infinite for a ramp that is flat over the layers with weight), both
      [N, R]; mean of each ramp [N, R]; mean of each curve [N, 1].
    """
    total = np.maximum(weights.sum(1, keepdims=True), 1e-300)
    ramp_mean = weights @ ramps.T / total
    curve_mean = sums.sum(1, keepdims=True) / total
    spread = weights @ (ramps**2).T - total * ramp_mean**2
    cross = sums @ ramps.T - total * ramp_mean * curve_mean
    return cross, np.where(spread > 1e-9 * total, spread, np.inf), ramp_mean, curve_mean


@dataclass(frozen=True)
class Ramps:
    """The best ramps through N curves.

    Attributes:
      last_shared: [N] layer numbers p.
      last_transition: [N] layer numbers q.
      before: [N] levels up to p.
      after: [N] levels from q on.
    """

    last_shared: np.ndarray
    last_transition: np.ndarray
    before: np.ndarray
    after: np.ndarray


def fit_ramps(weights: Float[np.ndarray, "N L"], sums: Float[np.ndarray, "N L"], positions: tuple[int, ...]) -> Ramps:
    """Fits the best level-rise-level curve through each of several curves.

    Only rises are fitted: if no ramp rises, the first pair is returned with equal levels.

    Args:
      weights: of each layer in the squared error; 0 leaves a layer out.
      sums: the curves times their weights.
      positions: layer numbers, one per layer.
    """
    parts = [_fit(weights[i : i + _CHUNK], sums[i : i + _CHUNK], positions) for i in range(0, len(weights), _CHUNK)]
    return Ramps(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _fit(
    weights: Float[np.ndarray, "N L"], sums: Float[np.ndarray, "N L"], positions: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    ramps, pairs = ramps_over(positions)
    cross, spread, ramp_mean, curve_mean = _projection(weights, sums, ramps)
    cross = np.maximum(cross, 0.0)
    best = np.argmax(cross**2 / spread, axis=1)
    row = np.arange(len(best))
    rise = cross[row, best] / spread[row, best]
    before = curve_mean[:, 0] - rise * ramp_mean[row, best]
    at = np.array(positions)
    return at[pairs[best, 0]], at[pairs[best, 1]], before, before + rise


def depth_p_values(
    values: Float[np.ndarray, "U L"], positions: tuple[int, ...], draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Tests whether a curve rises, and whether it falls, with depth: each one-sided, by flips of whole units' signs.

    The contrast of a unit and a ramp is the projection of the unit's curve on the centred ramp, so a constant
    contributes nothing. Under "no unit moves up rather than down with depth" all contrasts of a unit may change sign
    together. The maximum over ramps of sum(contrast) / sqrt(sum(contrast^2)) then has an exchangeable null, and the
    search over layers is paid for.

    Args:
      values: one curve per unit, NaN where undefined.
      positions: layer numbers, one per layer.
      draws: number of random flips, unless all combinations are enumerated.
      rng: source of randomness.

    Returns:
      The p values of a rise and of a fall.

    References:
      Winkler et al. 2014, "Permutation inference for the general linear model", NeuroImage 92, for sign flips with
      maximum statistics; Winkler et al. 2015, "Multi-level block permutation", NeuroImage 123, for flips of blocks.
    """
    finite = np.isfinite(values)
    ramps, _ = ramps_over(positions)
    cross, spread, _, _ = _projection(finite.astype(float), np.where(finite, values, 0.0), ramps)
    contrast = cross / np.sqrt(spread)  # [U, R]
    contrast = contrast / np.maximum(np.sqrt((contrast**2).sum(0)), 1e-300)
    observed = contrast.sum(0)
    signs, exact = sign_table(len(values), draws, rng)
    if exact:
        # Every combination has its opposite, so both tests have one null, and half of the products give all of it.
        highest, lowest = _extremes(signs[: len(signs) // 2], contrast)
        rises = falls = np.concatenate([highest, -lowest])
    else:
        rises = _extremes(signs, contrast)[0]
        falls = -_extremes(sign_table(len(values), draws, rng)[0], contrast)[1]
    return p_value(float(observed.max()), rises, exact), p_value(float(-observed.min()), falls, exact)


def _extremes(signs: Float[np.ndarray, "G U"], contrast: Float[np.ndarray, "U R"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the highest and the lowest sum over ramps for each combination of signs, both [G]."""
    parts = []
    for start in range(0, len(signs), _CHUNK):
        sums = signs[start : start + _CHUNK] @ contrast  # [chunk, R]
        parts.append((sums.max(1), sums.min(1)))
    highest, lowest = zip(*parts, strict=True)
    return np.concatenate(highest), np.concatenate(lowest)


def robust_curves(values: Float[np.ndarray, "T L"], counts: Float[np.ndarray, "B T"]) -> Float[np.ndarray, "B L"]:
    """Averages tasks at every layer without the lowest and the highest `TRIM` of them.

    Args:
      values: one curve per task, NaN where undefined.
      counts: how often each task counts, per draw.

    Returns:
      Trimmed means; NaN where no task with a count is defined.
    """
    curves = np.full((values.shape[1], len(counts)), np.nan)
    for layer, (column, weight) in enumerate(ordered_counts(values, counts)):
        if not column.size:
            continue
        low, high = TRIM * weight[-1], (1 - TRIM) * weight[-1]
        # Cumulative weight is cut to the middle part, so that a task on the edge counts in part.
        edge = np.clip(weight, low, high, out=weight)
        sums = edge[-1] - low
        # The sum of each value times the weight between its edges, summed by parts.
        total = column[-1] * edge[-1] - column[0] * low - np.diff(column) @ edge[:-1]
        curves[layer] = np.where(sums > 0, total / np.maximum(sums, 1e-300), np.nan)
    return np.ascontiguousarray(curves.T)


def ordered_counts(
    values: Float[np.ndarray, "T L"], counts: Float[np.ndarray, "B T"]
) -> Iterator[tuple[Float[np.ndarray, " t"], Float[np.ndarray, "t B"]]]:
    """Yields for each layer its defined values in ascending order, and their cumulative counts per draw.

    Args:
      values: one curve per task, NaN where undefined.
      counts: how often each task counts, per draw.
    """
    counts = np.ascontiguousarray(counts.T)
    for column in values.T:
        order = np.argsort(column)  # NaN last
        order = order[np.isfinite(column[order])]
        weight = counts[order]
        # Sums of rows are ten times as fast as numpy.cumsum along either axis.
        for row in range(1, len(weight)):
            weight[row] += weight[row - 1]
        yield column[order], weight


def layer_weights(units: Float[np.ndarray, "U L"]) -> Float[np.ndarray, " L"]:
    """Returns the weight of each layer in a fit: the inverse variance over units, drawn half-way to the mean variance.

    The spread of changes grows with depth; unweighted, the noise of the last layers moves the breaks.
    """
    with np.errstate(invalid="ignore"):
        count = np.isfinite(units).sum(0)
        mean = np.where(count > 0, np.nansum(units, 0) / np.maximum(count, 1), 0.0)
        variance = np.nansum((units - mean) ** 2, 0) / np.maximum(count - 1, 1)
    defined = variance[count > 1]
    typical = float(defined.mean()) if defined.size else 0.0
    if typical == 0.0:
        return (count > 0).astype(float)
    blended = 0.5 * np.where(count > 1, variance, typical) + 0.5 * typical
    return np.where(count > 0, typical / blended, 0.0)


def bootstrap_counts(clusters: Sequence[str], draws: int, rng: np.random.Generator) -> Float[np.ndarray, "B T"]:
    """Draws whole units with replacement; returns how often each task counts in each draw."""
    codes = unit_codes(clusters)
    units = int(codes.max()) + 1
    return rng.multinomial(units, np.full(units, 1 / units), size=draws).astype(float)[:, codes]


def break_interval(draws: Int[np.ndarray, " B"], units: int) -> list[int]:
    """Returns the expanded percentile interval of a break over bootstrap draws of units.

    With few units the percentile interval is too narrow. Its level is widened so that it would match the t interval
    for a mean of normal data.

    References:
      Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.4.
    """
    tail = special.ndtr(-np.sqrt(units / (units - 1)) * special.stdtrit(units - 1, 0.975))
    return [int(edge) for edge in np.quantile(draws, [tail, 1 - tail], method="nearest")]
