"""Suites of instruction tasks, whatever their source, with the choice of tasks that a configuration makes.

Read in this order:

- `suite`: what a suite, a task and an example are.
- `controls`: which control models a run trains.
- `mixture`: how many rows of each task E is tuned on.
- `order`: which rows of a split a run takes.
- `items`: which prompts belong together.
- `thresholds`: the limits beyond which a data set gets a warning.
- `usable`, `arrow`, `row_files`: what a usable row is; rows of Arrow tables, of JSONL and of Parquet files.
- `folder`, `table`, `natural_instructions`: suites of a user's own files.
- `flan_names`, `flan_sources`, `flan`: FLAN 2021.
- `miniature`: the embedded suite over a made-up world.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from mossa_jax.config import MINIATURE, Tasks
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.tasks.suite import SPLITS, Example, Suite, Task

# Names of models and stages of a run, which no task may have.
_RESERVED = ("tuned", "pretrained", "pretraining", "base")
_MODEL_SUFFIX = re.compile(r"\.(seed\d+|twin)$")
# Names that a refusal lists at most.
_LISTED = 12

__all__ = ["SPLITS", "Example", "Suite", "Task", "count_training_rows", "load_suite", "select_tasks"]


def load_suite(config: Tasks) -> Suite:
    """Loads the suite that a configuration names, with the configuration's choice of tasks and held-out tasks.

    Raises:
      Refusal: 2 for names of tasks or clusters that the suite does not have; 3 for a source that is no suite.
    """
    return _with_choice(_suite(config), config)


def count_training_rows(config: Tasks) -> tuple[Suite, dict[str, int]]:
    """Counts the training rows of each task under the cap per task, without a model or a tokenizer.

    FLAN's counts are known from its own code, so nothing of it is fetched; rows of other suites are counted.

    Returns:
      The suite, and task name -> training rows.

    Raises:
      Refusal: as in `load_suite`.
    """
    if config.suite == "flan2021":
        from mossa_jax.tasks.flan import flan_outline

        suite, rows = flan_outline(config.selection)
        suite = _with_choice(suite, config)
    else:
        suite = load_suite(config)
        rows = {task.name: sum(1 for _ in islice(task.rows("train"), config.max_train)) for task in suite.tasks}
    return suite, {task.name: min(rows[task.name], config.max_train) for task in suite.tasks}


def _with_choice(suite: Suite, config: Tasks) -> Suite:
    """Applies `only` and `held_out` of a configuration to a suite, and checks the names of its tasks."""
    # Composed and decomposed letters look alike, and some file systems do not tell them apart.
    of_form: dict[str, str] = {}
    for task in suite.tasks:
        twin = of_form.setdefault(unicodedata.normalize("NFC", task.name), task.name)
        if twin != task.name:
            raise Refusal(
                BAD_INPUT,
                f"suite {suite.name!r} has two tasks whose names differ in their Unicode form alone, {twin!a} and "
                f"{task.name!a}; rename one of them",
            )
    for name, count in Counter(task.name for task in suite.tasks).items():
        if name in _RESERVED:
            raise Refusal(BAD_INPUT, f"a task cannot be called {name!r}, the name of a model of the run; rename it")
        if _MODEL_SUFFIX.search(name):
            raise Refusal(
                BAD_INPUT,
                f"a task cannot be called {name!r}: names of models end in .seed<N> or .twin; rename it",
            )
        if count > 1:
            raise Refusal(BAD_INPUT, f"suite {suite.name!r} has {count} tasks called {name!r}; rename all but one")
    if tuple(config.held_out) == ("suite",):
        held_out = suite.held_out
    else:
        held_out = select_tasks(suite, "config.tasks.held_out", config.held_out)
    if config.only:
        only = select_tasks(suite, "config.tasks.only", config.only)
        suite = replace(suite, tasks=tuple(task for task in suite.tasks if task.name in only))
        held_out = tuple(name for name in held_out if name in only)
    if len(held_out) == len(suite.tasks):
        raise Refusal(BAD_CONFIG, "config.tasks.held_out holds out every task; E needs at least one")
    return replace(suite, held_out=held_out)


def _suite(config: Tasks) -> Suite:
    """Loads a suite with all its tasks."""
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


def select_tasks(suite: Suite, field: str, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the tasks that `names` select, in suite order.

    Args:
      suite: the suite.
      field: field of the configuration that the names come from, for the message.
      names: names of tasks, or of clusters, which stand for all their tasks.

    Raises:
      Refusal: 2, naming the field, for a name that is neither.
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
