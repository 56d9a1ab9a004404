"""The parts of one run: which it has, what became of damaged ones, and their rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from mossa_jax.files import sums
from mossa_jax.files.paths import as_path
from mossa_jax.log import log
from mossa_jax.processes import agreement
from mossa_jax.run.basis import basis_digest
from mossa_jax.run.options import Options
from mossa_jax.run.parts import PartFile, PartKind
from mossa_jax.run.places import Places
from mossa_jax.tasks import Suite, Task

if TYPE_CHECKING:
    import pandas as pd

    from mossa_jax.run.context import Run


class Parts(Places):
    """A run as far as its parts are concerned.

    Attributes:
      options: what is asked of this attempt.
    """

    options: Options

    @cached_property
    def suite(self) -> Suite:
        """The tasks."""
        raise NotImplementedError

    @cached_property
    def _parts(self) -> dict[tuple[str, str], PartFile]:
        return {}

    @cached_property
    def _whole(self) -> set[PartFile]:
        return set()

    @cached_property
    def _damaged(self) -> set[PartFile]:
        return set()

    def forget_parts(self) -> None:
        """Forgets which file each part is: the record of the data is another one."""
        self._parts.clear()

    def part(self, kind: PartKind, task: Task) -> PartFile:
        """Returns the file of a task's share of a stage's table; another one whenever what it rests on is other."""
        key = kind.stage, task.name
        if key not in self._parts:
            digest = basis_digest(kind.rests_on(cast("Run", self), task))
            self._parts[key] = PartFile.of(self.folder.path, kind.stage, task.name, digest)
        return self._parts[key]

    def has_part(self, kind: PartKind, task: Task) -> bool:
        """Returns whether a task's part is there as it was written (writer only).

        One that is not is named once; `options.take_from` may have it, too.
        """
        part = self.part(kind, task)
        if part in self._whole:
            return True
        if (what := part.damage()) is not None and part not in self._damaged:
            self._damaged.add(part)
            log.warning("%s: made anew", what)
        is_whole = what is None and part.path.exists()
        source = self.options.take_from
        if is_whole or (source and part.take_from(as_path(source))):
            self._whole.add(part)
        return part in self._whole

    def without_part(self, kind: PartKind, tasks: Sequence[Task]) -> list[Task]:
        """Returns the tasks that lack their part of a stage, as process 0 sees it; called by all together."""
        is_done = agreement.agreed([self.folder.writer and self.has_part(kind, task) for task in tasks])
        return [task for task, done in zip(tasks, is_done, strict=True) if not done]

    def unfinished(self, kind: PartKind) -> list[Task]:
        """Returns the run's tasks that lack their part of a stage; all processes call this together."""
        return self.without_part(kind, self.suite.tasks)

    def read_part(self, kind: PartKind, task: Task) -> pd.DataFrame:
        """Reads a task's rows of a stage's table, with columns that name the task.

        Raises:
          Refusal: 3 when the part is not there, or not as it was written.
        """
        held_out = task.name in self.suite.held_out
        return self.part(kind, task).read().assign(task=task.name, cluster=task.cluster, held_out=held_out)

    def read_parts(self, kind: PartKind) -> pd.DataFrame | None:
        """Reads the rows of all tasks that have their part of a stage; None if no task has (writer only).

        Raises:
          Refusal: 3 when a part is not as it was written.
        """
        import pandas as pd

        paths = [(task, self.part(kind, task).path) for task in self.suite.tasks]
        tables = [self.read_part(kind, task) for task, path in paths if sums.recorded(path) or path.exists()]
        return pd.concat(tables, ignore_index=True) if tables else None

    def write_part(self, kind: PartKind, task: Task, rows: list[dict[str, Any]]) -> None:
        """Writes a task's rows of a stage's table (writer only)."""
        if self.folder.writer:
            import pandas as pd

            part = self.part(kind, task)
            part.write(pd.DataFrame(rows))
            self._whole.add(part)
