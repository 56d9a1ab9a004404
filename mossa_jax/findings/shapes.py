"""What a curve of changes does over depth, named for what it is: a transition, or one of the shapes that look like one.

Shape letters: T tasks, U units, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mossa_jax.findings.units import t_interval, unit_means

TRANSITION, NONE = "transition", "none"

SHAPES = {
    TRANSITION: "a transition",
    NONE: "no change with depth beyond chance",
    "falls": "a fall: the change goes down with depth, and tuning moves the model away from the specialists",
    "dip": "a dip: the change falls and comes back, and tuning never brings the model nearer for good",
    "bump": "a bump: the change rises and falls back",
    "base falls": "the base falls while E stays: the pre-trained model leaves the specialists, and the tuned one does "
    "not come nearer to them",
    "a few tasks": "a few tasks carry the rise, and the others change little",
    "one cluster": "a single cluster carries more than half of the rise",
    "several depths": "tasks change at different depths, some early and others late",
    "drift": "a drift: the change has no level before or behind its rise",
    "last layers": "the rise goes on to the last layer, so nothing stands behind it",
    "catch-up": "the change rises to zero and not above it: tuning only makes up for what it took away",
}
"""Name of a shape -> the shape in words."""

# A shape inside the curve is named if its fall or its return is clear of the noise of the units at this level ...
_CLEAR = 0.95
# ... and if it is at least this share of the rise.
_SHARE_OF_RISE = 0.5
# The least part of the rise of the change that E itself must make.
_OWN_SHARE = 0.2
# A rise longer than this share of the network is a drift; one that begins in the first layer, than the second share.
_LONG, _LONG_FROM_FIRST = 0.6, 0.3
# A task whose rise lies this many robust standard deviations above the median is an outlier.
_OUTLIER = 3.5
# The part of the whole rise that outliers must make to be its carriers.
_CARRIED = 0.4
# How much larger the variance over tasks must be inside the network than at either end.
_INFLATED = 1.7
# Correlation over tasks of the early with the late half of the rise. Smooth noise makes about -0.2.
_OPPOSED = -0.6


@dataclass(frozen=True)
class Curves:
    """The curves that a shape is read off.

    Attributes:
      tuned: CKA of E with each task's specialist, [T, L], NaN where undefined.
      change: tuned minus pre-trained, [T, L].
      clusters: the cluster of each task.
      robust: [L] the robust mean of the changes.
    """

    tuned: Float[np.ndarray, "T L"]
    change: Float[np.ndarray, "T L"]
    clusters: Sequence[str]
    robust: Float[np.ndarray, " L"]


def name_shape(curves: Curves, ramp: tuple[int, int], mean_ramp: tuple[int, int], p_rise: float, p_fall: float) -> str:
    """Names the shape of a curve of changes.

    Args:
      curves: the curves.
      ramp: indices of the last layer before and of the first layer behind the rise of the robust mean.
      mean_ramp: the same for the mean over units.
      p_rise: one-sided p value of a rise with depth.
      p_fall: one-sided p value of a fall with depth.

    Returns:
      A key of `SHAPES`.
    """
    units = unit_means(curves.change, curves.clusters)
    if any(_is_carried_by_few(curves, each) for each in (ramp, mean_ramp)):
        return "a few tasks"
    inside = _inside_shape(curves.robust, units)
    if inside:
        return inside
    if p_rise > _ONE_SIDED:
        return "falls" if p_fall <= _ONE_SIDED else NONE
    last_shared, first_after = ramp
    own = _step(unit_means(curves.tuned, curves.clusters), ramp)
    both = _step(units, ramp)
    if np.nanmean(own) < _OWN_SHARE * np.nanmean(both):
        return "base falls"
    rises = _unit_rises(units, ramp)
    if rises.size and np.nanmax(rises) > 0.5 * np.nansum(rises):
        return "one cluster"
    if _is_opposed(curves.change, *ramp) or _is_mixed_inside(curves.change):
        return "several depths"
    layers = units.shape[1]
    length = (first_after - last_shared) / layers
    if length > (_LONG_FROM_FIRST if last_shared == 0 else _LONG):
        return "drift"
    if first_after == layers - 1:
        return "drift" if length > _LONG_FROM_FIRST else "last layers"
    low, _ = t_interval(np.nanmean(units[:, first_after:], axis=1))
    if low > 0:
        return TRANSITION
    start, lowest = float(np.nanmean(units[:, 0])), float(np.nanmin(curves.robust[: first_after + 1]))
    # A curve that began well above its lowest layer has fallen before it rose, clear of the noise or not.
    return "dip" if start - lowest >= _SHARE_OF_RISE * (curves.robust[first_after] - lowest) else "catch-up"


_ONE_SIDED = 0.025


def _is_carried_by_few(curves: Curves, ramp: tuple[int, int]) -> bool:
    """Whether tasks far above the others make a large part of the rise."""
    rises = _rises(curves.change, ramp)
    rises = rises[np.isfinite(rises)]
    middle = np.median(rises)
    spread = 1.4826 * np.median(np.abs(rises - middle))
    outliers = rises[rises > middle + _OUTLIER * max(spread, 1e-9)]
    return bool(rises.sum() > 0 and (outliers - middle).sum() >= _CARRIED * rises.sum())


def _inside_shape(robust: np.ndarray, units: np.ndarray) -> str:
    """Returns "dip" or "bump" if the curve falls and returns, or rises and falls back; empty otherwise."""
    layers = len(robust)
    width = max(1, layers // 16)
    start, end = units[:, :width].mean(1), units[:, -width:].mean(1)

    def around(index: int) -> np.ndarray:
        return units[:, max(0, index - width // 2) : index + width // 2 + 1].mean(1)

    lowest, highest = int(np.argmin(robust)), int(np.argmax(robust))
    fall, back = start - around(lowest), end - around(lowest)
    if 0 < lowest < layers - 1 and _is_clear(fall) and back.mean() >= fall.mean() / 3:
        # A rise that leaves the start far below it is a transition with a dip before it, and no dip.
        if fall.mean() >= _SHARE_OF_RISE * (robust.max() - robust[lowest]):
            return "dip"
    rise, down = around(highest) - start, around(highest) - end
    if 0 < highest < layers - 1 and _is_clear(down) and _is_clear(rise) and down.mean() >= _SHARE_OF_RISE * rise.mean():
        return "bump"
    return ""


def _is_clear(values: np.ndarray) -> bool:
    low, _ = t_interval(values, _CLEAR)
    return low > 0


def _rises(values: Float[np.ndarray, "N L"], ramp: tuple[int, int]) -> Float[np.ndarray, " N"]:
    """Returns each curve's mean from the end of the rise on, minus its mean up to the rise."""
    last_shared, first_after = ramp
    with np.errstate(invalid="ignore"):
        return _mean(values[:, first_after:]) - _mean(values[:, : last_shared + 1])


