"""The programs of tuning, comparison and scoring at the sizes of a run, compiled and ready to be timed.

They are the functions that a run calls, on the meshes that it calls them on: controls have the adapter axis of the mesh
to themselves, all others spread their rows. Prompts, answers and adapters are random; only their sizes matter.

Shape letters: A models, B rows, S positions of a row, Q columns for answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.config import Mesh, Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.function.answers import AnswerConfig, AnswerShape
from mossa_jax.function.likelihood import AnswerColumns, AskedPrompts, ContinuationShape, branch_losses, lay_answers
from mossa_jax.function.likelihood import read_rows as read_prompts
from mossa_jax.llama import adapters as adapters_lib
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.generate import greedy
from mossa_jax.llama.model import can_share_prefix
from mossa_jax.states.forward import read_prefix
from mossa_jax.states.keep import abstract_kept, keep_batch
from mossa_jax.states.prompts import PassConfig, PromptPass
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.packing import Packing, shared_prefix
from mossa_jax.tokens.rows import TrainingRows, pack_examples
from mossa_jax.tuning import population
from mossa_jax.tuning.batch import place_batch
from mossa_jax.tuning.flops import forward_flops, likelihood_flops, step_flops

PARTS = ("controls", "experimental", "states", "prompts", "answers", "greedy")
"""Names of the programs: the step of controls, the step of E, the comparison's forward pass that keeps states, the
reading of prompts, the losses of given answers behind them, and greedy answers."""

# An id that no token has: no answer ends before the last new token.
_NEVER = -1


@dataclass(frozen=True)
class Workload:
    """The sizes of the programs; by default those of `configs/smollm2_instructions.py`.

    Attributes:
      row_length: S of training rows and packed prompts.
      rank: of the adapters.
      targets: of the adapters.
      control_rows: packed rows per control and step; there is one control per device.
      experimental_rows: packed rows per step of E.
      batch_rows: packed rows of prompts per pass.
      models: that are compared, and answer, at once.
      shared: ids that all prompts begin with, BOS included.
      own: mean number of a prompt's own ids.
      answer: mean number of an answer's ids, EOS included.
      answers: given answers per prompt.
      prompts: that are answered at once.
      new_tokens: of each greedy answer.
      remat: whether training steps recompute the inside of blocks.
      repeats: timed runs of each program.
      seed: of weights, prompts and answers.
    """

    row_length: int = 256
    rank: int = 8
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    control_rows: int = 1
    experimental_rows: int = 8
    batch_rows: int = 8
    models: int = 3
    shared: int = 100
    own: int = 40
    answer: int = 8
    answers: int = 4
    prompts: int = 32
    new_tokens: int = 16
    remat: bool = False
    repeats: int = 5
    seed: int = 0

    def check(self, arch: Architecture | None = None) -> None:
        """Refuses sizes that cannot be measured, on a model of this architecture if one is given.

        Raises:
          Refusal: 2.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name in ("shared", "seed") else 2 if field.name in ("own", "answer") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < lowest:
                raise Refusal(BAD_CONFIG, f"{field.name} is {value}; give at least {lowest}")
        needed = self.shared + self.own * 3 // 2 + self.answer * 3 // 2
        if needed > self.row_length:
            raise Refusal(
                BAD_CONFIG,
                f"row_length is {self.row_length}: {self.shared} shared ids, up to {self.own * 3 // 2} own ones and up "
                f"to {self.answer * 3 // 2} of the answer are {needed}; give longer rows, or fewer ids",
            )
        if arch is not None:
            adapters_lib.check_targets(arch, self.targets)


@dataclass(frozen=True)
class CompiledProgram:
    """A compiled program with its arguments.

    Attributes:
      name: one of `PARTS`.
      size: what it works on, in words.
      compiled: the program.
      run: runs it once and waits for it.
      positions: that pass through the blocks in one run, padding included, summed over models.
      flops: of one run, by formula.
    """

    name: str
    size: str
    compiled: jax.stages.Compiled
    run: Callable[[], None]
    positions: int
    flops: float


