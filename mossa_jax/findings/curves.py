"""From the tidy results table to task-by-layer matrices and curves over layers (MOSSA, figure 2)."""

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.cells import OWN, Cells, cells_of, ordered_layers

EXPERIMENTALS = (PRETRAINED, TUNED)
HEADLINE = "debiased"
REPORTED_ESTIMATORS = (HEADLINE, "biased")
"""The estimators in the order of the report: the headline first, then the one that checks it."""


def block_layers(table: pd.DataFrame | Cells) -> list[str]:
    """Returns the names of the block outputs present in the table, in network order: `["1", ..., "L"]`."""
    return [name for name in layer_order(table) if name.isdigit()]


def layer_order(table: pd.DataFrame | Cells) -> list[str]:
    """Returns every layer name present, in network order: `embed`, `1..L`, `final_norm`."""
    if isinstance(table, Cells):
        return list(table.layers)
    return ordered_layers(str(name) for name in table["layer"].unique())


def task_layer_matrix(
    table: pd.DataFrame | Cells,
    experimental: str,
    estimator: str = HEADLINE,
    held_out: bool | None = False,
    layers: list[str] | None = None,
    column: str = "cka",
) -> pd.DataFrame:
    """Spreads one column out over tasks and layers, for each task's own (matched) control.

    Args:
      table: the results table, or its cells.
      experimental: `pretrained` or `tuned`.
      estimator: `debiased` or `biased`.
      held_out: the tasks to keep: those trained on (False), those held out (True), or all (None).
      layers: the columns of the result, in this order. None: every layer of the table.
      column: the column of the table to spread out. Cells have one already.

    Returns:
      [tasks, layers] float64. Rows are sorted by cluster, then by task; undefined cells are NaN.
    """
    layers = layer_order(table) if layers is None else layers
    if not isinstance(table, Cells):
        is_own = table["control"] == table["task"]
        table = table[is_own & (table["experimental"] == experimental) & (table["estimator"] == estimator)]
    cells, key = cells_of(table, column), (experimental, OWN, estimator)
    tasks = cells.present(key, held_out)
    return matrix_frame(cells.matrix(key, tasks, layers), tasks, layers)


def matrix_frame(values: np.ndarray, tasks: list[str], layers: list[str]) -> pd.DataFrame:
    """Labels a [T, L] matrix with its tasks and layers."""
    # Labels as Python's own strings: an index of Arrow strings takes several times as long to select from.
    return pd.DataFrame(values, pd.Index(tasks, object, name="task"), pd.Index(layers, object, name="layer"))


def differences(
    table: pd.DataFrame | Cells,
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


def clusters_of(table: pd.DataFrame | Cells) -> dict[str, str]:
    """Returns the cluster of every task of the table."""
    if isinstance(table, Cells):
        return dict(zip(table.tasks, table.clusters, strict=True))
    return dict(table.drop_duplicates("task")[["task", "cluster"]].itertuples(index=False, name=None))


def mean_defined(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Averages the defined entries of an axis; NaN, without a warning, if none is defined."""
    values = np.asarray(values, float)
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def curve_rows(table: pd.DataFrame | Cells, held_out: bool | None = False) -> list[dict[str, Any]]:
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
            matrix = task_layer_matrix(table, experimental, estimator, held_out, layers).to_numpy()
            low, middle, high = _quartiles(matrix)
            mean, counts = mean_defined(matrix, axis=0), np.isfinite(matrix).sum(0)
            for index, layer in enumerate(layers):
                rows.append(
                    {
                        "experimental": experimental,
                        "estimator": estimator,
                        "layer": layer,
                        "median": middle[index],
                        "q1": low[index],
                        "q3": high[index],
                        "mean": mean[index],
                        "n_tasks": int(counts[index]),
                    }
                )
    return rows


def _quartiles(values: np.ndarray) -> np.ndarray:
    """Returns the three quartiles of the defined entries of each column, [3, columns]; NaN without any."""
    levels, finite = [0.25, 0.5, 0.75], np.isfinite(values)
    if len(values) and finite.all():
        return np.quantile(values, levels, axis=0)
    columns = [column[defined] for column, defined in zip(values.T, finite.T, strict=True)]
    empty = [np.nan] * len(levels)
    return np.array([np.quantile(column, levels) if column.size else empty for column in columns]).T
