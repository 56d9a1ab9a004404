"""FLAN 2021 as a suite: the names of a selection, each with the rows of the first source that has it."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence

from mossa_jax.config import Tasks
from mossa_jax.tasks.flan_names import MISC, FlanTask, select
from mossa_jax.tasks.flan_sources import find_tasks, missing_refusal
from mossa_jax.tasks.suite import Example, Suite, Task


def flan_suite(config: Tasks) -> Suite:
    """The tasks of `config.selection`, each from the first of `config.sources` that has it.

    Sources are listed; their files are downloaded when rows are asked for.

    Raises:
      Refusal: 2 for an unknown selection; 3 for a source that is none, or for tasks that no source has unless these are
        allowed; 4 for a source that is closed to us.
    """
    entries = select(config.selection)
    found, searched = find_tasks(entries, config)
    missing = tuple(entry.name for entry in entries if entry.name not in found and _asked_for(entry, config.only))
    if missing and not (config.allow_missing and found):
        raise missing_refusal([entry for entry in entries if entry.name in missing], searched, config)
    tasks = tuple(found[entry.name] for entry in entries if entry.name in found)
    if config.selection == "flan62":
        tasks = _joined_tasks([entry for entry in entries if entry.name in found], found)
    return _suite(config.selection, tasks, missing)


def _suite(selection: str, tasks: tuple[Task, ...], missing: tuple[str, ...] = ()) -> Suite:
    held_out = tuple(task.name for task in tasks if task.cluster == MISC) if selection == "paper" else ()
    return Suite(f"flan2021 ({selection})", tasks, held_out, missing)


def flan_outline(selection: str) -> tuple[Suite, dict[str, int]]:
    """The suite of a selection by FLAN's own code, whose tasks have no rows here, and the training rows of each task.

    Raises:
      Refusal: 2 for an unknown selection.
    """
    entries = select(selection)
    parts = {entry.name: Task(entry.name, entry.cluster, lambda split: iter(())) for entry in entries}
    rows = {entry.name: entry.rows for entry in entries}
    tasks = tuple(parts.values())
    if selection == "flan62":
        tasks, rows = _joined_tasks(entries, parts), {}
        for entry in entries:
            if entry.name != "mnli_mismatched":  # the training rows of both are the same
                rows[entry.data_set] = rows.get(entry.data_set, 0) + entry.rows
    return _suite(selection, tasks), rows


def _asked_for(entry: FlanTask, only: Sequence[str]) -> bool:
    return not only or not {entry.name, entry.data_set, entry.cluster}.isdisjoint(only)


def _joined_tasks(entries: Sequence[FlanTask], found: dict[str, Task]) -> tuple[Task, ...]:
    parts: dict[str, list[Task]] = {}
    for entry in entries:
        parts.setdefault(entry.data_set, []).append(found[entry.name])
    return tuple(tasks[0] if tasks[0].name == name else join(name, tasks) for name, tasks in parts.items())


def join(name: str, parts: Sequence[Task]) -> Task:
    """One task of the rows of several, in even proportions from the first row on, so that a cap keeps them."""
    bad_rows: dict[str, int] = {}
    sizes: dict[str, list[int]] = {}

    def read(split: str) -> Iterator[Example]:
        giving = _giving(parts, split)
        if split not in sizes:
            sizes[split] = [sum(1 for _ in part.rows(split)) for part in giving]
        streams = [_placed(part.rows(split), size) for part, size in zip(giving, sizes[split], strict=True)]
        for _, row in heapq.merge(*streams, key=lambda placed: placed[0]):
            bad = [part.bad_rows[split] for part in giving if split in part.bad_rows]
            if bad:
                bad_rows[split] = sum(bad)
            yield row

    def digest(split: str) -> str:
        return hashlib.sha256("\n".join(part.fingerprint(split) for part in _giving(parts, split)).encode()).hexdigest()

    return Task(name, parts[0].cluster, read, ", ".join(dict.fromkeys(part.source for part in parts)), digest, bad_rows)


def _giving(parts: Sequence[Task], split: str) -> list[Task]:
    """The parts that give rows to a split: both of MNLI's have the same training rows."""
    names = [part.name for part in parts]
    twice = split == "train" and "mnli_matched" in names
    return [part for part in parts if not (twice and part.name == "mnli_mismatched")]


def _placed(rows: Iterator[Example], size: int) -> Iterator[tuple[float, Example]]:
    """Rows with their place between 0 and 1."""
    for index, row in enumerate(rows):
        yield (index + 0.5) / size, row
