"""Where multi-task learning happens, by three definitions side by side (MOSSA, figures 1 and 2).

With d_t(l) = CKA(tuned, C_t) - CKA(pretrained, C_t) for every task t of the mixture and every block output l:

- *parting*: where E and the base part. The robust mean of d over tasks is fitted by a level, a linear rise and a second
  level (`ramps`). It is called a transition only if d stands above zero behind it, if E itself rises there, and if
  neither a few tasks nor one cluster carry it; other shapes are named for what they are (`shapes`).
- *plateau*: where E itself settles near its specialists: the layers in which the lower quartile of CKA(tuned, C_t) is
  within a margin of the ceiling, or of its own highest value if no seeds were compared. This is nearest to the paper's
  words ("becomes highly similar to all control models").
- *crossing*: the first layer from which d stays above zero.

All intervals come from a bootstrap of whole units, or are t intervals over units.

Shape letters: T tasks, U units, L layers, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mossa_jax.findings.ramps import (
    bootstrap_counts,
    break_interval,
    depth_p_values,
    fit_ramps,
    layer_weights,
    ordered_counts,
    robust_curves,
)
from mossa_jax.findings.shapes import SHAPES, TRANSITION, Curves, name_shape
from mossa_jax.findings.units import least_p_of, t_interval, too_few, unit_means, unit_name

MIN_LAYERS = 4

PAPER = {"layers": 32, "shared": [1, 9], "transition": [10, 15], "refinement": [16, 32]}
"""The paper's sections of Llama 2 7B (figure 1)."""

CEILING_MARGIN = 0.05
"""Of the ceiling: how far below it E's lower quartile may stay on the plateau."""

PEAK_MARGIN = 0.025
"""Of E's own highest lower quartile, where there is no ceiling."""


def find_sections(
    tuned: Float[np.ndarray, "T L"],
    change: Float[np.ndarray, "T L"],
    clusters: Sequence[str],
    positions: tuple[int, ...],
    seed: int = 0,
    draws: int = 2000,
    ceiling: Float[np.ndarray, " L"] | None = None,
) -> dict[str, Any]:
    """Divides the network into sections, by all three definitions.

    Args:
      tuned: CKA of E with each task's specialist, NaN where undefined: such cells are left out and never filled.
      change: tuned minus pre-trained.
      clusters: the cluster of each task.
      positions: layer numbers, one per layer.
      seed: seed of bootstrap and sign flips.
      draws: number of bootstrap resamples and of sign flips.
      ceiling: CKA of two seeds of one specialist at each layer, if it was measured.

    Returns:
      `shape`: a key of `shapes.SHAPES`, or None if nothing could be fitted; `is_transition`; `reason`: why there is
      none, or "".
      `p_rise`, `p_fall`: one-sided; `p`: two-sided; `least_p`.
      `shared`, `transition`, `refinement`: each `[first, last]` or None, where the shape is a transition.
      `fit`: the ramp of the robust mean, whatever the shape: `start` and `end` (first and last layer of the rise), each
      with `interval`, `range` (the earliest `start` and the latest `end` that a fit can return), `before` and `after`
      (levels with t intervals over units), `rise`, `mean_start` and `mean_end` (the ramp of the plain mean),
      `task_breaks` (quartiles over tasks of the first and the last layer of their own ramps).
      `own_share`: the part of the rise that E itself makes.
      `plateau`, `crossing`: each `first`, `last` (of the plateau), `interval`, `share_of_draws`.
      `paper`: the paper's sections.
      `unit`, `n_units`, `n_tasks`, `n_layers`: what was used.
    """
    finite = np.isfinite(change)
    layers = np.flatnonzero(finite.any(0))
    tasks = np.flatnonzero(finite.sum(1) >= MIN_LAYERS)
    at = tuple(positions[i] for i in layers)
    names = [clusters[int(task)] for task in tasks]
    values, own = change[np.ix_(tasks, layers)], tuned[np.ix_(tasks, layers)]
    units = unit_means(values, names)
    result: dict[str, Any] = {
        "shape": None,
        "is_transition": False,
        "n_tasks": len(tasks),
        "n_units": len(units),
        "n_layers": len(at),
        "unit": unit_name(names) if names else "clusters",
        "least_p": least_p_of(len(units)),
        "paper": PAPER,
        "reason": "",
    }
    keys = "p p_rise p_fall shared transition refinement fit own_share plateau crossing".split()
    result |= dict.fromkeys(keys)
    if len(at) < MIN_LAYERS:
        return result | {"reason": f"only {len(at)} layers are defined; sections need at least {MIN_LAYERS}"}
    counts = bootstrap_counts(names, draws, np.random.default_rng([seed, 1])) if len(units) > 1 else None
    scale = None if ceiling is None else ceiling[layers]
    reason = too_few(len(units), result["unit"])
    if reason or counts is None:
        return result | {"reason": reason, "plateau": _plateau(own, counts, at, scale, 0, len(units))}
    weights = layer_weights(units)
    robust = robust_curves(values, np.ones((1, len(tasks))))
    boot = robust_curves(values, counts)
    result["crossing"] = _crossing(np.nanmean(units, axis=0), boot, at, len(units))
    fit, indices, mean_indices = _fit(values, names, weights, at, robust, boot)
    p_rise, p_fall = depth_p_values(units, at, draws, np.random.default_rng([seed, 2]))
    shape = name_shape(Curves(own, values, names, robust[0]), indices, mean_indices, p_rise, p_fall)
    step = np.nanmean(units[:, indices[1]] - units[:, indices[0]])
    own_units = unit_means(own, names)
    own_step = np.nanmean(own_units[:, indices[1]] - own_units[:, indices[0]])
    result |= {
        "shape": shape,
        "plateau": _plateau(own, counts, at, scale, fit["start"]["layer"] - 1, len(units)),
        "is_transition": shape == TRANSITION,
        "p_rise": p_rise,
        "p_fall": p_fall,
        "p": min(1.0, 2 * min(p_rise, p_fall)),
        "fit": fit,
        "own_share": own_step / step if step > 0 else None,
    }
    if shape != TRANSITION:
        return result | {"reason": SHAPES[shape]}
    first, last = fit["start"]["layer"], fit["end"]["layer"]
    return result | {
        "shared": [at[0], first - 1],
        "transition": [first, last],
        "refinement": [last + 1, at[-1]],
    }


