"""Parts: one task's share of a stage's table, found by what it rests on.

A part's file name ends in a digest of everything that the part follows from: the task's test rows, the models, and the
settings of its stage. So another setting, another row or another model is another part, variants of a run share the
parts that are the same in them, and a part of another run folder can be taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etils import epath

from mossa_jax.files.names import slug
from mossa_jax.files.paths import as_path
from mossa_jax.files.write import write_bytes

if TYPE_CHECKING:
    from mossa_jax.run.context import Run
    from mossa_jax.tasks import Task


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


def part_name(task: str, digest: str) -> str:
    """Returns the name of the file of a task's part that rests on what the digest says."""
    return f"{slug(task)}.{digest}.parquet"


def take_part(take_from: str, path: epath.Path) -> bool:
    """Copies a part from another run folder, if that has it.

    Args:
      take_from: the other run folder; "" for none.
      path: of the part in the run folder.

    Returns:
      Whether the part is there now.
    """
    if not take_from:
        return False
    other = as_path(take_from) / "results/parts" / path.parent.name / path.name
    if not other.exists():
        return False
    write_bytes(path, other.read_bytes())
    return True
