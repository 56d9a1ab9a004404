"""Means over units, layer by layer, of tables of the analyses: one figure per task and layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from mossa_jax.findings.curves import mean_defined
from mossa_jax.findings.units import t_interval, unit_means


class LayerMeans(NamedTuple):
    """The mean over units at each of K layers, with its 95 % t interval; NaN where it is undefined.

    Attributes:
      mean: [K].
      low: [K].
      high: [K].
    """

    mean: Float[np.ndarray, " K"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]


def sound_rows(table: pd.DataFrame, incompetent: Iterable[str]) -> pd.DataFrame:
    """Returns the rows of the mixture's tasks whose specialists use their prompts."""
    return table[~table["held_out"].astype(bool) & ~table["task"].isin(set(incompetent))]


def spread(rows: pd.DataFrame, column: str, layers: list[str]) -> tuple[Float[np.ndarray, "T K"], list[str]]:
    """Spreads one column out over tasks and layers.

    Args:
      rows: one per task and layer.
      column: to spread.
      layers: K names.

    Returns:
      [T, K] float64, tasks by cluster and name; and the cluster of each task.
    """
    tasks = rows.drop_duplicates("task").sort_values(["cluster", "task"])
    # A pivot table takes ten times as long, and charts spread hundreds of columns.
    at = (pd.Index(tasks["task"]).get_indexer(rows["task"]), pd.Index(layers).get_indexer(rows["layer"]))
    values = rows[column].to_numpy(float)
    keep = ~np.isnan(values) & (at[1] >= 0)
    at = (at[0][keep], at[1][keep])
    totals, counts = np.zeros((len(tasks), len(layers))), np.zeros((len(tasks), len(layers)))
    np.add.at(totals, at, values[keep])
    np.add.at(counts, at, 1)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan), list(tasks["cluster"])


def layer_means(values: Float[np.ndarray, "T K"], clusters: list[str]) -> LayerMeans:
    """Averages each layer over units, so that each cluster counts once."""
    units = unit_means(values, clusters)
    bounds = np.asarray([t_interval(column) for column in units.T]).reshape(-1, 2)
    return LayerMeans(mean_defined(units, axis=0), bounds[:, 0], bounds[:, 1])
