"""Suites of instruction tasks: the embedded miniature, a user's folder; and the mixture for E."""

from __future__ import annotations

from dataclasses import replace

from mossa_jax.config import MINIATURE, Tasks
from mossa_jax.rundir import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.tasks.folder import folder_suite
from mossa_jax.tasks.suite import SPLITS, Example, Suite, Task

_RESERVED = ("tuned", "pretrained", "pretraining", "base")

__all__ = ["SPLITS", "Example", "Suite", "Task", "load_suite"]


def load_suite(config: Tasks) -> Suite:
    """The suite that a configuration asks for, with its own choice of tasks and of those held out.

    Raises:
      Refusal: 2 for task names that the suite does not have; 3 for a folder that is no suite.
    """
    if config.suite == MINIATURE:
        from mossa_jax.tasks.miniature import miniature

        suite = miniature()
    else:
        suite = folder_suite(config.folder, config.allow_bad_rows)
    names = [task.name for task in suite.tasks]
    taken = [name for name in names if name in _RESERVED]
    if taken:
        raise Refusal(BAD_INPUT, f"a task cannot be called {taken[0]!r}, which names a model of the run; rename it")
    held_out = suite.held_out if tuple(config.held_out) == ("suite",) else tuple(config.held_out)
    for field, chosen in (("only", config.only), ("held_out", held_out)):
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise Refusal(BAD_CONFIG, f"config.tasks.{field}: no task {unknown[0]!r}; there are {', '.join(names)}")
    if config.only:
        suite = replace(suite, tasks=tuple(task for task in suite.tasks if task.name in config.only))
        held_out = tuple(name for name in held_out if name in config.only)
    if len(held_out) == len(suite.tasks):
        raise Refusal(BAD_CONFIG, "config.tasks.held_out holds out every task; E needs at least one")
    return replace(suite, held_out=held_out)
