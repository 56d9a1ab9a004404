"""The control models of a run: each task's own, further seeds of some, and twins that learn permuted answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mossa_jax.config import Tuning
from mossa_jax.tasks import select_tasks
from mossa_jax.tasks.suite import Suite, Task

ONE_PER_CLUSTER, ALL = "one_per_cluster", "all"
"""Words of `tuning.seeded` and `tuning.twins` beside names of tasks and clusters."""


@dataclass(frozen=True)
class Control:
    """A control model.

    Attributes:
      name: of the model.
      task: that it is trained on.
      is_twin: whether it learns the task's answers permuted over its prompts.
    """

    name: str
    task: Task
    is_twin: bool = False


def seed_name(name: str, number: int) -> str:
    """Returns the name of a model's `number`-th seed; the first, 0, has the plain name."""
    return f"{name}.seed{number}" if number else name


def twin_name(task: str) -> str:
    """Returns the name of a task's twin."""
    return f"{task}.twin"


def control_models(suite: Suite, tuning: Tuning) -> dict[str, Control]:
    """Returns the control models by name, task after task: each task's own, its further seeds, its twin.

    Raises:
      Refusal: 2 for a name in `tuning.seeded` or `tuning.twins` that is no task or cluster.
    """
    seeded = chosen_tasks(suite, "config.tuning.seeded", tuning.seeded)
    twins = chosen_tasks(suite, "config.tuning.twins", tuning.twins)
    models: list[Control] = []
    for task in suite.tasks:
        seeds = tuning.control_seeds if task.name in seeded else 1
        models += [Control(seed_name(task.name, number), task) for number in range(seeds)]
        if task.name in twins:
            models.append(Control(twin_name(task.name), task, is_twin=True))
    return {model.name: model for model in models}


def chosen_tasks(suite: Suite, field: str, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the tasks that a field chooses, in suite order.

    Args:
      suite: the suite.
      field: of the configuration, for messages.
      names: of tasks or clusters, or `all`, or `one_per_cluster`: the first task of each cluster, of the mixture where
        the cluster has any there.

    Raises:
      Refusal: 2, naming the field, for any other word.
    """
    chosen = set(select_tasks(suite, field, [name for name in names if name not in (ONE_PER_CLUSTER, ALL)]))
    if ALL in names:
        chosen |= {task.name for task in suite.tasks}
    if ONE_PER_CLUSTER in names:
        for tasks in suite.clusters().values():
            chosen.add(next((task.name for task in tasks if task.name not in suite.held_out), tasks[0].name))
    return tuple(task.name for task in suite.tasks if task.name in chosen)
