"""Suites of instruction tasks: tasks in clusters, each with three splits of (inputs, targets) rows."""

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
      template: index of the instruction template that made `inputs`; -1 if the source does not say.
      item: name of what several prompts have in common beside their template, such as a passage or a row in several
        wordings; empty if the source does not say.
    """

    inputs: str
    targets: str
    template: int = -1
    item: str = ""


@dataclass(frozen=True)
class Task:
    """A named task. Rows are read on demand and not kept, so that sixty tasks cost no memory.

    Attributes:
      name: unique within its suite; used as a label and, through a safe slug, as a folder name.
      cluster: the kind of task it belongs to, e.g. "sentiment".
      read: split name -> its rows from the first one on, in a fixed order, read anew at every call; an empty iterator
        for a `validation` split that the source lacks. Raises `Refusal` 3 for bad data.
      source: where the rows come from, for people: a folder, or a hub data set with its revision.
      digest: split name -> hex digest that changes when the rows do; None: the rows themselves are digested.
      bad_rows: split name -> unusable rows left out so far; a reader that allows them counts here.
      licence: of the rows, as the source states it; empty if it does not.
    """

    name: str
    cluster: str
    read: Callable[[str], Iterable[Example]] = field(repr=False)
    source: str = ""
    digest: Callable[[str], str] | None = field(default=None, repr=False)
    bad_rows: dict[str, int] = field(default_factory=dict, repr=False)
    licence: str = field(default="", repr=False)

    def rows(self, split: str) -> Iterator[Example]:
        """Yields the rows of `split` ("train", "validation" or "test").

        Raises:
          ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        self.bad_rows.pop(split, None)
        return iter(self.read(split))

    def examples(self, split: str, limit: int | None = None) -> list[Example]:
        """Returns the first `limit` rows of a split; all by default."""
        return list(islice(self.rows(split), limit))

    def fingerprint(self, split: str) -> str:
        """Returns hex digits that identify the rows of a split, independent of their file's name and place."""
        if self.digest is not None:
            return self.digest(split)
        sha256 = hashlib.sha256()
        for row in self.rows(split):
            sha256.update(json.dumps([row.inputs, row.targets, row.template, row.item]).encode())
        return sha256.hexdigest()


@dataclass(frozen=True)
class LeftOut:
    """What a source holds and a suite does not read.

    Attributes:
      kind: name of a kind of `findings.warning_kinds.LEFT_OUT`, which says what it means.
      names: of the files, fields or tasks, as people know them.
    """

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """A named set of tasks, in a fixed order.

    Attributes:
      name: the suite's name, for people.
      tasks: the tasks; their names are unique.
      held_out: names of the tasks that E never sees.
      missing: names that were asked for but that no source has (`tasks.allow_missing`).
      left_out: what the source holds beside the tasks.
    """

    name: str
    tasks: tuple[Task, ...]
    held_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def clusters(self) -> dict[str, list[Task]]:
        """Returns cluster name -> its tasks, both in suite order."""
        groups: dict[str, list[Task]] = {}
        for task in self.tasks:
            groups.setdefault(task.cluster, []).append(task)
        return groups


def split_of(inputs: str, test_share: float) -> str:
    """Assigns a prompt to a split by its text alone, for data without a test split.

    Args:
      inputs: the prompt's text.
      test_share: share of all texts that are `test`; the others are `train`.
    """
    first = hashlib.sha256(inputs.encode()).digest()[:8]
    return "test" if int.from_bytes(first, "big") / 2**64 < test_share else "train"
