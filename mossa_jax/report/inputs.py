"""What figures and page are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mossa_jax.report import palette


@dataclass(frozen=True)
class ReportInputs:
    """The results of a run, as the report shows them.

    Attributes:
      table: the results table, columns `mossa_jax.findings.COLUMNS`.
      analysis: from `mossa_jax.findings.find`.
      scores: task scores, columns `mossa_jax.findings.SCORE_COLUMNS`.
      curves: training loss, columns `model, step, loss` (nats per answer token).
      tasks: one row per task, columns `task, cluster, held_out, train_rows, test_rows, truncated_rows,
        truncated_prompts, steps`.
      parity: the base model beside transformers, columns `layer, max_abs_difference, largest`; or why it was not
        compared.
      facts: strings and numbers that say what the run was, shown under their keys at the head of the page. `dtype` is
        named beside the parity, too.
      command: the command that made the run.
      versions: package -> version.
      warnings: one sentence each.
      times: from `mossa_jax.monitoring.goodput.times`; None if it was not recorded.
    """

    table: pd.DataFrame
    analysis: dict[str, Any]
    scores: pd.DataFrame
    curves: pd.DataFrame
    tasks: pd.DataFrame
    parity: pd.DataFrame | str
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    times: pd.DataFrame | None = None


def scores_by_model(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns exact match as [tasks, models] float64, with one column per scored model."""
    exact = scores[scores["metric"] == "exact_match"]
    wide = exact.pivot_table(index="task", columns="model", values="value", aggfunc="mean")
    return wide.reindex(columns=list(palette.SCORE_NAMES)).astype(float)
