"""How much of each task cluster pre-training already holds, and what tuning adds (MOSSA, figure 3)."""

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.curves import EXPERIMENTALS, HEADLINE, clusters_of, mean_defined, task_layer_matrix
from mossa_jax.findings.resampling import interval_of_mean, p_value

MIN_TASKS_FOR_INTERVAL = 3
MIN_TASKS_FOR_TEST = 6


def task_levels(
    table: pd.DataFrame, layers: list[str], estimator: str = HEADLINE, held_out: bool | None = False
) -> pd.DataFrame:
    """Averages each task's CKA with its own specialist over layers.

    Args:
      table: the results table.
      layers: the layers to average over.
      estimator: `debiased` or `biased`.
      held_out: as in `task_layer_matrix`.

    Returns:
      Columns `cluster`, `pretrained`, `tuned` and `change`; the index is the task.
    """
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


def _mean_and_interval(values: np.ndarray, draws: int, rng: np.random.Generator) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    low, high = interval_of_mean(finite, draws, rng)
    return {"mean": float(finite.mean()) if finite.size else float("nan"), "low": low, "high": high}


def rank_clusters(levels: pd.DataFrame, seed: int = 0, draws: int = 2000) -> list[dict[str, Any]]:
    """Ranks clusters from the most to the least held by pre-training.

    Args:
      levels: from `task_levels`.
      seed: seed of the bootstrap over tasks.
      draws: number of resamples.

    Returns:
      One dict per cluster: `rank`, `cluster`, `n_tasks`, `tasks`, and for each of `pretrained`, `tuned` and `change`
      the mean over tasks with its 95 % bootstrap interval. With fewer than three tasks the interval is NaN and
      `reason` says so.
    """
    rows = []
    for index, (cluster, group) in enumerate(levels.groupby("cluster", sort=True)):
        rng = np.random.default_rng([seed, 10, index])
        n_tasks = int(np.isfinite(group[PRETRAINED]).sum())
        row: dict[str, Any] = {"cluster": cluster, "n_tasks": n_tasks, "tasks": list(group.index)}
        row |= {key: _mean_and_interval(group[key].to_numpy(), draws, rng) for key in (PRETRAINED, TUNED, "change")}
        enough = n_tasks >= MIN_TASKS_FOR_INTERVAL
        row["reason"] = "" if enough else f"too few tasks with defined cells for an interval ({n_tasks})"
        rows.append(row)
    rows.sort(
        key=lambda row: (
            not np.isfinite(row[PRETRAINED]["mean"]),
            -row[PRETRAINED]["mean"],
            row["cluster"],
        )
    )
    return [{"rank": rank} | row for rank, row in enumerate(rows, 1)]


def clusters_differ(levels: pd.DataFrame, column: str, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """Tests whether clusters differ beyond the spread of their tasks.

    A one-way layout whose null permutes the cluster labels over tasks.

    Args:
      levels: from `task_levels`.
      column: `pretrained`, `tuned` or `change`.
      seed: seed of the permutations.
      draws: number of permutations.

    Returns:
      `p` (NaN if it cannot be tested), `eta_squared` (share of the variance that lies between clusters), `n_tasks`,
      `n_clusters` and `reason`.

    References:
      Anderson 2001, "A new method for non-parametric multivariate analysis of variance", Austral Ecology 26.
    """
    defined = levels[np.isfinite(levels[column])]
    codes, names = pd.factorize(defined["cluster"], sort=True)
    sizes = np.bincount(codes, minlength=len(names))
    values = defined[column].to_numpy() - (defined[column].mean() if len(defined) else 0.0)
    result = {
        "n_tasks": len(values),
        "n_clusters": len(names),
        "p": float("nan"),
        "eta_squared": float("nan"),
    }
    if (sizes >= 2).sum() < 2 or len(values) < MIN_TASKS_FOR_TEST or not values.any():
        return result | {"reason": "at least six tasks are needed, with two clusters of two or more tasks each"}
    onehot = np.eye(len(names))[codes]  # [tasks, clusters]

    def between(sample: np.ndarray) -> np.ndarray:
        return ((sample @ onehot) ** 2 / sizes).sum(-1)

    rng = np.random.default_rng([seed, 11])
    null = between(rng.permuted(np.tile(values, (draws, 1)), axis=1))
    observed = float(between(values))
    return result | {
        "p": p_value(observed, null, exact=False),
        "eta_squared": observed / float((values**2).sum()),
        "reason": "",
    }
