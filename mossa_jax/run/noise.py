"""The noise of a run's cells: over the rows of a task, and over the seeds of its control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.similarity.intervals import LEVEL, confidence_interval

if TYPE_CHECKING:
    import pandas as pd

SEED_SHARES = 2.0
"""How often the variance between seeds counts in an interval: twice for one that holds the value of a *repetition*
with another seed, whose own deviation comes on top of that of the seed at hand."""


def pooled_variance(values: pd.DataFrame, column: str, keys: list[str]) -> pd.DataFrame:
    """Pools the variance between the seeds of each task's control over tasks.

    Args:
      values: one row per task and seed and keys, with columns `task`, `column` and those of `keys`.
      column: whose variance is meant.
      keys: for each of their values the variance is pooled by itself.

    Returns:
      Columns `keys`, `error_seeds` (the root of the pooled variance) and `seed_freedom`, its degrees of freedom; only
      keys for which some task has two seeds.
    """
    spread = values.dropna(subset=[column]).groupby([*keys, "task"], sort=False)[column].agg(["var", "count"])
    spread = spread[spread["count"] > 1].reset_index()
    spread["seed_freedom"] = spread["count"] - 1
    spread["sum"] = spread["var"] * spread["seed_freedom"]
    pooled = spread.groupby(keys, sort=False)[["sum", "seed_freedom"]].sum().reset_index()
    pooled["error_seeds"] = np.sqrt(pooled["sum"] / pooled["seed_freedom"])
    return pooled[[*keys, "error_seeds", "seed_freedom"]]


def is_own(table: pd.DataFrame) -> pd.Series:
    """Returns which rows compare with a task's own control or a further seed of it."""
    # No task's name ends in `.seed<N>`, so what is before it is a task's name.
    return table.control.str.replace(r"\.seed\d+$", "", regex=True) == table.task


def combine(
    rows: np.ndarray, row_freedom: np.ndarray, seeds: np.ndarray, seed_freedom: np.ndarray, shares: float
) -> tuple[np.ndarray, np.ndarray]:
    """Combines the errors over rows and over seeds, each [...]; an unknown error over seeds (NaN) counts as none.

    Args:
      rows, row_freedom: errors over rows, and their degrees of freedom.
      seeds, seed_freedom: errors over seeds, and their degrees of freedom.
      shares: how often the variance between seeds counts.

    Returns:
      The standard error, and its degrees of freedom, at least 1.

    References:
      Satterthwaite 1946, "An approximate distribution of estimates of variance components".
    """
    row_variance, seed_variance = np.square(rows), shares * np.square(np.nan_to_num(seeds))
    variance = row_variance + seed_variance
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = row_variance**2 / row_freedom + np.where(seed_variance > 0, seed_variance**2 / seed_freedom, 0.0)
        freedom = np.where(parts > 0, variance**2 / parts, row_freedom)
    return np.sqrt(variance), np.maximum(freedom, 1.0)


def add_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the results table with `error_seeds`, and intervals over rows and seeds where seeds were measured.

    Args:
      table: with columns `experimental, control, task, layer, estimator, cka, low, high, units, error_rows`.
    """
    keys = ["experimental", "layer", "estimator"]
    own = is_own(table) & table.experimental.isin([PRETRAINED, TUNED])
    pooled = pooled_variance(table[own], "cka", keys)
    table = table.merge(pooled, how="left", on=keys)
    table.loc[~own.to_numpy(), ["error_seeds", "seed_freedom"]] = np.nan
    has_both = (table.error_seeds.notna() & table.error_rows.notna()).to_numpy()
    cells = table[has_both]
    error, freedom = combine(
        cells.error_rows.to_numpy(float),
        cells.units.to_numpy(float) - 1,
        cells.error_seeds.to_numpy(float),
        cells.seed_freedom.to_numpy(float),
        SEED_SHARES,
    )
    units: Any = freedom + 1
    low, high = confidence_interval(cells.cka.to_numpy(float), error, units)
    table.loc[has_both, "low"], table.loc[has_both, "high"] = low, high
    return table.drop(columns="seed_freedom")


def half_width(error: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Returns half of a 95 % interval of a quantity with this standard error, [...]."""
    return stdtrit(freedom, (1 + LEVEL) / 2) * error
