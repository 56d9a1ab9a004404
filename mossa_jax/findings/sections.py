"""Where tuning departs from pre-training: shared, transition and refinement layers (MOSSA, figure 1).

The rule: let d_t(l) = CKA(tuned, C_t) - CKA(pretrained, C_t) for every task t that is not held out and every block
output l. The mean curve over tasks is fitted by a level, a linear rise and a second level. The fit is exact: every pair
(p, q) of layers is tried, and both levels have a closed form (least squares, each layer weighted by its number of
defined tasks). Layers up to p are shared, p+1..q are the transition, and those after q are the refinement.

A bootstrap over tasks gives the intervals of p and q. Whether there is a rise at all is tested by flipping the signs of
whole task curves. The statistic is the maximum over all (p, q), so the search over layers is paid for.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mossa_jax.findings.curves import HEADLINE, block_layers, differences, mean_defined
from mossa_jax.findings.resampling import PairedChange, p_value, paired_change, sign_table

MIN_TASKS = 6
"""The fewest tasks whose sign flips can reach p <= `ALPHA` (1 of 2^6)."""

MIN_LAYERS = 4

ALPHA = 0.025
"""Level of the one-sided test for a rise: half of the customary 5 %."""

# Resamples per matrix product: bounds memory at any number of layers.
_CHUNK = 250


@lru_cache(maxsize=8)
def _ramps(positions: tuple[int, ...]) -> tuple[Float[np.ndarray, "pairs layers"], Int[np.ndarray, "pairs 2"]]:
    """Returns all ramps 0..1 over the layer positions, and the indices of their start and end."""
    at = np.array(positions, float)
    pairs = np.array([(p, q) for p in range(len(at)) for q in range(p + 1, len(at))])
    start, end = at[pairs[:, 0], None], at[pairs[:, 1], None]
    return np.clip((at - start) / (end - start), 0.0, 1.0), pairs


def _projection(
    weights: Float[np.ndarray, "curves layers"],
    sums: Float[np.ndarray, "curves layers"],
    ramps: Float[np.ndarray, "pairs layers"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Regresses each curve on each ramp.

    Args:
      weights: number of tasks behind each layer.
      sums: sum over these tasks.
      ramps: from `_ramps`.

    Returns:
      Cross product and ramp variance (infinite for a ramp that is flat over the layers with weight), both
      [curves, pairs]; mean of each ramp [curves, pairs]; mean of each curve [curves, 1].
    """
    total = np.maximum(weights.sum(1, keepdims=True), 1e-300)
    ramp_mean = weights @ ramps.T / total
    curve_mean = sums.sum(1, keepdims=True) / total
    spread = weights @ (ramps**2).T - total * ramp_mean**2
    cross = sums @ ramps.T - total * ramp_mean * curve_mean
    return cross, np.where(spread > 1e-9, spread, np.inf), ramp_mean, curve_mean


