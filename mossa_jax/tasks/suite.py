"""What a suite of instruction tasks is: tasks in clusters, each with three splits of (inputs, targets) rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One row: what the model reads and what it should answer.

    Attributes:
      inputs: the prompt's text, before any chat template.
      targets: the answer's text.
      template: index of the instruction template that made `inputs`; -1 where the source does not say.
    """

    inputs: str
    targets: str
    template: int = -1


@dataclass(frozen=True)
class Task:
    """A named task. Rows are read when asked for and not kept, so that sixty tasks cost no memory.

    Attributes:
      name: unique within its suite; used as a label and, through a safe slug, as a folder name.
      cluster: the kind of task it belongs to, e.g. "sentiment".
      read: split name -> its rows from the first on, in a fixed order, anew at every call; an empty iterator for a
        `validation` split that the source lacks. Raises `Refusal` 3 for bad data.
      source: where the rows come from, for people: a folder, a hub data set with its revision.
      digest: split name -> hex digest that changes when the rows do; None digests the rows themselves.
      bad_rows: split name -> rows left out as unusable so far; a reader that allows them counts here.
    """

    name: str
    cluster: str
    read: Callable[[str], Iterable[Example]] = field(repr=False)
    source: str = ""
    digest: Callable[[str], str] | None = field(default=None, repr=False)
    bad_rows: dict[str, int] = field(default_factory=dict, repr=False)

    def rows(self, split: str) -> Iterator[Example]:
        """Rows of `split` ("train", "validation" or "test"), one after another."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {SPLITS}")
        self.bad_rows.pop(split, None)
        return iter(self.read(split))

    def examples(self, split: str, limit: int | None = None) -> list[Example]:
        """The first `limit` rows of a split, or all."""
        return list(islice(self.rows(split), limit))

    def fingerprint(self, split: str) -> str:
        """Identifies the rows of a split, whatever they are called and wherever they lie: hex digits."""
        if self.digest is not None:
            return self.digest(split)
        found = hashlib.sha256()
        for row in self.rows(split):
            found.update(json.dumps([row.inputs, row.targets, row.template]).encode())
        return found.hexdigest()


@dataclass(frozen=True)
class Suite:
    """A named set of tasks, in a fixed order.

    Attributes:
      name: for people.
      tasks: unique names.
      held_out: names of the tasks that E never sees.
      missing: names that were asked for and that no source has (`tasks.allow_missing`).
    """

    name: str
    tasks: tuple[Task, ...]
    held_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def clusters(self) -> dict[str, list[Task]]:
        """Cluster name -> its tasks, both in suite order."""
        groups: dict[str, list[Task]] = {}
        for task in self.tasks:
            groups.setdefault(task.cluster, []).append(task)
        return groups
