"""What a suite of instruction tasks is: tasks in clusters, each with three splits of (inputs, targets) rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

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
    """A named task. Rows are read on first use, so that a suite of sixty tasks costs nothing to list.

    Attributes:
      name: unique within its suite; used as a label and, through a safe slug, as a folder name.
      cluster: the kind of task it belongs to, e.g. "sentiment".
      read: split name -> its rows, in a fixed order.
      bad_rows: split name -> rows that were left out as unusable; filled when the split is read.
    """

    name: str
    cluster: str
    read: Callable[[str], Sequence[Example]] = field(repr=False)
    bad_rows: dict[str, int] = field(default_factory=dict, repr=False)

    @cached_property
    def _splits(self) -> dict[str, Sequence[Example]]:
        return {}

    def examples(self, split: str) -> Sequence[Example]:
        """Rows of `split` ("train", "validation" or "test"), read once."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {SPLITS}")
        if split not in self._splits:
            self._splits[split] = self.read(split)
        return self._splits[split]


@dataclass(frozen=True)
class Suite:
    """A named set of tasks, in a fixed order; `held_out` names those that E never sees."""

    name: str
    tasks: tuple[Task, ...]
    held_out: tuple[str, ...] = ()

    def clusters(self) -> dict[str, list[Task]]:
        """Cluster name -> its tasks, both in suite order."""
        groups: dict[str, list[Task]] = {}
        for task in self.tasks:
            groups.setdefault(task.cluster, []).append(task)
        return groups
