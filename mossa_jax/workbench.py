"""What all stages of a run work with: suite, base model, tokenizer, and where each result lies."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import jax
import pandas as pd

from mossa_jax import mesh as mesh_lib
from mossa_jax.config import MINIATURE, Config
from mossa_jax.llama.load import Model, load_model
from mossa_jax.progress import Stop
from mossa_jax.rundir import RunDir, slug
from mossa_jax.tasks import Suite, Task, load_suite
from mossa_jax.tokens.tokenizer import Tokenizer, encode_examples
from mossa_jax.tuning.pretraining import miniature_base


@dataclass
class Bench:
    """What all stages work with: suite, model, tokenizer; each loaded on first use."""

    config: Config
    rundir: RunDir
    stop: Stop

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
        return str(miniature_base(self.config.pretraining, self.config.seed, self.rundir, self.stop))

    @cached_property
    def model(self) -> Model:
        """The base model on `mesh`."""
        self.__dict__.pop("population_model", None)  # one copy on the devices at a time
        return load_model(self.base, self.config.dtype, self.mesh, self.config.revision)

    @cached_property
    def population_model(self) -> Model:
        """The same on the mesh whose adapter axis holds different models."""
        mesh = mesh_lib.make_mesh(self.config.mesh)
        if mesh == self.mesh:
            return self.model
        self.__dict__.pop("model", None)
        return load_model(self.base, self.config.dtype, mesh, self.config.revision)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The base model's tokenizer with the run's template."""
        return self.model.tokenizer(self.config.tokens.template)

    def seed(self, name: str) -> tuple[int, ...]:
        """A model's own seed, the same in whatever group it is trained."""
        return (self.config.seed, zlib.crc32(name.encode()))

    def train_rows(self, task: Task):
        """A task's encoded training rows under its cap, and how many had to be cut."""
        examples = task.examples("train")[: self.config.tasks.max_train]
        tokens = self.config.tokens
        return encode_examples(self.tokenizer, examples, tokens.max_tokens, tokens.truncation)

    def test_examples(self, task: Task):
        """A task's test rows under its cap."""
        return task.examples("test")[: self.config.tasks.max_test]

    def adapter_folder(self, name: str):
        """Where a tuned model's PEFT adapter lies."""
        return self.rundir / f"adapters/{slug(name)}"

    def part(self, stage: str, task: Task):
        """Where a task's part of a stage's result lies."""
        return self.rundir / f"results/parts/{stage}/{slug(task.name)}.parquet"

    def read_part(self, stage: str, task: Task) -> pd.DataFrame:
        """That part, with columns that say of which task it is."""
        held_out = task.name in self.suite.held_out
        return pd.read_parquet(self.part(stage, task)).assign(task=task.name, cluster=task.cluster, held_out=held_out)
