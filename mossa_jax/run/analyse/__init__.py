"""What a run computes beside the comparison: analyses of its states, its adapters and its tables.

Read in this order:
  analysis.py  what an analysis is
  stages.py    the stages of all analyses: prices, parts, tables
and one file per analysis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mossa_jax.run.analyse import (
    correlates,
    factors,
    layers,
    measures,
    merged,
    profile,
    spectrum,
    stages,
    trajectory,
    weights,
)
from mossa_jax.run.analyse import map as state_map
from mossa_jax.run.analyse.analysis import Analysis, TaskStates
from mossa_jax.run.analyse.stages import task_states
from mossa_jax.run.context import Run
from mossa_jax.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ANALYSES",
    "Analysis",
    "TaskStates",
    "analyse",
    "analyse_states",
    "announce",
    "check",
    "read_tables",
    "task_states",
]

ANALYSES: Sequence[Analysis] = (
    state_map.ANALYSIS,
    spectrum.ANALYSIS,
    correlates.ANALYSIS,
    factors.ANALYSIS,
    measures.ANALYSIS,
    layers.ANALYSIS,
    weights.ANALYSIS,
    merged.ANALYSIS,
    profile.ANALYSIS,
    trajectory.ANALYSIS,
)
"""All analyses, in the order of the page."""


def check(run: Run) -> None:
    """Refuses names of tasks in `config.analyse` that the run does not have."""
    stages.check(run, ANALYSES)


def announce(run: Run) -> None:
    """Says what each analysis of the run with work to do costs."""
    stages.announce(run, ANALYSES)


def analyse_states(run: Run, task: Task, states: TaskStates) -> None:
    """Makes the parts of a task that come from the comparison's states."""
    stages.analyse_states(run, task, states, ANALYSES)


def analyse(run: Run) -> None:
    """Makes all parts that are missing, and the tables."""
    stages.analyse(run, ANALYSES)


def read_tables(run: Run) -> Mapping[str, pd.DataFrame]:
    """Reads the tables of the run's analyses by name (writer only)."""
    return stages.read_tables(run, ANALYSES)
