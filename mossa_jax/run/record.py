"""The record of a run's data, data.json: which tasks, which rows, and how they changed since the run began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files import sums
from mossa_jax.files.checked import read_json
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.tasks.suite import Suite, Task

FILE = "data.json"

_WAY_OUT = "launch.run makes it anew if its models rest on the rows of today"
_SPLITS = ("train", "test")


def read_record(run_folder: RunFolder) -> dict[str, Any] | None:
    """Reads the record that `prepare` wrote into a run folder; None if there is none.

    Raises:
      Refusal: 3 when it is gone or not as it was written.
    """
    path = run_folder / FILE
    return read_json(path, _WAY_OUT) if path.exists() or sums.recorded(path) else None


def read_sound_record(run_folder: RunFolder) -> tuple[dict[str, Any] | None, str]:
    """Reads the record as `read_record`; None, and the refusal in words, for a damaged one."""
    try:
        return read_record(run_folder), ""
    except Refusal as refusal:
        return None, str(refusal)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the names of tasks that were `added`, `removed` or `changed` between two records; only those with any.

    A task has changed if its training rows or test rows have, as the run encodes them.
    """
    old, new = before["tasks"], now["tasks"]
    found = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in new if name in old and changed_splits(old[name], new[name])],
    }
    return {kind: names for kind, names in found.items() if names}


def changed_splits(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the splits of a task whose rows differ between two records of it."""
    return [split for split in _SPLITS if before[split]["digest"] != now[split]["digest"]]


def describe_changes(found: Mapping[str, Sequence[str]]) -> str:
    """Says what `changes` found, in a clause."""
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in found.items())


def recorded_suite(record: Mapping[str, Any], place: str) -> Suite:
    """Returns the suite as it was recorded, for what needs no rows.

    Args:
      record: of the run's data.
      place: of the run folder, for the refusal that reading a row raises.
    """

    def read(_: str) -> NoReturn:
        raise Refusal(BAD_INPUT, f"{place} holds no rows of its tasks; launch.run reads them from their source")

    tasks = tuple(Task(name, task["cluster"], read, task["source"]) for name, task in record["tasks"].items())
    held_out = tuple(name for name, task in record["tasks"].items() if task["held_out"])
    return Suite(record["suite"], tasks, held_out, tuple(record["missing"]))
