"""Which specialists use their prompts: only they say what a specialist's similarity means.

A specialist that learned nothing stays near the base, so the base looks similar to it for that reason alone. The
information that a model uses (`mossa_jax.function`) is 0 for a model that ignores its prompts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.cells import Cells
from mossa_jax.findings.curves import clusters_of

INFORMATION, EXACT_MATCH = "information", "exact_match"

CONTROL, BASE, MAJORITY = "control", "base", "majority"
"""Values of the column `model` of the task scores."""

FREQUENT = 0.1
"""Share of the prompts that one answer must be right for, so that to give it always is worth comparing with."""

ENOUGH = 0.5
"""Share of the tasks that must be competent; a run with fewer says so first."""


def scores_of(scores: pd.DataFrame, metric: str, model: str, column: str = "value") -> pd.Series:
    """Returns one column of one model's scores by one metric, per task; float64."""
    keep = ((scores["metric"] == metric) & (scores["model"] == model)).to_numpy(bool)
    values = pd.Series(scores[column].to_numpy()[keep].astype(float), pd.Index(scores["task"][keep], name="task"))
    return values[~values.index.duplicated(keep="last")]


def find_competence(table: pd.DataFrame | Cells, scores: pd.DataFrame) -> dict[str, Any]:
    """Tells which tasks have a competent specialist.

    A specialist is competent if the interval of its information is above zero and, where exact match was scored and
    one answer is right for `FREQUENT` of the prompts or more, if it is right more often than that answer. Where all
    answers differ, as in summaries, hardly any is ever hit word for word, and the most frequent one says nothing.

    Args:
      table: the results table, or its cells.
      scores: the task scores.

    Returns:
      `measured`: whether any task has information; `competent` and `incompetent`: names of tasks; `unknown`: tasks
      without a score, which count as competent; `share` of the scored tasks that are competent; `few`: whether that is
      less than `ENOUGH`; `tasks`: per task `task, cluster, competent, reason`, information of `base` and `control` with
      `low` and `high`.
    """
    low = scores_of(scores, INFORMATION, CONTROL, "low").to_dict()
    high = scores_of(scores, INFORMATION, CONTROL, "high").to_dict()
    value = scores_of(scores, INFORMATION, CONTROL).to_dict()
    base = scores_of(scores, INFORMATION, BASE).to_dict()
    right = scores_of(scores, EXACT_MATCH, CONTROL).to_dict()
    majority = scores_of(scores, EXACT_MATCH, MAJORITY).to_dict()
    rows: list[dict[str, Any]] = []
    for task, cluster in sorted(clusters_of(table).items(), key=lambda pair: (pair[1], pair[0])):
        reason = ""
        known = bool(np.isfinite(low.get(task, np.nan)))
        if known and low[task] <= 0:
            reason = "its specialist is not shown to use its prompts: the interval of its information includes zero"
        elif known and _is_no_better(right.get(task, np.nan), majority.get(task, np.nan)):
            reason = "its specialist is right no more often than the most frequent answer"
        rows.append(
            {
                "task": task,
                "cluster": cluster,
                "competent": not reason if known else None,
                "reason": reason,
                "base": base.get(task, np.nan),
                "control": value.get(task, np.nan),
                "low": low.get(task, np.nan),
                "high": high.get(task, np.nan),
            }
        )
    names: dict[Any, list[str]] = {True: [], False: [], None: []}
    for row in rows:
        names[row["competent"]].append(row["task"])
    scored = len(names[True]) + len(names[False])
    share = len(names[True]) / scored if scored else None
    return {
        "measured": bool(scored),
        "competent": names[True],
        "incompetent": names[False],
        "unknown": names[None],
        "share": share,
        "few": share is not None and share < ENOUGH,
        "tasks": rows,
    }


def _is_no_better(right: float, majority: float) -> bool:
    return bool(np.isfinite(right) and np.isfinite(majority) and majority >= FREQUENT and right <= majority)
