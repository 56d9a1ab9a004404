"""Parts: one task's share of a stage's table, found by what it rests on.

A part's file name ends in a digest of everything that the part follows from: the task's test rows, the models, and the
settings of its stage. So another setting, another row or another model is another part, variants of a run share the
parts that are the same in them, and a part of another run folder can be taken over.

A part also says in itself whose it is, and its digest stands beside it (`files.sums`). One that is damaged, gone, or
another's is made again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files import checked, sums
from mossa_jax.files.names import slug
from mossa_jax.files.write import parquet_bytes
from mossa_jax.foreign import check_file

if TYPE_CHECKING:
    import pandas as pd

    from mossa_jax.run.context import Run
    from mossa_jax.tasks import Task


_OWNER = "mossa"  # key of the metadata of a part's schema


@dataclass(frozen=True)
class PartKind:
    """The parts of one stage.

    Attributes:
      stage: its name.
      models: (run, task) -> names of the models that a task's part rests on; None for the base.
      settings: run -> the settings that it rests on, ready for JSON.
    """

    stage: str
    models: Callable[[Run, Task], Iterable[str | None]]
    settings: Callable[[Run], Mapping[str, Any]]

    def rests_on(self, run: Run, task: Task) -> dict[str, Any]:
        """Returns what a task's part rests on, ready for JSON."""
        return {
            "base": run.record["base"],
            "seed": run.config.seed,
            "rows": run.record["tasks"][task.name]["test"]["digest"],
            "models": {name: run.model_digest(name) for name in self.models(run, task) if name is not None},
            "settings": dict(self.settings(run)),
        }


@dataclass(frozen=True)
class PartFile:
    """The file of a task's part.

    Attributes:
      path: of the file.
      stage: whose part it is.
      task: whose part it is.
      digest: of what it rests on.
    """

    path: epath.Path
    stage: str
    task: str
    digest: str

    @classmethod
    def of(cls, folder: epath.Path, stage: str, task: str, digest: str) -> PartFile:
        """Names the file of a part in a run folder."""
        return cls(folder / f"results/parts/{stage}/{slug(task)}.{digest}.parquet", stage, task, digest)

    @property
    def owner(self) -> dict[str, str]:
        """What the file says of itself."""
        return {"stage": self.stage, "task": self.task, "digest": self.digest}

    def content(self) -> bytes | None:
        """Returns the file's bytes; None if it is not there, not as it was written, or another's."""
        try:
            check_file(self.path)  # a pipe in its place would be waited for
            data = self.path.read_bytes()
        except (OSError, Refusal):
            return None
        # Nothing is parsed that is not what was written.
        return data if sums.agrees(self.path, data) and _owner(data) == self.owner else None

    def damage(self) -> str | None:
        """Says what is wrong with the file: "PATH is gone"; None if it is as it was written, or never was."""
        if (what := checked.damage(self.path)) is not None:
            return what
        if not self.path.exists() or self.content() is not None:
            return None
        return f"{self.path} {'is of another task' if sums.recorded(self.path) else 'has no digest'}"

    def read(self) -> pd.DataFrame:
        """Reads the part.

        Raises:
          Refusal: 3 when it is not there, not as it was written, or another's. A part of a version that wrote no
            digests is read.
        """
        data = checked.read_intact(self.path)
        table = checked.parse_table(data, self.path)
        if _owner(data) not in ({}, self.owner):
            raise Refusal(BAD_INPUT, f"{self.path} is of another task; {checked.RUN_AGAIN}")
        return table

    def write(self, table: pd.DataFrame) -> None:
        """Writes the part."""
        sums.write_summed(self.path, parquet_bytes(table, {_OWNER: json.dumps(self.owner)}))

    def take_from(self, folder: epath.Path) -> bool:
        """Copies the same part from another run folder; returns whether that has it, as it was written."""
        data = PartFile.of(folder, self.stage, self.task, self.digest).content()
        if data is not None:
            sums.write_summed(self.path, data)
        return data is not None


def _owner(data: bytes) -> dict[str, str]:
    """Returns what a part says of itself; nothing for one of an older version."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(io.BytesIO(data)).metadata or {}
    return json.loads(metadata.get(_OWNER.encode(), b"{}"))
