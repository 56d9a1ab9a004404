"""What the stages of a run work with: suite, base model, tokenizer, prompts, and the tables of finished tasks."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mossa_jax.config import MINIATURE, TUNED
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.write import is_whole
from mossa_jax.function import profile
from mossa_jax.function.answers import SCORED_MODELS, AnswerConfig, AnswerShape, halved_rows, rows_that_fit
from mossa_jax.function.information import SWAPS, AnswerPairs, make_pairs
from mossa_jax.function.likelihood import AskedPrompts, ContinuationShape
from mossa_jax.function.packed_pairs import PackedSize, PairConfig
from mossa_jax.function.variants import VariantShape, variant_shape
from mossa_jax.llama.adapters import check_targets
from mossa_jax.llama.architecture import Architecture, read_architecture
from mossa_jax.llama.files.base import base_tokenizer
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.fingerprint import WEIGHTS
from mossa_jax.llama.placement import abstract_base
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.goodput import Ledger
from mossa_jax.monitoring.profiles import Profile
from mossa_jax.processes import agreement
from mossa_jax.processes.stop import Stop
from mossa_jax.run.ahead import Ahead
from mossa_jax.run.base_model import BaseModel
from mossa_jax.run.basis import basis_digest, control_basis, experimental_basis, mixture_of
from mossa_jax.run.exported import model_about
from mossa_jax.run.fingerprints import FINGERPRINTS, note_weights
from mossa_jax.run.options import Options
from mossa_jax.run.record import read_record, read_sound_record
from mossa_jax.run.task_parts import Parts
from mossa_jax.similarity.engine import memory_per_device
from mossa_jax.states import PassConfig, PassShape
from mossa_jax.tasks import Example, Suite, Task, load_suite
from mossa_jax.tasks.controls import Control, control_models
from mossa_jax.tasks.order import draw_seed, take_rows
from mossa_jax.tokens.encoded import EncodedSplit, encode_rows
from mossa_jax.tokens.packing import Packing
from mossa_jax.tokens.test_prompts import TestPrompts, distinct_prompts
from mossa_jax.tokens.tokenizer import Tokenizer
from mossa_jax.tuning.pretrain import miniature_architecture, miniature_base

if TYPE_CHECKING:
    pass


@dataclass
class Run(Parts):
    """One attempt at a run: its places, and what its stages load on first use.

    Attributes:
      stop: whether somebody asked the run to stop.
      profile: the steps to trace, if any.
      options: what else is asked of this attempt.
      is_prepared: whether this attempt has read the rows of its tasks.
    """

    stop: Stop
    profile: Profile | None = None
    options: Options = field(default_factory=Options)
    _encoded: dict[tuple[str, str], EncodedSplit] = field(default_factory=dict, repr=False)
    is_prepared: bool = False
    _record: dict[str, Any] | None = field(default=None, repr=False)
    _digests: dict[str, str] = field(default_factory=dict, repr=False)

    @cached_property
    def ledger(self) -> Ledger:
        """The account of this attempt's time."""
        return Ledger(self.folder, self.profile)

    @cached_property
    def ahead(self) -> Ahead:
        """The thread that compiles programs of the stages to come."""
        return Ahead()

    @cached_property
    def suite(self) -> Suite:
        """The tasks. Where E is kept although tasks came after it was tuned, these count as held out."""
        suite = load_suite(self.config.tasks)
        seen = self._seen_by_kept_model()
        unseen = () if seen is None else (task.name for task in suite.tasks if task.name not in seen)
        return replace(suite, held_out=tuple(dict.fromkeys([*suite.held_out, *unseen])))

    def _seen_by_kept_model(self) -> list[str] | None:
        """Returns the tasks that E was tuned on, if it is kept as it is; None otherwise."""
        before, _ = read_sound_record(self.folder)
        was_kept = before is not None and bool(before["kept"]) and self.options.stale != "retrain"
        if self.options.stale != "keep" and not was_kept:
            return None
        mixture = model_about(self, TUNED).get("mixture")
        return None if mixture is None else list(mixture)

    @property
    def record(self) -> dict[str, Any]:
        """The record of the run's data: that of `prepare`, or else the one in the run folder.

        Raises:
          Refusal: 3 if there is none.
        """
        if self._record is None:
            self._record = read_record(self.folder)
        if self._record is None:
            raise Refusal(BAD_INPUT, f"{self.folder.path} has no data.json yet; run launch.run first")
        return self._record

    @record.setter
    def record(self, record: dict[str, Any]) -> None:
        self._record, self.is_prepared = record, True
        self.forget_parts()
        self._digests.clear()

    @property
    def has_record(self) -> bool:
        """Whether there is a record of the run's data."""
        return self._record is not None or read_record(self.folder) is not None

    @property
    def base_weights(self) -> str | None:
        """The digest of the base's weights that the run's models rest on; None before the base was loaded."""
        return self.record.get(FINGERPRINTS, {}).get(WEIGHTS) if self.has_record else None

    def model_basis(self, name: str) -> dict[str, Any]:
        """Returns what a model has to rest on, by the configuration and the rows of today; ready for JSON."""
        config, record, seed = self.config, self.record, self.seed(name)
        if name in self.experimental_names:
            return experimental_basis(config, record, mixture_of(self.suite, config, record), seed)
        return control_basis(config, record, self.controls[name], seed)

    def model_digest(self, name: str) -> str:
        """Returns the digest of what a model rests on; of one that is kept, of what it was tuned on."""
        if name in self.record["kept"]:
            return self.record["kept"][name]
        # Every task's parts ask for that of E, which is over all tasks: made once, not once per task.
        if name not in self._digests:
            self._digests[name] = basis_digest(self.model_basis(name))
        return self._digests[name]

    def is_tuned(self, name: str) -> bool:
        """Returns whether a model that rests on what it has to is exported, as this process sees it."""
        folder = self.tuned_folder(name)
        return is_whole(folder) and model_about(self, name).get("digest") == self.model_digest(name)

    def untuned(self, names: Iterable[str]) -> list[str]:
        """Returns the models that are not exported yet, as process 0 sees it; all processes call this together."""
        names = list(names)
        is_done = agreement.agreed([self.folder.writer and self.is_tuned(name) for name in names])
        return [name for name, done in zip(names, is_done, strict=True) if not done]

    @cached_property
    def controls(self) -> dict[str, Control]:
        """The control models by name, task after task: each task's own, its further seeds, its twin."""
        return control_models(self.suite, self.config.tuning)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The base model's tokenizer with the run's template; it needs no weights."""
        return base_tokenizer(self.config)

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """All devices, for stages that run few models over many rows."""
        return mesh_lib.make_mesh(self.config.mesh, adapters=False)

    @cached_property
    def base(self) -> str:
        """The base model's folder or hub id; the miniature model is pre-trained first."""
        if self.config.base != MINIATURE:
            return self.config.base
        with self.ledger.stage("pretraining"):
            return str(miniature_base(self.config.pretraining, self.config.seed, self.folder, self.stop))

    @cached_property
    def architecture(self) -> Architecture:
        """The base model's architecture; that of the miniature model is known before it is pre-trained."""
        if self.config.base == MINIATURE:
            return miniature_architecture(self.config.pretraining)
        architecture = read_architecture(locate(self.base, self.config.revision, config_only=True))
        check_targets(architecture, self.config.tuning.targets)
        return architecture

    @cached_property
    def _base_model(self) -> BaseModel:
        return BaseModel(self._load)

    @property
    def model(self) -> Model:
        """The base model on `mesh`."""
        return self._base_model.on(self.mesh)

    @property
    def population_mesh(self) -> jax.sharding.Mesh:
        """All devices, for stages whose adapter axis holds different models."""
        return mesh_lib.make_mesh(self.config.mesh)

    @property
    def population_model(self) -> Model:
        """The base model on `population_mesh`."""
        return self._base_model.on(self.population_mesh)

    def release(self) -> None:
        """Frees the base model's memory on the devices; the next use loads it again."""
        self._base_model.release()

    def weights(self) -> Any:
        """Loads the base model's state on `mesh` and keeps no reference to it."""
        return self._load(self.mesh).state

    @property
    def outline(self) -> Model:
        """The base model on `mesh` without its weights: its state holds shapes, number types and shardings."""
        return replace(self.outline_on(self.mesh), name=self.base, folder=locate(self.base, self.config.revision))

    def outline_on(self, mesh: jax.sharding.Mesh) -> Model:
        """Returns the base model on a mesh without its weights or its files, which need not be there yet."""
        state = abstract_base(self.architecture, mesh, jnp.dtype(self.config.dtype))
        return Model(self.config.base, epath.Path(), self.architecture, state, mesh)

    def _load(self, mesh: jax.sharding.Mesh) -> Model:
        model = load_model(self.base, self.config.dtype, mesh, self.config.revision)
        model.check_head()
        agreement.wait_for_all("model")  # without a limit: some hosts may fetch more slowly
        note_weights(self, model)
        return model

    def seed(self, name: str) -> tuple[int, ...]:
        """Returns a model's own seed, the same in whatever group the model is trained."""
        return (self.config.seed, zlib.crc32(name.encode()))

    def encoded(self, task: Task, split: str) -> EncodedSplit:
        """Returns a task's rows of a split as token ids, up to the split's cap; they are kept after the first call."""
        if (task.name, split) not in self._encoded:
            self._encoded[task.name, split] = encode_rows(task, split, self.tokenizer, self.config)
        return self._encoded[task.name, split]

    def has_encoded(self, tasks: Iterable[Task]) -> bool:
        """Returns whether the rows of these tasks are kept as token ids."""
        return all((task.name, split) in self._encoded for task in tasks for split in ("train", "test"))

    def test_prompts(self, task: Task) -> TestPrompts:
        """Returns a task's distinct test prompts, in order, with their items and templates."""
        return distinct_prompts(self.encoded(task, "test"))

    def test_examples(self, task: Task, limit: int) -> list[Example]:
        """Returns the first `limit` of a task's test rows, in the order of `encoded`."""
        most = min(limit, self.config.tasks.max_test)
        return list(take_rows(task, "test", most, draw_seed(self.config, task, "test")))

    @property
    def pass_config(self) -> PassConfig:
        """How the comparison reads prompts."""
        config = self.config
        return PassConfig(config.compare.pool, config.compare.batch_rows, Packing.of(config.tokens))

    @cached_property
    def pass_shapes(self) -> tuple[PassShape, ...]:
        """The shapes of the comparison's passes, the same for all tasks, and the same when a run is resumed."""
        config, arch = self.pass_config, self.architecture
        with goodput.lost("input"):
            # One task's rows after the other: only their sizes are kept.
            prompts: Iterator[list] = (self.test_prompts(task).ids for task in self.suite.tasks)
            return config.shapes([config.pack(arch, ids).sizes for ids in prompts], self.mesh)

    @cached_property
    def sample_shapes(self) -> tuple[PassShape, ...]:
        """The shapes of passes over the first `analyse.prompts` prompts of every task."""
        config, arch, most = self.pass_config, self.architecture, self.config.analyse.prompts
        with goodput.lost("input"):
            prompts: Iterator[list] = (self.test_prompts(task).ids[:most] for task in self.suite.tasks)
            return config.shapes([config.pack(arch, ids).sizes for ids in prompts], self.mesh)

    @cached_property
    def answer_config(self) -> AnswerConfig:
        """How the scores answer prompts."""
        tokens = self.config.tokens
        config = AnswerConfig(tokens.max_tokens, self.config.tuning.score_tokens, share_prefix=tokens.share_prefix)
        models = max(len(self.scored_models(task)) for task in self.suite.tasks)
        # The smallest device of all processes decides.
        memory = min(agreement.everywhere(memory_per_device()))
        itemsize = jnp.dtype(self.config.dtype).itemsize
        rows = rows_that_fit(self.architecture, self.mesh, itemsize, memory, config, models)
        return replace(config, batch_rows=rows)

    @property
    def score_prompts(self) -> int:
        """The most test prompts of a task that are scored."""
        return min(self.config.tuning.score_prompts, self.config.tasks.max_test)

    @cached_property
    def answer_shape(self) -> AnswerShape:
        """The shapes of the scores' batches, the same for all tasks."""
        config, arch = self.answer_config, self.architecture
        with goodput.lost("input"):
            encoded = [self.encoded(task, "test").examples for task in self.suite.tasks]
            scored = [[each.prompt(row) for row in range(min(self.score_prompts, len(each)))] for each in encoded]
            shared = [config.shared(arch, prompts) for prompts in scored]
            lengths = [
                np.asarray([len(ids) for ids in prompts]) - common
                for prompts, common in zip(scored, shared, strict=True)
            ]
            return AnswerShape.of(lengths, config, self.mesh, shared)

    def scored_models(self, task: Task) -> dict[str, str | None]:
        """Returns the models that answer a task's prompts: label in the table of scores -> name, None for the base.

        Labels are `base`, `tuned` and `control`, then further seeds of both, such as `control.seed1`, and the twin.
        """
        labels = {name: name for name in self.experimental_names}
        for name, control in self.controls.items():
            if control.task.name == task.name:
                labels["control" + name.removeprefix(task.name)] = name
        first = [TUNED, "control"]
        return {"base": None, **{label: labels[label] for label in first}, **labels}

    def scored_names(self, task: Task) -> list[str | None]:
        """Returns the names of `scored_models`, and of the base again where they are fewer than another task's.

        A program has one number of models: that of tasks without further seeds or a twin, or the most of any task.
        """
        labels = list(self.scored_models(task).values())
        if len(labels) > SCORED_MODELS:
            labels += [None] * (max(len(self.scored_models(each)) for each in self.suite.tasks) - len(labels))
        return labels

    def answer_pairs(self, task: Task, limit: int | None = None, swaps: int = SWAPS) -> AnswerPairs:
        """Returns a task's first test prompts with their answers and with those of other prompts.

        Args:
          task: whose prompts are taken.
          limit: at most so many of them; those that are scored by default.
          swaps: other answers for each prompt.
        """
        encoded, tokens = self.encoded(task, "test"), self.config.tokens
        rows = np.arange(min(self.score_prompts if limit is None else limit, len(encoded)))
        return make_pairs(
            self.tokenizer,
            encoded.examples.select(rows),
            encoded.items[rows],
            max_tokens=tokens.max_tokens,
            truncation=tokens.truncation,
            seed=self.seed(task.name),
            swaps=swaps,
        )

    @cached_property
    def reading_config(self) -> PassConfig:
        """How the scores read prompts before given answers."""
        tokens, models = self.config.tokens, max(len(self.scored_models(task)) for task in self.suite.tasks)
        positions = tokens.row_length + tokens.max_tokens  # the row itself, and its answers
        memory = min(agreement.everywhere(memory_per_device()))
        itemsize, most = jnp.dtype(self.config.dtype).itemsize, self.config.compare.batch_rows
        rows = halved_rows(most, self.architecture, self.mesh, itemsize, memory, positions, models)
        return PassConfig("last", rows, Packing.of(tokens))

    @cached_property
    def continuation_shape(self) -> ContinuationShape:
        """The shapes in which the scores read given answers, the same for all tasks."""
        with goodput.lost("input"):
            # One task's pairs after the other: only their sizes are kept.
            pairs = (self.answer_pairs(task).pairs for task in self.suite.tasks)
            return ContinuationShape.of(map(AskedPrompts.of, pairs), self.architecture, self.reading_config, self.mesh)

    @property
    def pair_config(self) -> PairConfig:
        """How layer profiles read pairs of prompt and answer."""
        return PairConfig(Packing.of(self.config.tokens), self.config.compare.batch_rows)

    def profile_pairs(self, task: Task) -> AnswerPairs:
        """Returns a task's prompts with the two answers that its layer profile asks about: the own one and another."""
        return self.answer_pairs(task, self.config.analyse.profile_prompts, swaps=1)

    @cached_property
    def profile_shape(self) -> VariantShape:
        """The shapes of the layer profiles' batches and schedule, the same for all tasks."""
        config, arch, itemsize = self.pair_config, self.architecture, jnp.dtype(self.config.dtype).itemsize
        variants = profile.sources(profile.profile_variants(arch.layers, self.config.analyse.profile_layers))
        # The smallest device of all processes decides.
        memory = min(agreement.everywhere(memory_per_device()))
        with goodput.lost("input"):
            pairs = (self.profile_pairs(task).pairs for task in self.suite.tasks)
            sizes = [[PackedSize.of(rows) for rows in config.pack(arch, each)] for each in pairs]
            return variant_shape(arch, self.mesh, sizes, variants, config, itemsize, memory)
