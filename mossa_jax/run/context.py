"""What all stages of a run work with: suite, base model, tokenizer, and where each result lies."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from mossa_jax.config import MINIATURE, TUNED, Config, Schedule
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.files.names import slug
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import is_whole, read_parquet, write_parquet
from mossa_jax.llama.architecture import Architecture, read_architecture
from mossa_jax.llama.files.base import base_tokenizer
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.placement import abstract_base
from mossa_jax.monitoring.goodput import Ledger
from mossa_jax.monitoring.profiles import Profile
from mossa_jax.processes import agreement
from mossa_jax.processes.stop import Stop
from mossa_jax.tasks import Suite, Task, load_suite
from mossa_jax.tokens.encoded import EncodedSplit, encode_split
from mossa_jax.tokens.tokenizer import Tokenizer
from mossa_jax.tuning.pretrain import miniature_base


@dataclass
class Run:
    """What all stages work with: suite, model, tokenizer; each loaded on first use."""

    config: Config
    folder: RunFolder
    stop: Stop
    profile: Profile | None = None
    _encoded: dict[tuple[str, str], EncodedSplit] = field(default_factory=dict, repr=False)

    @cached_property
    def ledger(self) -> Ledger:
        """Of the time of this attempt at the run."""
        return Ledger(self.folder, self.profile)

    @cached_property
    def suite(self) -> Suite:
        """The tasks."""
        return load_suite(self.config.tasks)

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """All devices, for stages that run few models over many rows."""
        return mesh_lib.make_mesh(self.config.mesh, adapters=False)

    @cached_property
    def base(self) -> str:
        """The base model's folder or hub id; the miniature one is pre-trained first."""
        if self.config.base != MINIATURE:
            return self.config.base
        with self.ledger.stage("pretraining"):
            return str(miniature_base(self.config.pretraining, self.config.seed, self.folder, self.stop))

    @cached_property
    def architecture(self) -> Architecture:
        """The base model's."""
        return read_architecture(locate(self.base, self.config.revision, config_only=True))

    @cached_property
    def model(self) -> Model:
        """The base model on `mesh`."""
        self.__dict__.pop("population_model", None)  # one copy on the devices at a time
        return self._load(self.mesh)

    @cached_property
    def population_model(self) -> Model:
        """The same on the mesh whose adapter axis holds different models."""
        mesh = mesh_lib.make_mesh(self.config.mesh)
        if mesh == self.mesh:
            return self.model
        self.__dict__.pop("model", None)
        return self._load(mesh)

    def _load(self, mesh: jax.sharding.Mesh) -> Model:
        model = load_model(self.base, self.config.dtype, mesh, self.config.revision)
        agreement.wait_for_all("model")  # hosts that fetch more slowly are waited for here, without a limit
        return model

    @property
    def outline(self) -> Model:
        """The base model on `mesh` without its weights: its state holds shapes, number types and places."""
        arch, dtype = self.architecture, jnp.dtype(self.config.dtype)
        state = abstract_base(arch, self.mesh, dtype)
        return Model(self.base, locate(self.base, self.config.revision), arch, state, self.mesh)

    def weights(self) -> Any:
        """The base model's state on `mesh`, read anew and kept nowhere."""
        return self._load(self.mesh).state

    def release(self) -> None:
        """Gives the base model's memory on the devices free; it is read again on its next use."""
        for name in ("model", "population_model"):
            self.__dict__.pop(name, None)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The base model's tokenizer with the run's template; no weights are needed for it."""
        return base_tokenizer(self.config)

    def seed(self, name: str) -> tuple[int, ...]:
        """A model's own seed, the same in whatever group it is trained."""
        return (self.config.seed, zlib.crc32(name.encode()))

    def encoded(self, task: Task, split: str) -> EncodedSplit:
        """A task's rows of a split as ids, under the cap of that split; in the cache after the first time."""
        limit = self.config.tasks.max_test if split == "test" else self.config.tasks.max_train
        if (task.name, split) not in self._encoded:
            self._encoded[task.name, split] = encode_split(task, split, self.tokenizer, self.config.tokens, limit)
        return self._encoded[task.name, split]

    def test_prompts(self, task: Task) -> list[np.ndarray]:
        """Ids of a task's different test prompts, in order.

        Rows that repeat others are a bootstrap of rows: they undo the debiasing of CKA and pass for evidence.
        """
        examples = self.encoded(task, "test").examples
        prompts = [examples.prompt(item) for item in range(len(examples))]
        return list({prompt.tobytes(): prompt for prompt in prompts}.values())

    def adapter_folder(self, name: str):
        """Where a tuned model's PEFT adapter lies."""
        return self.folder / f"adapters/{slug(name)}"

    @property
    def experimental_names(self) -> list[str]:
        """The models of E, by as many seeds as the configuration asks for."""
        return [TUNED, *[f"{TUNED}.seed{number}" for number in range(1, self.config.tuning.seeds)]]

    def schedule(self, name: str) -> Schedule:
        """How a model is tuned."""
        tuning = self.config.tuning
        return tuning.experimental if name in self.experimental_names else tuning.control

    def is_whole(self, name: str) -> bool:
        """Whether a tuned model has parameters of its own, not an adapter over the base's."""
        return self.schedule(name).method == "full"

    def tuned_folder(self, name: str):
        """Where a tuned model lies: a PEFT adapter, or a whole model as a Hugging Face folder."""
        return self.folder / f"models/{slug(name)}" if self.is_whole(name) else self.adapter_folder(name)

    def is_tuned(self, name: str) -> bool:
        """Whether a model is tuned and exported, as this process sees it."""
        return is_whole(self.tuned_folder(name))

    def untuned(self, names: Iterable[str]) -> list[str]:
        """Those of these models that are not exported yet, as process 0 sees it; all processes ask together."""
        names = list(names)
        tuned = agreement.agreed([self.folder.writer and self.is_tuned(name) for name in names])
        return [name for name, done in zip(names, tuned, strict=True) if not done]

    def unfinished(self, stage: str) -> list[Task]:
        """Tasks whose part of a stage's result is not there yet, as `untuned`."""
        tasks = self.suite.tasks
        there = agreement.agreed([self.folder.writer and self.part(stage, task).exists() for task in tasks])
        return [task for task, done in zip(tasks, there, strict=True) if not done]

    def part(self, stage: str, task: Task):
        """Where a task's part of a stage's result lies."""
        return self.folder / f"results/parts/{stage}/{slug(task.name)}.parquet"

    def read_part(self, stage: str, task: Task) -> pd.DataFrame:
        """That part, with columns that say of which task it is."""
        held_out = task.name in self.suite.held_out
        return read_parquet(self.part(stage, task)).assign(task=task.name, cluster=task.cluster, held_out=held_out)

    def write_part(self, stage: str, task: Task, rows: list[dict]) -> None:
        """Writes a task's part of a stage's result (writer only)."""
        if self.folder.writer:
            write_parquet(self.part(stage, task), pd.DataFrame(rows))
