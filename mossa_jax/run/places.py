"""The places of a run: where each tuned model, and each variant's results, lie."""

from __future__ import annotations

from dataclasses import dataclass

from etils import epath

from mossa_jax.config import TUNED, Config, Schedule
from mossa_jax.files.names import slug
from mossa_jax.files.run_folder import RunFolder
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

    @property
    def results(self) -> epath.Path:
        """The folder of the tables of this variant of results."""
        return self.folder.place / "results"

    @property
    def figures(self) -> epath.Path:
        """The folder of this variant's figures."""
        return self.folder.place / "figures"

    @property
    def page(self) -> epath.Path:
        """This variant's page."""
        return self.folder.place / "report.html"