def _unit_rises(units: Float[np.ndarray, "U L"], ramp: tuple[int, int]) -> Float[np.ndarray, " U"]:
    rises = _rises(units, ramp)
    return rises[np.isfinite(rises)]


def _step(units: Float[np.ndarray, "U L"], ramp: tuple[int, int]) -> Float[np.ndarray, " U"]:
    """Returns each unit's difference between the two ends of the rise themselves, so that a trend elsewhere is out."""
    return units[:, ramp[1]] - units[:, ramp[0]]


def _is_opposed(change: Float[np.ndarray, "T L"], first: int, last: int) -> bool:
    """Whether the tasks that rise early do not rise late: then the mean's slope is a mixture of steps."""
    return last - first >= 3 and _opposition(change, first, (first + last) // 2, last) < _OPPOSED


def _is_mixed_inside(change: Float[np.ndarray, "T L"]) -> bool:
    """Whether tasks differ most inside the network, since some have changed there and others have not yet."""
    layers = change.shape[1]
    width = max(1, layers // 8)
    with np.errstate(invalid="ignore"):
        variance = np.nanvar(change, axis=0)
    peak = width + int(np.nanargmax(variance[width:-width])) if layers > 2 * width else 0
    ends = max(np.nanmean(variance[:width]), np.nanmean(variance[-width:]))
    return bool(variance[peak] > _INFLATED * ends and _opposition(change, 0, peak, layers - 1) < _OPPOSED)


def _opposition(change: Float[np.ndarray, "T L"], first: int, middle: int, last: int) -> float:
    """Returns the correlation over tasks of the changes before and behind a layer; 0 if it has none."""
    early, late = change[:, middle] - change[:, first], change[:, last] - change[:, middle]
    keep = np.isfinite(early) & np.isfinite(late)
    if keep.sum() < 6 or not early[keep].std() or not late[keep].std():
        return 0.0
    return float(np.corrcoef(early[keep], late[keep])[0, 1])


def _mean(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    counts = finite.sum(1)
    return np.where(counts > 0, np.where(finite, values, 0.0).sum(1) / np.maximum(counts, 1), np.nan)
