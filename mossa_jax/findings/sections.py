"""Where tuning departs from pre-training: shared, transition and refinement layers (MOSSA, figure 1).

The rule. With d_t(l) = CKA(tuned, C_t) - CKA(pretrained, C_t) for every task t that is not held out and every
block output l, the mean curve over tasks is fitted by "a level, a linear rise, a second level". The fit is
exact: every pair (p, q) of layers is tried and both levels are in closed form (least squares, each layer
weighted by its number of defined tasks). Shared = layers up to p; transition = p+1..q; refinement = after q.
Bootstrap over tasks gives the intervals of p and q. That there is a rise at all is tested by flipping the
signs of whole task curves, with the maximum over all (p, q) as the statistic, so the search over layers is
paid for.
"""

from functools import lru_cache

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import HEADLINE, block_layers, differences, mean_defined
from mossa_jax.findings.resampling import p_value, sign_table
from mossa_jax.findings.unseen import paired_change

# Six is the least number of tasks whose sign flips can reach p <= ALPHA (1 of 2^6).
MIN_TASKS = 6
MIN_LAYERS = 4
# One-sided: half of the customary 5 %.
ALPHA = 0.025
_CHUNK = 250


@lru_cache(maxsize=8)
def _ramps(positions: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """All ramps 0..1 over the layer positions [pairs, layers], and their start and end indices [pairs, 2]."""
    at = np.array(positions, float)
    pairs = np.array([(p, q) for p in range(len(at)) for q in range(p + 1, len(at))])
    start, end = at[pairs[:, 0], None], at[pairs[:, 1], None]
    return np.clip((at - start) / (end - start), 0.0, 1.0), pairs


def _projection(weights: np.ndarray, sums: np.ndarray, ramps: np.ndarray) -> tuple[np.ndarray, ...]:
    """Regression of each curve on each ramp: cross product and ramp variance [curves, pairs], and means.

    Args:
        weights: Number of tasks behind each layer [curves, layers].
        sums: Sum over these tasks [curves, layers].
        ramps: [pairs, layers].
    """
    total = np.maximum(weights.sum(1, keepdims=True), 1e-300)
    ramp_mean = weights @ ramps.T / total
    curve_mean = sums.sum(1, keepdims=True) / total
    spread = weights @ (ramps**2).T - total * ramp_mean**2
    cross = sums @ ramps.T - total * ramp_mean * curve_mean
    return cross, np.where(spread > 1e-9, spread, np.inf), ramp_mean, curve_mean


def fit_ramp(weights: np.ndarray, sums: np.ndarray, positions: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Best level-rise-level curve through each of several mean curves.

    Args:
        weights: Float array [curves, layers], tasks behind each layer (0 leaves a layer out).
        sums: Float array [curves, layers], sums of d over those tasks.
        positions: Layer numbers [layers].

    Returns:
        Arrays [curves]: `last_shared` and `last_transition` (layer numbers p and q), `before`, `after`
        (levels). Only rises are fitted: where no ramp rises, the first pair is returned with equal levels.
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


def rise_p_value(values: np.ndarray, positions: tuple[int, ...], draws: int, rng: np.random.Generator) -> float:
    """Is there a rise along depth at all? Sign flips of whole task curves, maximum over all ramps, one-sided.

    Per task and ramp the contrast is the projection of the task's curve on the centred ramp (a constant d
    therefore contributes nothing). Under "no task moves up rather than down along depth" each task's
    contrasts may change sign together, so the maximum over ramps of sum(contrast) / sqrt(sum(contrast^2)) has
    an exchangeable null (Winkler et al. 2014, NeuroImage 92, for sign flips with maximum statistics).

    Args:
        values: Float array [tasks, layers], NaN where undefined.
        positions: Layer numbers [layers].
        draws: Number of random flips where full enumeration is larger.
        rng: Source of randomness.
    """
    finite = np.isfinite(values)
    ramps, _ = _ramps(positions)
    cross, spread, _, _ = _projection(finite.astype(float), np.where(finite, values, 0.0), ramps)
    contrast = cross / np.sqrt(spread)
    contrast = contrast / np.maximum(np.sqrt((contrast**2).sum(0)), 1e-300)
    signs, exact = sign_table(len(values), draws, rng)
    null = np.concatenate([(signs[i : i + _CHUNK] @ contrast).max(1) for i in range(0, len(signs), _CHUNK)])
    return p_value(float(contrast.sum(0).max()), null, exact)


def _crossing(mean: np.ndarray, positions: tuple[int, ...]) -> float:
    """First layer from which the mean curve stays above zero, if it was not so from the start; else NaN."""
    above = mean > 0
    if not above[-1] or above.all():
        return float("nan")
    return float(positions[int(np.flatnonzero(~above)[-1]) + 1])


def _interval(values: np.ndarray) -> list[float]:
    return [float(edge) for edge in np.quantile(values, [0.025, 0.975])]


def _break_interval(values: np.ndarray) -> list[int]:
    return [int(edge) for edge in np.quantile(values, [0.025, 0.975], method="nearest")]


def sections_of(differences_: np.ndarray, positions: tuple[int, ...], seed: int = 0, draws: int = 2000) -> dict:
    """Sections of the network from a task-by-layer matrix of differences.

    Args:
        differences_: Float array [tasks, layers], d_t(l); NaN where undefined, left out and never filled.
        positions: Layer numbers [layers].
        seed: Seed of bootstrap and sign flips.
        draws: Number of bootstrap resamples and of sign flips.

    Returns:
        `found` (bool), `reason` (why not, or ""), `resolved` (both breaks have intervals clear of the
        network's ends), `p`, `shared`, `transition`, `refinement` (each `[first, last]` or None), `start` and
        `end` intervals of the transition, levels `before` and `after` with intervals, `crossing` with its
        interval and the share of resamples that cross, `n_tasks`, `n_layers`.
    """
    finite = np.isfinite(differences_)
    layers = np.flatnonzero(finite.any(0))
    tasks = np.flatnonzero(finite.sum(1) >= MIN_LAYERS)
    values, at = differences_[np.ix_(tasks, layers)], tuple(positions[i] for i in layers)
    result = {"found": False, "resolved": False, "n_tasks": len(tasks), "n_layers": len(at), "p": None}
    result |= dict.fromkeys(("shared", "transition", "refinement", "start", "end", "before", "after", "crossing"))
    if len(at) < MIN_LAYERS:
        return result | {"reason": f"{len(at)} layers are defined; sections need at least {MIN_LAYERS}"}
    if len(tasks) < MIN_TASKS:
        return result | {"reason": f"{len(tasks)} tasks are too few; sections need at least {MIN_TASKS}"}

    mask = np.isfinite(values).astype(float)
    filled = np.where(mask > 0, values, 0.0)
    rng = np.random.default_rng([seed, 1])
    counts = rng.multinomial(len(tasks), np.full(len(tasks), 1 / len(tasks)), size=draws).astype(float)
    weights, sums = counts @ mask, counts @ filled
    fit = fit_ramp(mask.sum(0)[None], filled.sum(0)[None], at)
    boots = [fit_ramp(weights[i : i + _CHUNK], sums[i : i + _CHUNK], at) for i in range(0, draws, _CHUNK)]
    boot = {key: np.concatenate([part[key] for part in boots]) for key in fit}

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
        return result | {"reason": f"no rise along depth beyond chance over {len(tasks)} tasks (p = {p:.3g})"}
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


def find_sections(table: pd.DataFrame, estimator: str = HEADLINE, seed: int = 0, draws: int = 2000) -> dict:
    """Sections from the results table; see `sections_of` for the returned keys."""
    layers = block_layers(table)
    matrix = differences(table, estimator, held_out=False, layers=layers)
    return sections_of(matrix.to_numpy(), tuple(int(layer) for layer in layers), seed, draws) | {"estimator": estimator}


def shared_change(
    table: pd.DataFrame, sections: dict, estimator: str = HEADLINE, seed: int = 0, draws: int = 2000
) -> dict:
    """Tuned minus pre-trained CKA in the shared layers themselves, over tasks of the mixture.

    The level of the fitted ramp (`sections["before"]`) also depends on the layers behind.

    Args:
        table: The tidy results table.
        sections: From `find_sections`.
        estimator: `debiased` or `biased`.
        seed: Seed of the resampling.
        draws: Number of resamples.

    Returns:
        From `paired_change`, of each task's mean over the shared layers; of no task where no section was found.
    """
    if not sections["found"]:
        return paired_change(np.zeros(0), seed, draws)
    first, last = sections["shared"]
    layers = [layer for layer in block_layers(table) if first <= int(layer) <= last]
    matrix = differences(table, estimator, held_out=False, layers=layers)
    return paired_change(mean_defined(matrix.to_numpy()), seed, draws)


def upper_layers(sections: dict, layers: list[str]) -> tuple[list[str], str]:
    """The layers that summaries over tasks and clusters are averaged over, and their name in words."""
    if sections["found"]:
        first = sections["transition"][0]
        return [layer for layer in layers if int(layer) >= first], f"layers {first} and up (transition onwards)"
    first = len(layers) // 2 + 1
    return [layer for layer in layers if int(layer) >= first], f"layers {first} and up (upper half)"
