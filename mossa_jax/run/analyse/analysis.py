"""What an analysis beside the comparison is: its price, its share of each task, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mossa_jax.config import TUNED
from mossa_jax.run.context import Run
from mossa_jax.run.lineup import line_up
from mossa_jax.run.parts import PartKind
from mossa_jax.states import KeptStates
from mossa_jax.tasks import Task
from mossa_jax.tokens.test_prompts import TestPrompts

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TaskStates:
    """The states that the comparison computes for a task; n prompts, M models.

    Attributes:
      names: of the M models, None for the base; the base, E and the task's own control come first
        (`similarity.lineup.BASE`, `E`, `OWN`), the others follow as in `Lineup`.
      kept: their states [M, L + 2, n, D] on the mesh.
      prompts: the n prompts, with their items and templates.
    """

    names: tuple[str | None, ...]
    kept: KeptStates
    prompts: TestPrompts


@dataclass(frozen=True)
class Analysis:
    """An analysis, computed task by task.

    Attributes:
      name: of its field in `config.analyse`, of its stage, and of its parts in the run folder.
      settings: fields of `config.analyse` that its parts rest on.
      models: (run, task) -> the tuned models that a task's part rests on.
      table_names: of the tables that it writes to `results/`.
      needs_states: whether `rows` gets the states of the comparison.
      price: says in a clause what it costs: passes, programs, memory.
      tasks: the tasks that it looks at.
      rows: (run, task, states) -> one task's part, as rows with equal keys. All processes call it together; states are
        None unless `needs_states`.
      tables: (run, all parts, which have columns `task`, `cluster` and `held_out`) -> table by name. The writer calls
        it alone.
      needs: what a run without tasks for it lacks, for people.
    """

    name: str
    settings: tuple[str, ...]
    table_names: tuple[str, ...]
    needs_states: bool
    price: Callable[[Run], str]
    tasks: Callable[[Run], Sequence[Task]]
    rows: Callable[[Run, Task, TaskStates | None], list[dict[str, Any]]]
    tables: Callable[[Run, pd.DataFrame], Mapping[str, pd.DataFrame]]
    models: Callable[[Run, Task], Iterable[str]]
    needs: str = ""

    @property
    def parts(self) -> PartKind:
        """Its parts in the run folder."""
        return PartKind(self.name, self.models, self.settings_of)

    def is_wanted(self, run: Run) -> bool:
        """Returns whether the configuration asks for it."""
        return bool(getattr(run.config.analyse, self.name))

    def settings_of(self, run: Run) -> dict[str, Any]:
        """Returns the values of its settings, ready for JSON."""
        values = {name: getattr(run.config.analyse, name) for name in self.settings}
        if self.needs_states:
            # Where the comparison streams sums, states are kept of so many prompts only.
            values |= {"prompts": run.config.analyse.prompts, "engine": run.config.compare.engine}
        values["pool"] = run.config.compare.pool
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def no_models(run: Run, task: Task) -> Iterable[str]:
    """Returns no model, for analyses of the rows alone."""
    del run, task
    return ()


def own_models(run: Run, task: Task) -> Iterable[str]:
    """Returns E and the task's own control."""
    del run
    return TUNED, task.name


def compared_models(run: Run, task: Task) -> Iterable[str]:
    """Returns every tuned model that the comparison runs over the task's prompts."""
    return [name for name in line_up(run, task).kept_names if name is not None]


def all_tasks(run: Run) -> Sequence[Task]:
    """Returns every task of the run, for analyses that look at all of them."""
    return run.suite.tasks


def one_table(name: str) -> Callable[[Run, pd.DataFrame], Mapping[str, pd.DataFrame]]:
    """Returns the function that writes the parts as they are, as one table that begins with the task's columns."""

    def tables(_: Run, parts: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
        first = ["task", "cluster", "held_out"]
        return {name: parts[[*first, *(column for column in parts if column not in first)]]}

    return tables
