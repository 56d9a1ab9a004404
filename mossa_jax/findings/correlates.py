"""What goes with similarity over tasks: how hard the prompts are to read, and how much data there is (figure 6).

Tasks of one cluster are not independent, so intervals and tests rest on whole clusters. A correlation over a dozen
clusters is rough: docs/analyses.md has the coverage of these intervals and the false positives of these tests.

Shape letters: T tasks, U units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.competence import find_competence
from mossa_jax.findings.curves import REPORTED_ESTIMATORS, clusters_of, differences, layer_order, task_layer_matrix
from mossa_jax.findings.units import (
    LEVEL,
    MIN_UNITS_FOR_INTERVAL,
    sign_flip,
    too_few,
    unit_codes,
    unit_name,
)

CHANGE = "change"
EXPERIMENTALS = (PRETRAINED, TUNED, CHANGE)
CORRELATES = ("flesch_kincaid", "coleman_liau", "training_rows")

_LEAST_TASKS = 4

# Fisher's z of a perfect correlation is infinite.
_LARGEST = 1 - 1e-12


def find_correlates(
    table: pd.DataFrame, scores: pd.DataFrame, tasks: pd.DataFrame, seed: int = 0, draws: int = 2000
) -> pd.DataFrame:
    """Correlates similarity with figures of the tasks, layer by layer.

    Only tasks of the mixture with a competent specialist count: a specialist that learned nothing is near the base for
    that reason alone. If they are too few, all tasks of the mixture count, and `competent_only` is False.

    Args:
      table: the results table.
      scores: the task scores.
      tasks: one row per task, columns `task` and those of `CORRELATES`.
      seed: of random sign flips.
      draws: number of sign flips, unless all are enumerated.

    Returns:
      A row per experimental (`pretrained`, `tuned`, `change`), correlate, estimator and layer: `r` with `low`, `high`
      and `p` as in `correlation`, `q` over the layers, `spearman`, `n_tasks`, `n_units`, `unit`, `competent_only`, and
      `undefined`, the reason where there is no `r`.
    """
    incompetent = find_competence(table, scores)["incompetent"]
    sound = table[~table["task"].isin(incompetent)]
    competent_only = sound.loc[~sound["held_out"].astype(bool), "task"].nunique() >= _LEAST_TASKS
    sound = sound if competent_only else table
    layers, clusters = layer_order(table), clusters_of(table)
    figures = tasks.set_index("task")
    rows: list[dict[str, Any]] = []
    for estimator in REPORTED_ESTIMATORS:
        values = {
            PRETRAINED: task_layer_matrix(sound, PRETRAINED, estimator, layers=layers),
            TUNED: task_layer_matrix(sound, TUNED, estimator, layers=layers),
            CHANGE: differences(sound, estimator, layers=layers),
        }
        for experimental in EXPERIMENTALS:
            matrix = values[experimental]
            names = [clusters[task] for task in matrix.index]
            for correlate in CORRELATES:
                given = figures[correlate].reindex(matrix.index).to_numpy(float)
                cells = [correlation(matrix[layer].to_numpy(), given, names, (seed, 64), draws) for layer in layers]
                for layer, cell, q in zip(layers, cells, _q_values([cell["p"] for cell in cells]), strict=True):
                    first = {"experimental": experimental, "correlate": correlate, "estimator": estimator}
                    rows.append({**first, "layer": layer, **cell, "q": q})
    columns = ["layer", "experimental", "correlate", "estimator", "r", "low", "high", "p", "q", "spearman"]
    frame = pd.DataFrame(rows).assign(competent_only=competent_only)
    return frame[[*columns, "n_tasks", "n_units", "unit", "competent_only", "undefined"]]


def correlation(
    x: Float[np.ndarray, " T"],
    y: Float[np.ndarray, " T"],
    clusters: list[str],
    seed: int | tuple[int, ...] = 0,
    draws: int = 2000,
) -> dict[str, Any]:
    """Computes Pearson's r over tasks, with an interval and a test over units.

    The interval is a t interval of Fisher's z, whose error is the jackknife over units. The test flips the signs of the
    units' shares in the covariance, as a wild cluster bootstrap with the null imposed does.

    Args:
      x: one value per task; NaN are left out.
      y: one value per task; NaN are left out.
      clusters: the cluster of each task.
      seed: of random flips.
      draws: number of random flips, unless all are enumerated.

    Returns:
      `r`, `low`, `high`, `p`, `spearman`, `n_tasks`, `n_units`, `unit`, and `undefined`, the reason where there is no
      `r`. `low` and `high` are NaN with fewer than `MIN_UNITS_FOR_INTERVAL` units, `p` with fewer than
      `units.MIN_UNITS`.

    References:
      Cameron, Gelbach and Miller 2008, "Bootstrap-based improvements for inference with clustered errors".
    """
    from scipy.stats import rankdata

    keep = np.isfinite(x) & np.isfinite(y)
    x, y, clusters = x[keep], y[keep], [name for name, kept in zip(clusters, keep, strict=True) if kept]
    codes = unit_codes(clusters)
    n_units, unit = int(codes.max()) + 1 if len(codes) else 0, unit_name(clusters) if clusters else "clusters"
    result: dict[str, Any] = {name: float("nan") for name in ("r", "low", "high", "p", "spearman")}
    result |= {"n_tasks": len(x), "n_units": n_units, "unit": unit, "undefined": ""}
    if len(x) < _LEAST_TASKS:
        return result | {"undefined": f"{len(x)} tasks; at least {_LEAST_TASKS} are needed"}
    if not (_varies(x) and _varies(y)):
        return result | {"undefined": "the same value for all tasks"}
    weights = np.ones((1, len(x)))
    result["r"] = float(_weighted(x, y, weights)[0])
    result["spearman"] = float(_weighted(rankdata(x), rankdata(y), weights)[0])
    if n_units >= MIN_UNITS_FOR_INTERVAL:
        without = (codes[None, :] != np.arange(n_units)[:, None]).astype(float)  # [U, T]
        result["low"], result["high"] = _interval(result["r"], _weighted(x, y, without))
    if not too_few(n_units, unit):
        shares = np.bincount(codes, (x - x.mean()) * (y - y.mean()))  # [U]
        result["p"] = sign_flip(shares, draws, np.random.default_rng(seed))
    return result


def _weighted(x: np.ndarray, y: np.ndarray, weights: Float[np.ndarray, "U T"]) -> Float[np.ndarray, " U"]:
    """Returns Pearson's r of x and y for each row of weights; NaN where one does not vary."""
    share = weights / weights.sum(1, keepdims=True)
    x = x - (share @ x)[:, None]  # [U, T]
    y = y - (share @ y)[:, None]
    covariance, squares = (share * x * y).sum(1), (share * x * x).sum(1) * (share * y * y).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(squares > 0, covariance / np.sqrt(squares), np.nan)


def _interval(r: float, without: Float[np.ndarray, " U"]) -> tuple[float, float]:
    """Returns the interval of r, given its values without each unit; NaN if one of them is not defined."""
    units = len(without)
    z = np.arctanh(np.clip(np.append(without, r), -_LARGEST, _LARGEST))
    error = np.sqrt((units - 1) / units * np.square(z[:-1] - z[:-1].mean()).sum())
    half_width = special.stdtrit(units - 1, 1 - LEVEL / 2) * error
    return float(np.tanh(z[-1] - half_width)), float(np.tanh(z[-1] + half_width))


def _q_values(p: list[float]) -> Float[np.ndarray, " K"]:
    """Adjusts the p values of all layers by Benjamini and Hochberg; NaN stay out."""
    from scipy.stats import false_discovery_control

    values = np.array(p, float)
    defined = np.isfinite(values)
    if defined.any():
        values[defined] = false_discovery_control(values[defined])
    return values


def _varies(values: np.ndarray) -> bool:
    return bool(np.ptp(values) > 1e-9 * np.abs(values).max())
