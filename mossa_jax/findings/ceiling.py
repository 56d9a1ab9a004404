"""The scale of a similarity: how similar two specialists of one task are, and what a value varies with.

Two seeds of one specialist learned the same from the same rows. Their CKA is the ceiling of what E can reach, and the
change from one seed to another is the largest part of a cell's noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.cells import OWN, SEED, Cells, cells_of
from mossa_jax.findings.controls import kind_matrix
from mossa_jax.findings.curves import HEADLINE, mean_defined
from mossa_jax.findings.units import unit_codes, unit_means

CONTROL = "control"
"""Value of `experimental` in rows that compare two seeds of a specialist."""


def find_ceiling(
    table: pd.DataFrame | Cells, tasks: list[str], layers: list[str], estimator: str = HEADLINE
) -> dict[str, Any]:
    """Averages the ceiling over the tasks that have a second specialist.

    Args:
      table: the results table, or its cells.
      tasks: competent tasks.
      layers: the layers, in network order.
      estimator: `debiased` or `biased`.

    Returns:
      `measured`; `tasks`: those with a second specialist; `by_layer`: mean ceiling per layer, NaN without;
      `tuned_share` and `pretrained_share`: CKA of E and of the base over the ceiling, by layer, over the same tasks.
    """
    table = cells_of(table)
    own = kind_matrix(table, CONTROL, SEED, layers, tasks, estimator)
    own = own[own.notna().any(axis=1)]
    seeded = list(own.index)
    by_layer = mean_defined(own.to_numpy(), axis=0) if seeded else np.full(len(layers), np.nan)
    result = {"measured": bool(seeded), "tasks": seeded, "layers": layers, "by_layer": by_layer}
    for name in (TUNED, PRETRAINED):
        values = kind_matrix(table, name, OWN, layers, seeded, estimator)
        mean = mean_defined(values.to_numpy(), axis=0) if seeded else np.full(len(layers), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[f"{name}_share"] = np.where(by_layer > 0, mean / by_layer, np.nan)
    return result


def variance_parts(
    table: pd.DataFrame | Cells,
    tasks: list[str],
    clusters: list[str],
    layers: list[str],
    row_errors: Float[np.ndarray, " T"] | None = None,
    template_errors: Float[np.ndarray, "T L"] | None = None,
) -> list[dict[str, Any]]:
    """Splits the variance of a task's change, and of the headline (its mean over units), into parts.

    Rows, template and seed of C come from within a task; task and cluster from the spread of tasks (analysis of
    variance, negative parts cut to zero). The seed of E is common to all tasks, so averaging does not lower it.

    Args:
      table: the results table, or its cells.
      tasks: competent tasks of the mixture.
      clusters: their clusters.
      layers: the layers that the headline averages.
      row_errors: standard error over rows of each task's change, averaged over the layers; None if it is not known.
      template_errors: standard error over templates of each task's CKA with E, per layer; None if it is not known.

    Returns:
      Rows `part, cell, headline, reason`: standard deviations of one task's change and of the headline; NaN, with a
      reason, where a part was not measured.
    """
    table = cells_of(table)
    changes = _changes(table, TUNED, OWN, layers, tasks)
    keep = np.isfinite(changes)
    if keep.sum() < 3:
        return []
    codes = unit_codes([name for name, kept in zip(clusters, keep, strict=True) if kept])
    sizes = np.bincount(codes).astype(float)
    # The share of one task's own variance that is left in the mean over units.
    task_share = float((1 / sizes).sum() / len(sizes) ** 2)
    parts: dict[str, tuple[float, float, str]] = {}

    rows = _mean_square(row_errors)
    parts["row"] = (rows, rows * task_share, "" if np.isfinite(rows) else "intervals over rows were not computed")
    template = _mean_square(template_errors)
    known = np.isfinite(template)
    parts["template"] = (template, template * task_share, "" if known else "fewer than three templates are known")
    seed = _seed_variance(table, tasks, layers, changes)
    parts["seed of C"] = (seed, seed * task_share, "" if np.isfinite(seed) else "no specialist has a second seed")
    cell, headline = _experimental_variance(table, tasks, clusters, layers)
    parts["seed of E"] = (cell, headline, "" if np.isfinite(headline) else "E has one seed")
    within, between = _task_and_cluster(changes[keep], codes)
    own = max(0.0, within - sum(value for value in (rows, seed) if np.isfinite(value)))
    parts["task"] = (own, own * task_share, "" if np.isfinite(within) else "no cluster has two tasks")
    reason = "" if np.isfinite(between) else "no cluster has two tasks"
    parts["cluster"] = (between, between / len(sizes), reason)
    return [
        {"part": name, "cell": np.sqrt(cell), "headline": np.sqrt(headline), "reason": reason}
        for name, (cell, headline, reason) in parts.items()
    ]


def _changes(table: Cells, tuned: str, kind: str, layers: list[str], tasks: list[str]) -> np.ndarray:
    """Returns each task's mean change over layers with controls of one kind, [T]."""
    after = kind_matrix(table, tuned, kind, layers, tasks).to_numpy()
    before = kind_matrix(table, PRETRAINED, kind, layers, tasks).to_numpy()
    return mean_defined(after - before)


def _mean_square(errors: np.ndarray | None) -> float:
    finite = np.asarray([] if errors is None else errors, float)
    finite = finite[np.isfinite(finite)]
    return float(np.mean(finite**2)) if finite.size else float("nan")


def _seed_variance(table: Cells, tasks: list[str], layers: list[str], changes: np.ndarray) -> float:
    """Returns the variance of a task's change over seeds of its specialist, from pairs of seeds."""
    half = _changes(table, TUNED, SEED, layers, tasks) - changes
    half = half[np.isfinite(half)]
    return float(np.mean(half**2) / 2) if half.size else float("nan")


def _experimental_variance(
    table: Cells, tasks: list[str], clusters: list[str], layers: list[str]
) -> tuple[float, float]:
    """Returns the variance over seeds of E of a task's change, and that of the headline; NaN with one seed."""
    names = [TUNED, *(name for name in table.experimentals() if name.startswith(f"{TUNED}.seed"))]
    if len(names) < 2:
        return float("nan"), float("nan")
    changes = np.stack([_changes(table, name, OWN, layers, tasks) for name in names])  # [seeds, T]
    headlines = np.array([np.nanmean(unit_means(row, clusters)) for row in changes])
    return float(np.nanmean(changes.var(0, ddof=1))), float(headlines.var(ddof=1))


def _task_and_cluster(values: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
    """Returns the variance of tasks within units and that between units, by one-way analysis of variance."""
    sizes = np.bincount(codes).astype(float)
    units, tasks = len(sizes), len(values)
    if tasks == units or units < 2:
        return float("nan"), float("nan")
    means = np.bincount(codes, values) / sizes
    within = float(((values - means[codes]) ** 2).sum() / (tasks - units))
    between = float((sizes * (means - values.mean()) ** 2).sum() / (units - 1))
    typical = (tasks - (sizes**2).sum() / tasks) / (units - 1)
    return within, max(0.0, (between - within) / typical)
