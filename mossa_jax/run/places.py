"""The places of a run: where each tuned model and each task's results lie, and which of them exist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from etils import epath

from mossa_jax.config import TUNED, Config, Schedule
from mossa_jax.files.names import slug
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import is_whole
from mossa_jax.processes import agreement
from mossa_jax.tasks import Task
from mossa_jax.tasks.controls import seed_name


@dataclass
class Places:
    """The places of one run.

    Attributes:
      config: of the run.
      folder: the run folder.
    """

    config: Config
    folder: RunFolder

    @property
    def experimental_names(self) -> list[str]:
        """Names of the models of E, one per seed."""
        return [seed_name(TUNED, number) for number in range(self.config.tuning.seeds)]

    def schedule(self, name: str) -> Schedule:
        """Returns how a model is tuned."""
        tuning = self.config.tuning
        return tuning.experimental if name in self.experimental_names else tuning.control

    def is_whole(self, name: str) -> bool:
        """Returns whether a tuned model has its own parameters, and not an adapter over the base's."""
        return self.schedule(name).method == "full"

    def adapter_folder(self, name: str) -> epath.Path:
        """Returns the folder of a tuned model's PEFT adapter."""
        return self.folder / f"adapters/{slug(name)}"

    def snapshot_folder(self, name: str, step: int) -> epath.Path:
        """Returns the folder of a model's PEFT adapter as it was after so many of its steps."""
        return self.folder / f"snapshots/{slug(name)}/{step}"

    def tuned_folder(self, name: str) -> epath.Path:
        """Returns the folder of a tuned model: a PEFT adapter, or a whole model as a Hugging Face folder."""
        return self.folder / f"models/{slug(name)}" if self.is_whole(name) else self.adapter_folder(name)

    def is_tuned(self, name: str) -> bool:
        """Returns whether a model is tuned and exported, as this process sees it."""
        return is_whole(self.tuned_folder(name))

    def untuned(self, names: Iterable[str]) -> list[str]:
        """Returns the models that are not exported yet, as process 0 sees it; all processes call this together."""
        names = list(names)
        is_done = agreement.agreed([self.folder.writer and self.is_tuned(name) for name in names])
        return [name for name, done in zip(names, is_done, strict=True) if not done]

    def part(self, stage: str, task: Task) -> epath.Path:
        """Returns the file of a task's rows of a stage's table."""
        return self.folder / f"results/parts/{stage}/{slug(task.name)}.parquet"

    def without_part(self, stage: str, tasks: Sequence[Task]) -> list[Task]:
        """Returns the tasks that have no rows of a stage's table yet, as process 0 sees it; called by all together."""
        is_done = agreement.agreed([self.folder.writer and self.part(stage, task).exists() for task in tasks])
        return [task for task, done in zip(tasks, is_done, strict=True) if not done]
