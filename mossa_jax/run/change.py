"""The change of a task's similarity by tuning: its error, its test, and its share of the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtr

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.competence import find_competence
from mossa_jax.run.noise import combine, half_width, is_own, pooled_variance

if TYPE_CHECKING:
    import pandas as pd

CONTROL = "control"
"""The experimental model of rows that compare a task's control with another seed of it."""
CHANGE_ERROR = "change_error"
"""A column of the tasks' parts: the error over rows of the change from the base to E."""
KEYS = ["layer", "estimator"]
RESOLUTION = 1e-6
"""Changes and errors below this are rounding."""


def change_table(table: pd.DataFrame, scores: pd.DataFrame, untouched: Sequence[str] = ()) -> pd.DataFrame:
    """Returns the change of every task, layer and estimator: CKA(tuned, C_t) - CKA(pretrained, C_t).

    The error over rows is that of a pair, since both CKA are of the same rows and the same control. The interval is
    for the mean change over seeds of the control, and p tests that it is zero, so the variance between seeds counts
    once; a cell's interval, for a repetition, counts it twice.

    Args:
      table: the results table, with `units`, the rows of further seeds, and `CHANGE_ERROR` in the rows of E against the
        task's own control.
      scores: the task scores; may be empty.
      untouched: layers that all models compute alike; they get no q.

    Returns:
      Columns `task, cluster, held_out, layer, estimator, change, low, high, p, q, share_of_ceiling, competent,
      error_rows, error_seeds`; `competent` is missing where it was not scored.
    """
    seeds = _changes(table[is_own(table)])
    changes = seeds[seeds.control == seeds.task].drop(columns="control")
    changes = changes.merge(pooled_variance(seeds, "change", KEYS), how="left", on=KEYS)
    error, freedom = combine(
        changes.error_rows.to_numpy(float),
        changes.units.to_numpy(float) - 1,
        changes.error_seeds.to_numpy(float),
        changes.seed_freedom.to_numpy(float),
        shares=1.0,
    )
    value = changes.change.to_numpy(float)
    half = half_width(error, freedom)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(freedom, -np.abs(value) / error)
    # States that all models compute alike differ by rounding, which is no evidence.
    p = np.where((np.abs(value) < RESOLUTION) & (error < RESOLUTION), np.nan, p)
    changes = changes.assign(low=value - half, high=value + half, p=p)
    changes = changes.assign(
        q=_q_values(changes, untouched),
        share_of_ceiling=changes.change / _ceilings(table, changes),
        competent=changes.task.map(_competence(table, scores)).astype("boolean"),
    )
    first = ["task", "cluster", "held_out", *KEYS, "change", "low", "high", "p", "q", "share_of_ceiling", "competent"]
    return changes[[*first, "error_rows", "error_seeds"]]


def _changes(own: pd.DataFrame) -> pd.DataFrame:
    """Returns the change against each seed of each task's control."""
    keys = ["task", "cluster", "held_out", "control", *KEYS]
    before = own.loc[own.experimental == PRETRAINED, [*keys, "cka"]]
    after = own.loc[own.experimental == TUNED, [*keys, "cka", CHANGE_ERROR, "units"]]
    both = before.merge(after, on=keys, suffixes=("_before", ""))
    both = both.assign(change=both.cka - both.cka_before).rename(columns={CHANGE_ERROR: "error_rows"})
    return both[[*keys, "change", "error_rows", "units"]]


def _q_values(changes: pd.DataFrame, untouched: Sequence[str]) -> np.ndarray:
    """Adjusts p over the block outputs of all tasks, for each estimator by itself.

    References:
      Benjamini and Hochberg 1995, "Controlling the false discovery rate".
    """
    from scipy.stats import false_discovery_control

    q = np.full(len(changes), np.nan)
    # The embedding and the final norm's output are no blocks.
    is_block = changes.layer.str.isdigit() & ~changes.layer.isin(untouched) & changes.p.notna()
    for estimator in changes.estimator.unique():
        rows = (is_block & (changes.estimator == estimator)).to_numpy()
        if rows.any():
            q[rows] = false_discovery_control(changes.p[rows])
    return q


def _ceilings(table: pd.DataFrame, changes: pd.DataFrame) -> np.ndarray:
    """Returns the ceiling of each change: the task's own if it has further seeds, else the mean over those that do."""
    ceilings = table[table.experimental == CONTROL].groupby(["task", *KEYS])["cka"].mean().rename("own").reset_index()
    means = ceilings.groupby(KEYS)["own"].mean().rename("mean").reset_index()
    joined = changes[["task", *KEYS]].merge(ceilings, how="left").merge(means, how="left", on=KEYS)
    return joined.own.fillna(joined["mean"]).to_numpy(float)


def _competence(table: pd.DataFrame, scores: pd.DataFrame) -> dict[str, bool]:
    """Returns for each scored task whether its control is competent."""
    if "metric" not in scores:
        return {}
    competence = find_competence(table, scores)
    return {row["task"]: row["competent"] for row in competence["tasks"] if row["competent"] is not None}
