"""How much of each task cluster pre-training already holds, and what tuning adds (MOSSA, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.cells import Cells, cells_of
from mossa_jax.findings.competence import BASE, CONTROL, INFORMATION, scores_of
from mossa_jax.findings.curves import EXPERIMENTALS, HEADLINE, clusters_of, mean_defined, task_layer_matrix
from mossa_jax.findings.units import t_interval

CLUSTER_LEVEL = 0.99
"""Level of the t intervals of cluster means. Similarities near 1 are skewed, and most clusters have three to five
tasks: at 95 % such intervals cover 82 to 84 % of skewed data, at 99 % they cover 91 to 95 % (docs/statistics.md)."""

MIN_TASKS_FOR_TEST = 6


def task_levels(
    table: pd.DataFrame | Cells, layers: list[str], estimator: str = HEADLINE, held_out: bool | None = False
) -> pd.DataFrame:
    """Averages each task's CKA with its own specialist over layers.

    Args:
      table: the results table, or its cells.
      layers: the layers to average over.
      estimator: `debiased` or `biased`.
      held_out: as in `task_layer_matrix`.

    Returns:
      Columns `cluster`, `pretrained`, `tuned` and `change`; the index is the task.
    """
    table = cells_of(table)
    matrices = {name: task_layer_matrix(table, name, estimator, held_out, layers) for name in EXPERIMENTALS}
    columns = {
        name: pd.Series(mean_defined(matrix.to_numpy()), index=matrix.index) for name, matrix in matrices.items()
    }
    levels = pd.DataFrame(columns, dtype=float)
    # The change averages over the layers where both models are defined. A difference of the two means would compare
    # different layers.
    tuned, pretrained = (matrices[name].reindex(levels.index) for name in (TUNED, PRETRAINED))
    levels["change"] = mean_defined((tuned - pretrained).to_numpy())
    cluster_of = clusters_of(table)
    levels.insert(0, "cluster", [cluster_of[task] for task in levels.index])
    return levels


def _mean_and_interval(values: np.ndarray) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    low, high = t_interval(finite, CLUSTER_LEVEL)
    return {"mean": float(finite.mean()) if finite.size else float("nan"), "low": low, "high": high}


def rank_clusters(levels: pd.DataFrame, scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Ranks clusters from the most to the least held by pre-training.

    Args:
      levels: from `task_levels`, competent tasks only.
      scores: the task scores.

    Returns:
      One dict per cluster: `rank`, `cluster`, `n_tasks`, `tasks`; for each of `pretrained`, `tuned` and `change` the
      mean over tasks with its t interval at `CLUSTER_LEVEL` (NaN, and `reason`, with fewer than three tasks); and
      `information_share`, the base's information as a share of the specialists', NaN if it was not scored.
    """
    base, control = (scores_of(scores, INFORMATION, model) for model in (BASE, CONTROL))
    base, control = base.reindex(levels.index), control.reindex(levels.index)
    rows = []
    for cluster, group in levels.groupby("cluster", sort=True):
        n_tasks = int(np.isfinite(group[PRETRAINED]).sum())
        row: dict[str, Any] = {"cluster": cluster, "n_tasks": n_tasks, "tasks": list(group.index)}
        row |= {key: _mean_and_interval(group[key].to_numpy()) for key in (PRETRAINED, TUNED, "change")}
        row["reason"] = "" if n_tasks >= 3 else f"too few tasks with defined cells for an interval ({n_tasks})"
        total = control[group.index].sum(min_count=1)
        row["information_share"] = base[group.index].sum(min_count=1) / total if total > 0 else float("nan")
        rows.append(row)
    rows.sort(
        key=lambda row: (
            not np.isfinite(row[PRETRAINED]["mean"]),
            -row[PRETRAINED]["mean"],
            row["cluster"],
        )
    )
    return [{"rank": rank} | row for rank, row in enumerate(rows, 1)]


def clusters_differ(levels: pd.DataFrame, column: str) -> dict[str, Any]:
    """Tests whether cluster means differ, without assuming that clusters spread alike.

    Args:
      levels: from `task_levels`.
      column: `pretrained`, `tuned` or `change`.

    Returns:
      `p` (NaN if it cannot be tested), `f`, `eta_squared` (share of the variance that lies between clusters),
      `n_tasks`, `n_clusters` (those with two or more tasks) and `reason`.
    """
    defined = levels[np.isfinite(levels[column])]
    sizes = defined.groupby("cluster").size()
    defined = defined[defined["cluster"].isin(sizes[sizes >= 2].index)]
    groups = [group[column].to_numpy() for _, group in defined.groupby("cluster", sort=True)]
    result: dict[str, Any] = {"n_tasks": len(defined), "n_clusters": len(groups)}
    result |= {"p": float("nan"), "f": float("nan"), "eta_squared": float("nan")}
    if len(groups) < 2 or len(defined) < MIN_TASKS_FOR_TEST or not sum(group.var() for group in groups):
        return result | {"reason": "at least six tasks are needed, with two clusters of two or more tasks each"}
    f, p = brown_forsythe(groups)
    values = np.concatenate(groups)
    between = sum(len(group) * (group.mean() - values.mean()) ** 2 for group in groups)
    return result | {"p": p, "f": f, "eta_squared": between / ((values - values.mean()) ** 2).sum(), "reason": ""}


def brown_forsythe(groups: Sequence[Float[np.ndarray, " n"]]) -> tuple[float, float]:
    """Tests equal means under unequal variances: Brown and Forsythe's F with Mehrotra's degrees of freedom.

    Permutation tests of the same hypothesis (F, Welch's statistic, Brown and Forsythe's) gave 7 to 26 % false
    positives at a nominal 5 % where small clusters spread more; this one gives 3 to 5 % (docs/statistics.md).

    Args:
      groups: two or more groups of two or more values.

    Returns:
      F and its p value.

    References:
      Mehrotra 1997, "Improving the Brown-Forsythe solution to the generalized Behrens-Fisher problem", Communications
      in Statistics - Simulation and Computation 26.
    """
    from scipy.stats import f as f_distribution

    sizes = np.array([len(group) for group in groups], float)
    means = np.array([group.mean() for group in groups])
    variances = np.array([group.var(ddof=1) for group in groups])
    total = sizes.sum()
    grand = (sizes * means).sum() / total
    weighted = (1 - sizes / total) * variances
    statistic = (sizes * (means - grand) ** 2).sum() / weighted.sum()
    pooled = (sizes * variances).sum() / total
    numerator = weighted.sum() ** 2 / ((variances**2).sum() + pooled**2 - 2 * (sizes * variances**2).sum() / total)
    denominator = weighted.sum() ** 2 / (weighted**2 / (sizes - 1)).sum()
    return float(statistic), float(f_distribution.sf(statistic, numerator, denominator))
