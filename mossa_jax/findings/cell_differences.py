"""Differences of the cells of two runs, each with an interval over rows and seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mossa_jax.findings.run_tables import RunTables, run_cells
from mossa_jax.similarity.changes import interval_of

_KEYS = ["task", "quantity", "layer", "estimator"]

_CELL_COLUMNS = [
    "run", "task", "cluster", "held_out", "quantity", "layer", "estimator", "reference_value", "value", "difference",
    "low", "high", "p", "q", "same_prompts", "is_paired",
]  # fmt: skip


def cell_differences(reference: RunTables, run: RunTables, paired: pd.DataFrame | None = None) -> pd.DataFrame:
    """Computes run less reference for every cell that both have, with a 95 % interval and a test of 0.

    The variance is that over rows of both runs and that between seeds of the specialists of both, by Satterthwaite's
    degrees of freedom. Without `paired` rows count as independent: exact for different prompts; for the same prompts
    the interval is too wide, since what the rows have in common cancels and the tables do not hold how much that is.
    Seeds that one run did not measure are taken to spread as the other's. E's seed is in no interval.

    Args:
      reference: the run that is subtracted.
      run: the other run.
      paired: errors of differences over the rows that both share, columns `task, quantity, layer, estimator,
        error_paired, units_paired`; these replace the errors of both runs.

    Returns:
      As in `Comparison.cells`; q is the false discovery rate over the block outputs of a quantity and estimator.
      All differences, and all ends of intervals, are exactly 0 if the runs are equal in every cell. No rows if they
      have different layers, or no task in common.
    """
    if reference.blocks != run.blocks:
        return pd.DataFrame(columns=_CELL_COLUMNS)
    first = run_cells(reference).drop(columns=["cluster", "held_out"])
    both = run_cells(run).merge(first, on=_KEYS, suffixes=("", "_first"))
    if both.empty:
        return pd.DataFrame(columns=_CELL_COLUMNS)
    both = both.assign(
        run=run.name, reference_value=both["value_first"], difference=both["value"] - both["value_first"]
    )
    both = both.assign(same_prompts=[_same_prompts(reference, run, task) for task in both["task"]])
    if are_equal(both):
        zero = both["difference"]
        return both.assign(low=zero, high=zero, p=np.nan, q=np.nan, is_paired=both["same_prompts"])[_CELL_COLUMNS]
    if paired is None:
        both["is_paired"] = False
    else:
        both = both.merge(paired, how="left", on=_KEYS)
        both["is_paired"] = both["error_paired"].notna()
        # One error stands for the rows of both runs.
        both["error_rows"] = both["error_paired"].fillna(both["error_rows"])
        both["units"] = both["units_paired"].fillna(both["units"])
        both["error_rows_first"] = both["error_rows_first"].mask(both["is_paired"], 0.0)
    value, error, degrees = (both[name].to_numpy() for name in ("difference", "error_rows", "units"))
    other_rows = both["error_rows_first"].to_numpy() ** 2, both["units_first"].to_numpy() - 1
    low, high, p = interval_of(value, error, degrees - 1, [other_rows, *_seed_variances(both)])
    both = both.assign(low=low, high=high, p=p)
    return both.assign(q=_q_values(both))[_CELL_COLUMNS]


def _same_prompts(reference: RunTables, run: RunTables, task: str) -> bool:
    return task in run.prompts and run.prompts[task] == reference.prompts.get(task)


def _seed_variances(both: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the variance between seeds of either run, with its degrees of freedom; 0 where neither measured it."""
    variances = [both[f"error_seeds{side}"].to_numpy() ** 2 for side in ("", "_first")]
    freedoms = [both[f"seed_freedom{side}"].fillna(1).to_numpy(float) for side in ("", "_first")]
    parts = []
    for variance, other, freedom in zip(variances, variances[::-1], freedoms, strict=True):
        # One that stands for both runs counts twice, with its own degrees of freedom.
        both_runs = np.where(np.isfinite(other), variance, 2 * variance)
        parts.append((np.nan_to_num(both_runs), np.maximum(freedom, 1.0)))
    return parts


def are_equal(cells: pd.DataFrame) -> bool:
    """Whether two runs have the same value, or none, in every cell."""
    is_equal = (cells["difference"] == 0) | (cells["value"].isna() & cells["reference_value"].isna())
    return bool(is_equal.all())


def _q_values(cells: pd.DataFrame) -> np.ndarray:
    """Adjusts p over the block outputs of all tasks, for each quantity and estimator by itself.

    References:
      Benjamini and Hochberg 1995, "Controlling the false discovery rate".
    """
    from scipy.stats import false_discovery_control

    q = np.full(len(cells), np.nan)
    is_tested = (cells["layer"].str.isdigit() & cells["p"].notna()).to_numpy()
    for _, places in cells.groupby(["quantity", "estimator"], sort=False).indices.items():
        places = places[is_tested[places]]
        if len(places):
            q[places] = false_discovery_control(cells["p"].to_numpy()[places])
    return q