def summary_sections(
    pretrained: Float[np.ndarray, "3 L"], tuned: Float[np.ndarray, "3 L"], positions: tuple[int, ...]
) -> dict[str, Any]:
    """Divides a network into sections by a published figure, which shows quartiles over tasks and no tasks.

    Args:
      pretrained: lower quartile, median and upper quartile of CKA(pretrained, C_t) at each layer.
      tuned: the same of CKA(tuned, C_t).
      positions: layer numbers, one per layer.

    Returns:
      `parting` (first and last layer of the ramp of the difference of medians), `own_share` (the part of that rise that
      E's median makes), `plateau` (first and last layer) and `crossing` (first layer from which E's median stays above
      the base's). There are no intervals, since the spread of differences over tasks is not in the figure.
    """
    change = tuned[1] - pretrained[1]
    ones = np.ones((1, len(positions)))
    ramp = fit_ramps(ones, change[None], positions)
    start, end = int(ramp.last_shared[0]), int(ramp.last_transition[0])
    i, j = positions.index(start), positions.index(end)
    first, last = plateau_of(tuned[0], np.full(len(positions), tuned[0, i:].max() - PEAK_MARGIN), positions, start)
    return {
        "parting": [start + 1, end],
        "own_share": float((tuned[1, j] - tuned[1, i]) / (change[j] - change[i])),
        "plateau": [first, last],
        "crossing": first_for_good(change > 0, positions),
    }


def _fit(
    values: Float[np.ndarray, "T L"],
    clusters: Sequence[str],
    weights: Float[np.ndarray, " L"],
    at: tuple[int, ...],
    robust: Float[np.ndarray, "1 L"],
    boot: Float[np.ndarray, "B L"],
) -> tuple[dict[str, Any], tuple[int, int], tuple[int, int]]:
    """Fits the ramp of the robust mean, its bootstrap, that of the plain mean, and those of the tasks.

    Returns:
      What `find_sections` returns as `fit`, and the indices of both ramps.
    """
    units = unit_means(values, clusters)
    curves = np.concatenate([robust, np.nanmean(units, axis=0)[None], values, boot])
    defined = np.isfinite(curves)
    ramps = fit_ramps(weights * defined, weights * np.where(defined, curves, 0.0), at)
    first, last = ramps.last_shared + 1, ramps.last_transition
    tasks, draws = slice(2, 2 + len(values)), slice(2 + len(values), None)
    indices = [(at.index(int(ramps.last_shared[i])), at.index(int(last[i]))) for i in (0, 1)]
    before, after = (_level(part) for part in (units[:, : indices[0][0] + 1], units[:, indices[0][1] :]))
    fit = {
        "start": {"layer": int(first[0]), "interval": break_interval(first[draws], len(units))},
        "end": {"layer": int(last[0]), "interval": break_interval(last[draws], len(units))},
        "range": [at[0] + 1, at[-1]],
        "before": before,
        "after": after,
        "rise": float(ramps.after[0] - ramps.before[0]),
        "mean_start": int(first[1]),
        "mean_end": int(last[1]),
        "mean_rise": float(ramps.after[1] - ramps.before[1]),
        "task_breaks": {
            "start": np.quantile(first[tasks], [0.25, 0.5, 0.75]).tolist(),
            "end": np.quantile(last[tasks], [0.25, 0.5, 0.75]).tolist(),
        },
    }
    return fit, indices[0], indices[1]