class Programs:
    """All programs over one base model."""

    def __init__(self, work: Workload, folder: str):
        """Takes the sizes and the base's folder; models are loaded when a program needs them."""
        self.work, self._folder = work, folder
        self._rng = np.random.default_rng(work.seed)

    def compile(self, part: str) -> CompiledProgram:
        """Compiles one of `PARTS`.

        Raises:
          Refusal: 2 for sizes that the model cannot take, and as in `load_model`.
        """
        with _own_names():
            return {
                "controls": lambda: self._step(
                    "controls", self._by_adapter, jax.device_count(), self.work.control_rows
                ),
                "experimental": lambda: self._step("experimental", self._by_row, 1, self.work.experimental_rows),
                "states": self._states,
                "prompts": self._prompts,
                "answers": self._answers,
                "greedy": self._greedy,
            }[part]()

    @cached_property
    def _by_adapter(self) -> Model:
        """The base on the mesh of the controls, which has a copy on every device."""
        return self._loaded(mesh_lib.make_mesh(Mesh()))

    @cached_property
    def _by_row(self) -> Model:
        """The base on the mesh of all other stages, spread over all devices."""
        return self._loaded(mesh_lib.make_mesh(Mesh(), adapters=False))

    def _loaded(self, mesh: jax.sharding.Mesh) -> Model:
        model = load_model(self._folder, mesh=mesh)
        self.work.check(model.architecture)
        return model

    def _ids(self, arch: Architecture, count: int) -> list[int]:
        return self._rng.integers(min(3, arch.vocab - 1), arch.vocab, count).tolist()

    def _examples(self, arch: Architecture, count: int) -> list[Encoded]:
        """Draws prompts that begin with the same ids, and answers."""
        work = self.work
        begin = self._ids(arch, work.shared)
        own = self._rng.integers(max(work.own // 2, 1), work.own * 3 // 2 + 1, count)
        answer = self._rng.integers(max(work.answer // 2, 1), work.answer * 3 // 2 + 1, count)
        return [
            Encoded(begin + self._ids(arch, a), self._ids(arch, b))
            for a, b in zip(own.tolist(), answer.tolist(), strict=True)
        ]

    def _step(self, name: str, model: Model, slots: int, rows: int) -> CompiledProgram:
        """Compiles the population step of `slots` models on `rows` rows each."""
        work, arch, mesh = self.work, model.architecture, model.mesh
        # More than fill the rows: no row holds this many examples.
        examples = in_memory(self._examples(arch, rows * (work.row_length // (work.own // 2) + 1)))
        prefix = shared_prefix(examples) if can_share_prefix(arch) else 0
        packed = pack_examples(examples, work.row_length, prefix_length=prefix)[0]
        taken = packed.take(np.arange(rows))
        batch = TrainingRows(*(np.stack([getattr(taken, field.name)] * slots) for field in fields(TrainingRows)))
        optimizer = population.optimizer_for(Tuning(), Schedule())
        spec = population.StepSpec(
            arch, optimizer, mesh, work.remat, prefix=packed.prefix_length, max_own=packed.max_own
        )
        # Both functions only pick leaves, so they take arrays on the host as well as on devices.
        stacked: Any = adapters_lib.stack(arch, [self._adapter(arch, number) for number in range(slots)])
        trainable: Any = adapters_lib.matrices(stacked)
        scale = {
            target: mesh_lib.place(mesh, cast(Any, leaf), ("adapter", "layers"))
            for target, leaf in adapters_lib.scales(stacked).items()
        }
        total = mesh_lib.place(mesh, np.full(slots, 1_000, np.int32), ("adapter",))
        active = mesh_lib.place(mesh, np.ones(slots, bool), ("adapter",))
        placed = place_batch(mesh, batch)
        state = population.initial_state(trainable, optimizer, mesh)
        compiled = population.make_step(spec).lower(model.state, scale, total, state, placed, active).compile()

        def run() -> None:
            nonlocal state
            state, _ = jax.block_until_ready(compiled(model.state, scale, total, state, placed, active))

        each = step_flops(
            arch, rows=rows, row_length=work.row_length, rank=work.rank, targets=work.targets, answers=packed.width,
            remat=work.remat,
        )  # fmt: skip
        size = f"{slots} x {rows} rows of {work.row_length}, {packed.prefix_length} ids shared"
        return CompiledProgram(name, size, compiled, run, batch.tokens.size, slots * each["executed"])

    def _adapter(self, arch: Architecture, number: int) -> Any:
        """Returns an adapter that changes every block, as trained ones do."""
        work = self.work
        adapter = adapters_lib.initial_adapter(arch, work.targets, work.rank, 2.0 * work.rank, 0, (work.seed, number))
        return {
            target: leaves | {"b": 0.01 * self._rng.standard_normal(leaves["b"].shape, np.float32)}
            for target, leaves in adapter.items()
        }

    @cached_property
    def _compared(self) -> Any:
        """The adapters of the compared models on the host: the first is the base itself."""
        arch = self._by_row.architecture
        own = [self._adapter(arch, number) for number in range(1, self.work.models)]
        base = {target: leaves | {"b": np.zeros_like(leaves["b"])} for target, leaves in self._adapter(arch, 0).items()}
        return adapters_lib.stack(arch, [base, *own])

    @cached_property
    def _asked(self) -> AskedPrompts:
        """Prompts that fill a batch of rows, with given answers."""
        work, arch = self.work, self._by_row.architecture
        count = (work.batch_rows + 1) * max(work.row_length // work.own, 1)
        pairs = [
            Encoded(example.prompt, self._ids(arch, int(length)))
            for example in self._examples(arch, count)
            for length in self._rng.integers(max(work.answer // 2, 1), work.answer * 3 // 2 + 1, work.answers)
        ]
        return AskedPrompts.of(in_memory(pairs))

    @cached_property
    def _config(self) -> PassConfig:
        return PassConfig("last", self.work.batch_rows, Packing(self.work.row_length))

    @cached_property
    def _pass(self) -> PromptPass:
        return PromptPass(self._by_row, self._compared, self._asked.prompts, self._config)

    @property
    def _pass_size(self) -> str:
        columns = self._pass.spec.prefix_length
        return f"{self.work.models} models, {columns} columns shared"

    def _states(self) -> CompiledProgram:
        """Compiles the forward pass that keeps states."""
        model, run, work = self._by_row, self._pass, self.work
        arch, mesh = model.architecture, model.mesh
        batch = next(run.batches())
        shape = abstract_kept(arch, mesh, run.models, run.prompts)
        kept = jax.jit(lambda: jnp.zeros(shape.shape, shape.dtype), out_shardings=shape.sharding)()
        compiled = keep_batch.lower(run.spec, *run.arguments, batch, run.prefix, kept).compile()

        def call() -> None:
            nonlocal kept
            kept = jax.block_until_ready(compiled(*run.arguments, batch, run.prefix, kept))

        positions, length = batch.tokens.size, batch.tokens.shape[1]
        size = f"{self._pass_size}, {len(batch.tokens)} rows of {length}"
        flops = work.models * forward_flops(arch, positions, length)
        return CompiledProgram("states", size, compiled, call, work.models * positions, flops)

    def _prompts(self) -> CompiledProgram:
        """Compiles the reading of prompts, whose keys and values are kept."""
        run, work, arch = self._pass, self.work, self._by_row.architecture
        batch = next(run.batches())
        compiled = read_prompts.lower(run.spec, *run.arguments, batch, run.prefix).compile()
        positions, length = batch.tokens.size, batch.tokens.shape[1]

        def call() -> None:
            jax.block_until_ready(compiled(*run.arguments, batch, run.prefix))

        size = f"{self._pass_size}, {len(batch.tokens)} rows of {length}"
        flops = work.models * forward_flops(arch, positions, length)
        return CompiledProgram("prompts", size, compiled, call, work.models * positions, flops)

    def _answers(self) -> CompiledProgram:
        """Compiles the losses of given answers behind prompts that were read."""
        model, run, work = self._by_row, self._pass, self.work
        arch, mesh = model.architecture, model.mesh
        rows, batch = next(run.batches_with_rows())
        shape = ContinuationShape.of([self._asked], arch, self._config, mesh)
        length = rows.tokens.shape[1]
        host, _ = next(lay_answers(rows, self._asked, shape.columns(length)))
        columns = AnswerColumns(**{name: mesh_lib.place(mesh, x, ("rows", None)) for name, x in host.items()})
        read = read_prompts(run.spec, *run.arguments, batch, run.prefix)
        compiled = branch_losses.lower(arch, mesh, *run.arguments, read, columns).compile()

        def call() -> None:
            jax.block_until_ready(compiled(*run.arguments, read, columns))

        positions = columns.tokens.size
        width = columns.tokens.shape[1]
        size = f"{work.models} models, {len(rows)} rows of {width} columns behind {length} positions"
        flops = work.models * likelihood_flops(arch, 0, positions, length)
        return CompiledProgram("answers", size, compiled, call, work.models * positions, flops)

    def _greedy(self) -> CompiledProgram:
        """Compiles greedy answers, none of which ends early."""
        model, work = self._by_row, self.work
        arch, mesh = model.architecture, model.mesh
        prompts = [np.asarray(example.prompt, np.int32) for example in self._examples(arch, work.prompts)]
        config = AnswerConfig(work.row_length, work.new_tokens, work.prompts)
        shared = config.shared(arch, prompts)
        own = [ids[shared:] for ids in prompts]
        shape = AnswerShape.of([np.asarray([len(ids) for ids in own])], config, mesh, [shared])
        width = shape.widths[-1]
        tokens, lengths = np.zeros((shape.rows, width), np.int32), np.ones(shape.rows, np.int32)  # [B, S], [B]
        for row, ids in enumerate(own[: shape.rows]):
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
        adapters = adapters_lib.place_adapters(mesh, self._compared)
        arguments: list[Any] = [
            model.state,
            adapters,
            mesh_lib.place(mesh, tokens, ("rows", None)),
            mesh_lib.place(mesh, lengths, ("rows",)),
        ]
        if shape.prefix:
            padded = np.pad(prompts[0][:shared], (0, shape.prefix - shared))[None]  # [1, P]
            first = mesh_lib.place(mesh, padded, (None, None))
            count = mesh_lib.place(mesh, np.asarray(shared, np.int32), ())
            prefix = read_prefix(arch, mesh, model.state, adapters, first, count)
            arguments += [prefix.keys_values, prefix.length]
        compiled = greedy.lower(arch, *arguments, eos=(_NEVER,), new_tokens=work.new_tokens, mesh=mesh).compile()

        def call() -> None:
            jax.block_until_ready(compiled(*arguments))

        read, new = shape.rows * width, shape.rows * work.new_tokens
        size = f"{work.models} models, {shape.rows} prompts of {width} behind {shape.prefix}, {work.new_tokens} new"
        flops = work.models * likelihood_flops(arch, read, new, shape.prefix + width + work.new_tokens)
        return CompiledProgram("greedy", size, compiled, call, work.models * (read + new), flops)


@contextmanager
def _own_names() -> Iterator[None]:
    """Lets programs with other names of functions and scopes count as others in the cache of compiled programs."""
    option = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, option)
    jax.config.update(option, True)
    try:
        yield
    finally:
        jax.config.update(option, before)
