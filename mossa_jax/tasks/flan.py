"""FLAN 2021 as a suite: the tasks of a selection, each with the rows of the first source that has it."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mossa_jax.config import Tasks
from mossa_jax.tasks.flan_names import MISC, FlanTask, select
from mossa_jax.tasks.flan_sources import find_tasks, missing_refusal
from mossa_jax.tasks.suite import Example, Suite, Task


def flan_suite(config: Tasks) -> Suite:
    """Builds the tasks of `config.selection`, each from the first of `config.sources` that has it.

    Sources are only listed here; their files are downloaded when rows are read.

    Raises:
      Refusal: 2 for an unknown selection; 3 for an unusable source, or for tasks that no source has unless
        `config.allow_missing`; 4 for a source to which access is denied.
    """
    entries = select(config.selection)
    task_of, searched = find_tasks(entries, config)
    missing = tuple(entry.name for entry in entries if entry.name not in task_of and _is_wanted(entry, config.only))
    if missing and not (config.allow_missing and task_of):
        raise missing_refusal([entry for entry in entries if entry.name in missing], searched, config)
    available = [entry for entry in entries if entry.name in task_of]
    if config.selection == "flan62":
        tasks = _tasks_by_data_set(available, task_of)
    else:
        tasks = tuple(task_of[entry.name] for entry in available)
    return _suite(config.selection, tasks, missing)


def _suite(selection: str, tasks: tuple[Task, ...], missing: tuple[str, ...] = ()) -> Suite:
    """Makes the suite; `paper` holds out the cluster Misc."""
    held_out = tuple(task.name for task in tasks if task.cluster == MISC) if selection == "paper" else ()
    return Suite(f"flan2021 ({selection})", tasks, held_out, missing)


def flan_outline(selection: str) -> tuple[Suite, dict[str, int]]:
    """Outlines the suite of a selection without reading it.

    Returns:
      The suite, whose tasks have no rows, and the training rows of each task by FLAN's own code.

    Raises:
      Refusal: 2 for an unknown selection.
    """
    entries = select(selection)
    task_of = {entry.name: Task(entry.name, entry.cluster, lambda split: iter(())) for entry in entries}
    rows = {entry.name: entry.rows for entry in entries}
    tasks = tuple(task_of.values())
    if selection == "flan62":
        tasks, rows = _tasks_by_data_set(entries, task_of), {}
        for entry in entries:
            if entry.name != "mnli_mismatched":  # the training rows of both are the same
                rows[entry.data_set] = rows.get(entry.data_set, 0) + entry.rows
    return _suite(selection, tasks), rows


def _is_wanted(entry: FlanTask, only: Sequence[str]) -> bool:
    """Whether `tasks.only` keeps an entry, by its name, its data set's or its cluster's."""
    return not only or not {entry.name, entry.data_set, entry.cluster}.isdisjoint(only)


def _tasks_by_data_set(entries: Sequence[FlanTask], task_of: dict[str, Task]) -> tuple[Task, ...]:
    """Returns one task per data set, which merges the tasks of all names that share it."""
    groups: dict[str, list[Task]] = {}
    for entry in entries:
        groups.setdefault(entry.data_set, []).append(task_of[entry.name])
    return tuple(tasks[0] if tasks[0].name == name else interleave_tasks(name, tasks) for name, tasks in groups.items())


def interleave_tasks(name: str, tasks: Sequence[Task]) -> Task:
    """Merges the rows of several tasks into one, in even proportions from the first row on.

    A cap on the rows of the merged task therefore keeps these proportions.

    Args:
      name: of the merged task.
      tasks: the tasks to merge; the cluster is that of the first.
    """
    bad_rows: dict[str, int] = {}
    sizes: dict[str, list[int]] = {}

    def read(split: str) -> Iterator[Example]:
        distinct = _distinct_tasks(tasks, split)
        if split not in sizes:
            sizes[split] = [sum(1 for _ in task.rows(split)) for task in distinct]
        streams = [
            _with_quantiles(_own_items(task, split), size) for task, size in zip(distinct, sizes[split], strict=True)
        ]
        for _, row in heapq.merge(*streams, key=lambda pair: pair[0]):
            bad = [task.bad_rows[split] for task in distinct if split in task.bad_rows]
            if bad:
                bad_rows[split] = sum(bad)
            yield row

    def digest(split: str) -> str:
        fingerprints = [task.fingerprint(split) for task in _distinct_tasks(tasks, split)]
        return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()

    source = ", ".join(dict.fromkeys(task.source for task in tasks))
    return Task(name, tasks[0].cluster, read, source, digest, bad_rows)


def _distinct_tasks(tasks: Sequence[Task], split: str) -> list[Task]:
    """Returns the tasks whose rows of a split differ: the two of MNLI have the same training rows."""
    names = [task.name for task in tasks]
    repeats_mnli = split == "train" and "mnli_matched" in names
    return [task for task in tasks if not (repeats_mnli and task.name == "mnli_mismatched")]


def _own_items(task: Task, split: str) -> Iterator[Example]:
    """Yields a task's rows with items that no other task has: two may number theirs from 0."""
    for row in task.rows(split):
        yield replace(row, item=f"{task.name}: {row.item}") if row.item else row


def _with_quantiles(rows: Iterator[Example], size: int) -> Iterator[tuple[float, Example]]:
    """Yields rows with their place in their list, between 0 and 1."""
    for index, row in enumerate(rows):
        yield (index + 0.5) / size, row
