"""From the tidy results table to task-by-layer matrices and curves over layers (MOSSA, figure 2)."""

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED

EXPERIMENTALS = (PRETRAINED, TUNED)
HEADLINE = "debiased"
REPORTED_ESTIMATORS = (HEADLINE, "biased")
"""The estimators in the order of the report: the headline first, then the one that checks it."""


def block_layers(table: pd.DataFrame) -> list[str]:
    """Returns the names of the block outputs present in the table, in network order: `["1", ..., "L"]`."""
    names = {str(name) for name in table["layer"].unique()}
    return sorted((name for name in names if name.isdigit()), key=int)


def layer_order(table: pd.DataFrame) -> list[str]:
    """Returns every layer name present, in network order: `embed`, `1..L`, `final_norm`."""
    names = {str(name) for name in table["layer"].unique()}
    head = ["embed"] if "embed" in names else []
    tail = sorted(name for name in names if not name.isdigit() and name != "embed")
    return [*head, *block_layers(table), *tail]


def task_layer_matrix(
    table: pd.DataFrame,
    experimental: str,
    estimator: str = HEADLINE,
    held_out: bool | None = False,
    layers: list[str] | None = None,
    column: str = "cka",
) -> pd.DataFrame:
    """Spreads one column out over tasks and layers, for each task's own (matched) control.

    Args:
      table: the results table.
      experimental: `pretrained` or `tuned`.
      estimator: `debiased` or `biased`.
      held_out: the tasks to keep: those trained on (False), those held out (True), or all (None).
      layers: the columns of the result, in this order. None: every layer of the table.
      column: the column of the table to spread out.

    Returns:
      [tasks, layers] float64. Rows are sorted by cluster, then by task; undefined cells are NaN.
    """
    layers = layer_order(table) if layers is None else layers
    keep = (
        (table["control"] == table["task"])
        & (table["experimental"] == experimental)
        & (table["estimator"] == estimator)
    )
    if held_out is not None:
        keep &= table["held_out"].astype(bool) == held_out
    rows = table[keep]
    values = pd.to_numeric(rows[column], errors="coerce").where(rows["undefined"].fillna("") == "")
    rows = rows.assign(layer=rows["layer"].astype(str), value=values.astype(float))
    order = rows.drop_duplicates("task").sort_values(["cluster", "task"])["task"]
    matrix = rows.pivot_table(index="task", columns="layer", values="value", aggfunc="mean", dropna=False)
    return matrix.reindex(index=list(order), columns=layers).astype(float)


def differences(
    table: pd.DataFrame,
    estimator: str = HEADLINE,
    held_out: bool | None = False,
    layers: list[str] | None = None,
) -> pd.DataFrame:
    """Computes the change d_t(l) = CKA(tuned, C_t) - CKA(pretrained, C_t).

    Args:
      table: the results table.
      estimator: `debiased` or `biased`.
      held_out: as in `task_layer_matrix`.
      layers: as in `task_layer_matrix`.

    Returns:
      [tasks, layers] float64; NaN where either similarity is undefined.
    """
    tuned = task_layer_matrix(table, TUNED, estimator, held_out, layers)
    pretrained = task_layer_matrix(table, PRETRAINED, estimator, held_out, layers)
    tasks = [task for task in tuned.index if task in pretrained.index]
    return tuned.loc[tasks] - pretrained.loc[tasks]


def clusters_of(table: pd.DataFrame) -> dict[str, str]:
    """Returns the cluster of every task of the table."""
    return dict(table.drop_duplicates("task")[["task", "cluster"]].itertuples(index=False, name=None))


def mean_defined(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Averages the defined entries of an axis; NaN, without a warning, if none is defined."""
    values = np.asarray(values, float)
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def curve_rows(table: pd.DataFrame, held_out: bool | None = False) -> list[dict[str, Any]]:
    """Summarises tasks per layer, experimental model and estimator.

    Quartiles are linear interpolations (`numpy.quantile`), as box plots draw them.

    Args:
      table: the results table.
      held_out: as in `task_layer_matrix`.

    Returns:
      Dicts `experimental, estimator, layer, median, q1, q3, mean, n_tasks`. A layer with no defined task keeps its
      row, with `n_tasks` 0 and NaN values.
    """
    layers = layer_order(table)
    rows = []
    for experimental in EXPERIMENTALS:
        for estimator in REPORTED_ESTIMATORS:
            matrix = task_layer_matrix(table, experimental, estimator, held_out, layers)
            for layer in layers:
                values = matrix[layer].to_numpy()
                values = values[np.isfinite(values)]
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]) if values.size else [np.nan] * 3
                rows.append(
                    {
                        "experimental": experimental,
                        "estimator": estimator,
                        "layer": layer,
                        "median": middle,
                        "q1": low,
                        "q3": high,
                        "mean": values.mean() if values.size else np.nan,
                        "n_tasks": int(values.size),
                    }
                )
    return rows
