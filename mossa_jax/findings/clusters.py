"""How much of each task cluster pre-training already holds, and what tuning adds (MOSSA, figure 3)."""

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import HEADLINE, clusters_of, mean_defined, task_layer_matrix
from mossa_jax.findings.resampling import interval_of_mean, p_value


def task_levels(
    table: pd.DataFrame, layers: list[str], estimator: str = HEADLINE, held_out: bool | None = False
) -> pd.DataFrame:
    """Mean CKA over layers per task: columns `cluster`, `pretrained`, `tuned`, `change`; index task."""
    columns = {
        name: pd.Series(mean_defined(matrix.to_numpy()), index=matrix.index)
        for name in ("pretrained", "tuned")
        for matrix in [task_layer_matrix(table, name, estimator, held_out, layers)]
    }
    levels = pd.DataFrame(columns, dtype=float)
    # Averaged over layers where both are defined, never a difference of means over unlike layers.
    tuned, pretrained = (
        task_layer_matrix(table, name, estimator, held_out, layers).reindex(levels.index)
        for name in ("tuned", "pretrained")
    )
    levels["change"] = mean_defined((tuned - pretrained).to_numpy())
    levels.insert(0, "cluster", [clusters_of(table)[task] for task in levels.index])
    return levels


def _summary(values: np.ndarray, draws: int, rng: np.random.Generator) -> dict:
    finite = values[np.isfinite(values)]
    low, high = interval_of_mean(finite, draws, rng)
    return {"mean": float(finite.mean()) if finite.size else float("nan"), "low": low, "high": high}


def rank_clusters(levels: pd.DataFrame, seed: int = 0, draws: int = 2000) -> list[dict]:
    """Clusters from the most to the least held by pre-training.

    Args:
        levels: From `task_levels`.
        seed: Seed of the bootstrap over tasks.
        draws: Number of resamples.

    Returns:
        A dict per cluster: `rank`, `cluster`, `n_tasks`, `tasks`, and for `pretrained`, `tuned`, `change` the
        mean over tasks with its 95 % bootstrap interval (NaN with fewer than three tasks; `reason` then says
        so).
    """
    rows = []
    for index, (cluster, group) in enumerate(levels.groupby("cluster", sort=True)):
        rng = np.random.default_rng([seed, 10, index])
        defined = int(np.isfinite(group["pretrained"]).sum())
        row = {"cluster": cluster, "n_tasks": defined, "tasks": list(group.index)}
        row |= {key: _summary(group[key].to_numpy(), draws, rng) for key in ("pretrained", "tuned", "change")}
        row["reason"] = "" if defined >= 3 else f"tasks with defined cells: {defined}, too few for an interval"
        rows.append(row)
    rows.sort(
        key=lambda row: (
            not np.isfinite(row["pretrained"]["mean"]),
            -row["pretrained"]["mean"],
            row["cluster"],
        )
    )
    return [{"rank": rank} | row for rank, row in enumerate(rows, 1)]


def clusters_differ(levels: pd.DataFrame, column: str, seed: int = 0, draws: int = 2000) -> dict:
    """Do clusters differ beyond the spread of their tasks? One-way F, cluster labels permuted over tasks.

    Args:
        levels: From `task_levels`.
        column: `pretrained`, `tuned` or `change`.
        seed: Seed of the permutations.
        draws: Number of permutations.

    Returns:
        `p` (NaN when not measurable), `eta_squared` (share of variance between clusters), `n_tasks`,
        `n_clusters` and `reason` (Anderson 2001, Austral Ecology 26, for the permutation of a one-way
        layout).
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
    if (sizes >= 2).sum() < 2 or len(values) < 6 or not values.any():
        return result | {"reason": "needs six tasks, with two clusters of two or more tasks each"}
    onehot = np.eye(len(names))[codes]

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
