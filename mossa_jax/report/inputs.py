"""What figures and page are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mossa_jax.findings.competence import scores_of
from mossa_jax.report import palette

ANSWER_COLUMNS = ["task", "cluster", "held_out", "example", "model", "prompt", "target", "answer", "exact"]
"""Columns of `results/answers`: a row per example prompt and model."""


@dataclass(frozen=True)
class ReportInputs:
    """The results of a run, as the report shows them.

    Attributes:
      table: the results table, columns `mossa_jax.findings.COLUMNS`.
      analysis: from `mossa_jax.findings.find`.
      scores: task scores, columns `mossa_jax.findings.SCORE_COLUMNS`.
      curves: training loss of tuned models, columns `model, step` (from 1) and `loss` (nats per answer token, the mean
        since the row before).
      tasks: one row per task, columns `task, cluster, held_out, train_rows, test_rows, truncated_rows,
        truncated_prompts, steps`.
      parity: the base model beside transformers, columns `layer, max_abs_difference, largest`; or why it was not
        compared.
      facts: what the head of the page says of the run: `name`, `base`, `suite`, `dtype` and `date`, each optional.
      setup: group -> what is set -> its value, as the table of the set-up shows it.
      config: the configuration as plain data; empty if it is not known.
      command: the command that made the run.
      versions: package -> version.
      times: from `mossa_jax.monitoring.goodput.times`; None if it was not recorded.
      change: the table `results/change`; None if changes of single cells were not tested.
      answers: answers to a few prompts of every task, columns `ANSWER_COLUMNS`; None if none were recorded.
      analyses: tables of the analyses beside the comparison that were made, by their names in `results/`.
      palette: colours of the static figures.
    """

    table: pd.DataFrame
    analysis: dict[str, Any]
    scores: pd.DataFrame
    curves: pd.DataFrame
    tasks: pd.DataFrame
    parity: pd.DataFrame | str
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    setup: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    times: pd.DataFrame | None = None
    change: pd.DataFrame | None = None
    answers: pd.DataFrame | None = None
    analyses: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    palette: palette.Palette = field(default_factory=lambda: palette.DEFAULT)


def scores_by_model(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Returns one metric as [tasks, models] float64, with one column per model of `palette.SCORE_NAMES`."""
    columns = {model: scores_of(scores, metric, model) for model in palette.SCORE_NAMES}
    return pd.DataFrame(columns, dtype=float)


def left_out(analysis: dict[str, Any]) -> dict[str, str]:
    """Returns why tasks are left out of the findings, by name; these tasks are shown in grey."""
    return {row["task"]: row["reason"] for row in analysis["competence"]["tasks"] if row["competent"] is False}