def fit_ramp(
    weights: Float[np.ndarray, "curves layers"], sums: Float[np.ndarray, "curves layers"], positions: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Fits the best level-rise-level curve through each of several mean curves.

    Only rises are fitted: if no ramp rises, the first pair is returned with equal levels.

    Args:
      weights: number of tasks behind each layer; 0 leaves a layer out.
      sums: sums of d over those tasks.
      positions: layer numbers, one per layer.

    Returns:
      Arrays [curves]: `last_shared` and `last_transition` (layer numbers p and q), and the levels `before` and `after`.
    """
    ramps, pairs = _ramps(positions)
    cross, spread, ramp_mean, curve_mean = _projection(weights, sums, ramps)
    cross = np.maximum(cross, 0.0)
    best = np.argmax(cross**2 / spread, axis=1)
    row = np.arange(len(best))
    rise = cross[row, best] / spread[row, best]
    before = curve_mean[:, 0] - rise * ramp_mean[row, best]
    at = np.array(positions)
    return {
        "last_shared": at[pairs[best, 0]],
        "last_transition": at[pairs[best, 1]],
        "before": before,
        "after": before + rise,
    }


def rise_p_value(
    values: Float[np.ndarray, "tasks layers"], positions: tuple[int, ...], draws: int, rng: np.random.Generator
) -> float:
    """Tests whether d rises with depth at all: one-sided, by sign flips of whole task curves.

    The contrast of a task and a ramp is the projection of the task's curve on the centred ramp, so a constant d
    contributes nothing. Under "no task moves up rather than down with depth" the contrasts of one task may change sign
    together. The maximum over ramps of sum(contrast) / sqrt(sum(contrast^2)) then has an exchangeable null.

    Args:
      values: d_t(l), NaN where undefined.
      positions: layer numbers, one per layer.
      draws: number of random flips, unless all combinations are fewer.
      rng: source of randomness.

    References:
      Winkler et al. 2014, "Permutation inference for the general linear model", NeuroImage 92, for sign flips with
      maximum statistics.
    """
    finite = np.isfinite(values)
    ramps, _ = _ramps(positions)
    cross, spread, _, _ = _projection(finite.astype(float), np.where(finite, values, 0.0), ramps)
    contrast = cross / np.sqrt(spread)  # [tasks, pairs]
    contrast = contrast / np.maximum(np.sqrt((contrast**2).sum(0)), 1e-300)
    signs, exact = sign_table(len(values), draws, rng)
    null = np.concatenate([(signs[i : i + _CHUNK] @ contrast).max(1) for i in range(0, len(signs), _CHUNK)])
    return p_value(float(contrast.sum(0).max()), null, exact)


def _crossing(mean: Float[np.ndarray, " layers"], positions: tuple[int, ...]) -> float:
    """Returns the first layer from which the curve stays above zero; NaN if there is none or it always was."""
    above = mean > 0
    if not above[-1] or above.all():
        return float("nan")
    return float(positions[int(np.flatnonzero(~above)[-1]) + 1])


def _interval(values: np.ndarray) -> list[float]:
    return [float(edge) for edge in np.quantile(values, [0.025, 0.975])]


def _break_interval(values: np.ndarray) -> list[int]:
    return [int(edge) for edge in np.quantile(values, [0.025, 0.975], method="nearest")]


def sections_of(
    changes: Float[np.ndarray, "tasks layers"], positions: tuple[int, ...], seed: int = 0, draws: int = 2000
) -> dict[str, Any]:
    """Divides the network into sections by a task-by-layer matrix of changes.

    Args:
      changes: d_t(l). NaN where undefined: such cells are left out and never filled.
      positions: layer numbers, one per layer.
      seed: seed of bootstrap and sign flips.
      draws: number of bootstrap resamples and of sign flips.

    Returns:
      `found`: whether there is a transition, and `reason`: why not, or "".
      `resolved`: whether both breaks have intervals clear of the network's ends.
      `p`: of the test for a rise.
      `shared`, `transition`, `refinement`: each `[first, last]` or None.
      `start`, `end`: intervals of the first and of the last transition layer.
      `before`, `after`: the two levels with their intervals.
      `crossing`: the layer from which the mean change stays positive, its interval, and the share of resamples that
      have one.
      `n_tasks`, `n_layers`: how many were used.
    """
    finite = np.isfinite(changes)
    layers = np.flatnonzero(finite.any(0))
    tasks = np.flatnonzero(finite.sum(1) >= MIN_LAYERS)
    values, at = changes[np.ix_(tasks, layers)], tuple(positions[i] for i in layers)
    result: dict[str, Any] = {"found": False, "resolved": False, "n_tasks": len(tasks), "n_layers": len(at), "p": None}
    result |= dict.fromkeys(("shared", "transition", "refinement", "start", "end", "before", "after", "crossing"))
    if len(at) < MIN_LAYERS:
        return result | {"reason": f"only {len(at)} layers are defined; sections need at least {MIN_LAYERS}"}
    if len(tasks) < MIN_TASKS:
        return result | {"reason": f"{len(tasks)} tasks are too few; sections need at least {MIN_TASKS}"}

    mask = np.isfinite(values).astype(float)
    filled = np.where(mask > 0, values, 0.0)
    rng = np.random.default_rng([seed, 1])
    counts = rng.multinomial(len(tasks), np.full(len(tasks), 1 / len(tasks)), size=draws).astype(float)
    weights, sums = counts @ mask, counts @ filled
    fit = fit_ramp(mask.sum(0)[None], filled.sum(0)[None], at)
    chunks = [fit_ramp(weights[i : i + _CHUNK], sums[i : i + _CHUNK], at) for i in range(0, draws, _CHUNK)]
    boot = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in fit}

    p = rise_p_value(values, at, draws, np.random.default_rng([seed, 2]))
    mean = filled.sum(0) / mask.sum(0)
    crossings = np.array([_crossing(row, at) for row in sums / np.maximum(weights, 1e-300)])
    crossed = crossings[np.isfinite(crossings)]
    last_shared, last_transition = int(fit["last_shared"][0]), int(fit["last_transition"][0])
    start = [edge + 1 for edge in _break_interval(boot["last_shared"])]
    end = _break_interval(boot["last_transition"])
    result |= {
        "p": p,
        "before": {"level": float(fit["before"][0]), "interval": _interval(boot["before"])},
        "after": {"level": float(fit["after"][0]), "interval": _interval(boot["after"])},
        "crossing": {
            "layer": _crossing(mean, at),
            "interval": _break_interval(crossed) if crossed.size >= 0.5 * draws else None,
            "share_of_resamples": crossed.size / draws,
        },
    }
    if p > ALPHA:
        return result | {"reason": f"no rise with depth beyond chance over {len(tasks)} tasks (p = {p:.3g})"}
    return result | {
        "found": True,
        "reason": "",
        "resolved": start[0] > at[0] + 1 and end[1] < at[-1],
        "shared": [at[0], last_shared],
        "transition": [last_shared + 1, last_transition],
        "refinement": [last_transition + 1, at[-1]] if last_transition < at[-1] else None,
        "start": start,
        "end": end,
    }


def find_sections(table: pd.DataFrame, estimator: str = HEADLINE, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """Finds the sections of the network from the results table; returns the keys of `sections_of` and `estimator`."""
    layers = block_layers(table)
    matrix = differences(table, estimator, held_out=False, layers=layers)
    return sections_of(matrix.to_numpy(), tuple(int(layer) for layer in layers), seed, draws) | {"estimator": estimator}


def shared_change(
    table: pd.DataFrame, sections: dict[str, Any], estimator: str = HEADLINE, seed: int = 0, draws: int = 2000
) -> PairedChange:
    """Measures tuned minus pre-trained CKA in the shared layers themselves, over tasks of the mixture.

    The level of the fitted ramp (`sections["before"]`) would not do: it also depends on the later layers.

    Args:
      table: the results table.
      sections: from `find_sections`.
      estimator: `debiased` or `biased`.
      seed: seed of the resampling.
      draws: number of resamples.

    Returns:
      The change over each task's mean of the shared layers; over no task if no section was found.
    """
    if not sections["found"]:
        return paired_change(np.zeros(0), seed, draws)
    first, last = sections["shared"]
    layers = [layer for layer in block_layers(table) if first <= int(layer) <= last]
    matrix = differences(table, estimator, held_out=False, layers=layers)
    return paired_change(mean_defined(matrix.to_numpy()), seed, draws)


def upper_layers(sections: dict[str, Any], layers: list[str]) -> tuple[list[str], str]:
    """Returns the layers over which summaries of tasks and clusters average, and their name in words."""
    if sections["found"]:
        first = sections["transition"][0]
        return [layer for layer in layers if int(layer) >= first], f"layers {first} and up (transition onwards)"
    first = len(layers) // 2 + 1
    return [layer for layer in layers if int(layer) >= first], f"layers {first} and up (upper half)"