def _level(values: Float[np.ndarray, "U l"]) -> dict[str, Any]:
    with np.errstate(invalid="ignore"):
        means = np.nanmean(values, axis=1)
    return {"level": float(np.nanmean(means)), "interval": list(t_interval(means))}


def _crossing(
    mean: Float[np.ndarray, " L"], boot: Float[np.ndarray, "B L"], at: tuple[int, ...], units: int
) -> dict[str, Any]:
    """Finds the layer from which the mean change stays above zero."""
    draws = first_for_good(boot > 0, at)
    crossed = draws[np.isfinite(draws)]
    enough = crossed.size >= 0.5 * len(draws)
    return {
        "first": float(first_for_good(mean > 0, at)),
        "interval": break_interval(crossed, units) if enough else None,
        "share_of_draws": crossed.size / len(draws),
    }


def first_for_good(is_true: Bool[np.ndarray, "... L"], at: tuple[int, ...]) -> np.ndarray:
    """Returns the first layer from which a statement holds up to the last; NaN if it never does."""
    # Reversed, the statement first fails right before that layer.
    failures = ~is_true[..., ::-1]
    held = np.where(failures.any(-1), failures.argmax(-1), len(at))
    return np.where(held > 0, np.array(at, float)[len(at) - np.maximum(held, 1)], np.nan)


def plateau_of(
    quartile: Float[np.ndarray, "... L"], reference: Float[np.ndarray, "... L"], at: tuple[int, ...], after: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and the last layer of the longest run in which `quartile` reaches `reference`; NaN without.

    The first of several longest runs counts. Layers up to number `after` do not: in the first layers all models are
    alike, since little has happened yet.
    """
    reached = (quartile >= reference) & (np.array(at) > after)
    run = np.zeros(reached.shape[:-1], int)
    longest, last = run.copy(), run.copy()
    for layer in range(len(at)):
        run = np.where(reached[..., layer], run + 1, 0)
        last = np.where(run > longest, layer, last)
        longest = np.maximum(longest, run)
    layers = np.array(at, float)
    first = np.maximum(last - longest + 1, 0)
    return np.where(longest > 0, layers[first], np.nan), np.where(longest > 0, layers[last], np.nan)


def _plateau(
    tuned: Float[np.ndarray, "T L"],
    counts: Float[np.ndarray, "B T"] | None,
    at: tuple[int, ...],
    ceiling: Float[np.ndarray, " L"] | None,
    after: int,
    units: int,
) -> dict[str, Any]:
    """Finds E's plateau: where its lower quartile over tasks is near the ceiling, or near its own highest value.

    Args:
      tuned: CKA of E with each task's specialist.
      counts: how often each task counts, per draw of the bootstrap; None: no interval.
      at: layer numbers.
      ceiling: at each layer, if it was measured.
      after: layers up to this number do not count.
      units: number of units, for the interval.
    """
    counted = np.array(at) > after

    def reference(quartiles: np.ndarray) -> np.ndarray:
        if ceiling is not None:
            return np.where(np.isfinite(ceiling), ceiling, np.inf) - CEILING_MARGIN
        return np.fmax.reduce(quartiles[..., counted], axis=-1, keepdims=True) - PEAK_MARGIN

    quartile = _quartiles(tuned, np.ones((1, len(tuned))))[0]
    first, last = (float(layer) for layer in plateau_of(quartile, reference(quartile), at, after))
    result: dict[str, Any] = {
        "first": first,
        "last": last,
        "against": "its own highest lower quartile" if ceiling is None else "the ceiling",
        "margin": PEAK_MARGIN if ceiling is None else CEILING_MARGIN,
        "lower_quartile": quartile.tolist(),
        "interval": None,
        "share_of_draws": None,
    }
    if counts is None:
        return result
    quartiles = _quartiles(tuned, counts)
    draws = plateau_of(quartiles, reference(quartiles), at, after)[0]
    reached = draws[np.isfinite(draws)]
    result["share_of_draws"] = reached.size / len(draws)
    if reached.size >= 0.5 * len(draws):
        result["interval"] = break_interval(reached, units)
    return result


def _quartiles(values: Float[np.ndarray, "T L"], counts: Float[np.ndarray, "B T"]) -> Float[np.ndarray, "B L"]:
    """Returns the lower quartile over tasks of every draw and layer; NaN where a draw has no defined task."""
    quartiles = np.full((values.shape[1], len(counts)), np.nan)
    for layer, (column, weight) in enumerate(ordered_counts(values, counts)):
        if column.size:
            place = (weight < 0.25 * weight[-1]).sum(0)
            quartiles[layer] = np.where(weight[-1] > 0, column[place], np.nan)
    return np.ascontiguousarray(quartiles.T)
