"""Suites of instruction tasks from wherever their rows lie, with the choice of tasks that a configuration makes."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from mossa_jax.config import MINIATURE, Tasks
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.tasks.suite import SPLITS, Example, Suite, Task

_RESERVED = ("tuned", "pretrained", "pretraining", "base")
_LISTED = 12

__all__ = ["SPLITS", "Example", "Suite", "Task", "chosen_tasks", "load_suite", "training_rows"]


def load_suite(config: Tasks) -> Suite:
    """The suite that a configuration asks for, with its own choice of tasks and of those held out.

    Raises:
      Refusal: 2 for names of tasks or clusters that the suite does not have; 3 for a source that is no suite.
    """
    return _chosen(_suite(config), config)


def training_rows(config: Tasks) -> tuple[Suite, dict[str, int]]:
    """The suite, and each task's training rows under the cap a task, without a model or a tokenizer.

    FLAN's counts are known from its own code, and nothing of it is fetched; rows of other suites are counted.

    Raises:
      Refusal: as `load_suite`.
    """
    if config.suite == "flan2021":
        from mossa_jax.tasks.flan import flan_outline

        suite, rows = flan_outline(config.selection)
        suite = _chosen(suite, config)
    else:
        suite = load_suite(config)
        rows = {task.name: sum(1 for _ in islice(task.rows("train"), config.max_train)) for task in suite.tasks}
    return suite, {task.name: min(rows[task.name], config.max_train) for task in suite.tasks}


def _chosen(suite: Suite, config: Tasks) -> Suite:
    """A suite with the choice of tasks that a configuration makes."""
    for name, count in Counter(task.name for task in suite.tasks).items():
        if name in _RESERVED:
            raise Refusal(BAD_INPUT, f"a task cannot be called {name!r}, which names a model of the run; rename it")
        if count > 1:
            raise Refusal(BAD_INPUT, f"suite {suite.name!r} has {count} tasks called {name!r}; rename all but one")
    if tuple(config.held_out) == ("suite",):
        held_out = suite.held_out
    else:
        held_out = chosen_tasks(suite, "config.tasks.held_out", config.held_out)
    if config.only:
        only = chosen_tasks(suite, "config.tasks.only", config.only)
        suite = replace(suite, tasks=tuple(task for task in suite.tasks if task.name in only))
        held_out = tuple(name for name in held_out if name in only)
    if len(held_out) == len(suite.tasks):
        raise Refusal(BAD_CONFIG, "config.tasks.held_out holds out every task; E needs at least one")
    return replace(suite, held_out=held_out)


def _suite(config: Tasks) -> Suite:
    if config.suite == MINIATURE:
        from mossa_jax.tasks.miniature import miniature

        return miniature()
    if config.suite == "flan2021":
        from mossa_jax.tasks.flan import flan_suite

        return flan_suite(config)
    if config.suite == "natural_instructions":
        from mossa_jax.tasks.natural_instructions import natural_instructions_suite

        return natural_instructions_suite(config)
    if config.suite == "hub":
        from mossa_jax.tasks.table import table_suite

        return table_suite(config)
    from mossa_jax.tasks.folder import folder_suite

    return folder_suite(config)


def chosen_tasks(suite: Suite, field: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names of the tasks that are called so, or whose cluster is, in suite order.

    Raises:
      Refusal: 2, naming the field, for what is neither.
    """
    known = dict.fromkeys([*(task.name for task in suite.tasks), *suite.clusters(), *suite.missing])
    unknown = [name for name in names if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, _LISTED)
        listed = list(dict.fromkeys([*close, *known]))[:_LISTED]
        more = f" and {len(known) - len(listed)} more" if len(known) > len(listed) else ""
        raise Refusal(
            BAD_CONFIG,
            f"{field}: no task or cluster {unknown[0]!r}; there are {', '.join(listed)}{more}",
        )
    return tuple(task.name for task in suite.tasks if task.name in names or task.cluster in names)
