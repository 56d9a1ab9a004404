"""The programs of a run as shapes on a mesh that need not exist, and what their compiler says about them.

Nothing is computed and no weights are needed. A program is lowered from the shapes and shardings that a run would give
it, compiled for a topology, and asked for its memory and its transfers.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from mossa_jax.config import Mesh, Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.devices.memory import bytes_on_device, compiler_bytes, program_bytes
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.cache import build_once
from mossa_jax.files.write import write_json
from mossa_jax.function.likelihood import abstract_branches, branch_losses
from mossa_jax.llama import generate
from mossa_jax.llama.adapters import abstract_adapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import choose_body
from mossa_jax.llama.cudnn import takes_heads
from mossa_jax.llama.placement import abstract_base, check_mesh, leaf_name
from mossa_jax.planning.collectives import collectives
from mossa_jax.planning.gpu_targets import cudnn_of_targets
from mossa_jax.planning.hardware import Hardware
from mossa_jax.planning.sizes import NO_PREFIX, AdapterSize, Base, BatchSize, PrefixSize
from mossa_jax.processes.drivers import without_complaints
from mossa_jax.similarity import gram
from mossa_jax.similarity.streamed.forward import abstract_moments, stream_batch
from mossa_jax.states import forward as states
from mossa_jax.states.forward import PassSpec
from mossa_jax.states.keep import abstract_kept, keep_batch
from mossa_jax.tuning import population

# Increased when `collectives` reads programs in another way, so that figures in the cache are read again.
_READER = 2


@dataclass(frozen=True)
class Program:
    """A program of a run.

    Attributes:
      grid: its mesh, which may be abstract.
      arguments: their shapes, with shardings.
      lower: returns the lowered program, which can be compiled; only if `grid` has devices.
      attention: the attention body that it uses; "" if it has no attention.
      unread: those of `arguments` that it does not read, and that a compiler therefore leaves out.
      resident: shapes of what else is on the devices while it runs.
      open_iterations: of its loops that end by their data, at most.
    """

    grid: jax.sharding.Mesh
    arguments: tuple[Any, ...]
    lower: Callable[[], jax.stages.Lowered]
    attention: str = ""
    unread: tuple[Any, ...] = ()
    resident: tuple[Any, ...] = ()
    open_iterations: int = 1

    @property
    def argument_bytes(self) -> int:
        """Bytes of the arguments on a chip, summed over the shapes of their shards."""
        return bytes_on_device(self.arguments) - bytes_on_device(self.unread)

    @property
    def bytes_beside(self) -> int:
        """Bytes on a chip that belong to no argument of the compiled program."""
        return bytes_on_device(self.unread) + bytes_on_device(self.resident)


def grid_for(hardware: Hardware, mesh: Mesh, arch: Architecture, name: str, adapters: bool = True) -> jax.sharding.Mesh:
    """Returns the mesh of a run on `hardware`; an abstract one if its devices are not known.

    Args:
      hardware: that the run is planned for.
      mesh: devices per axis.
      arch: the base model's, which must divide evenly over the mesh.
      name: of the base model.
      adapters: False folds the adapter axis into `fsdp`, as in `mesh.make_mesh`.

    Raises:
      Refusal: 2 if the sizes do not fit the number of devices or the model.
    """
    if hardware.devices:
        grid = mesh_lib.make_mesh(mesh, adapters, hardware.devices)
    else:
        sizes = mesh_lib.axis_sizes(mesh, hardware.chips, adapters)
        # An abstract mesh has all that a placement asks for: axis names and sizes.
        abstract = AbstractMesh(tuple(sizes), mesh_lib.AXES, axis_types=(AxisType.Auto,) * 3)
        grid = cast(jax.sharding.Mesh, abstract)
    check_mesh(arch, grid, name)
    return grid


def attention_body(base: Base) -> str:
    """Returns the attention body of the base model; an abstract mesh gets that of what it stands for."""
    if isinstance(base.grid, AbstractMesh):
        if base.is_tpu:
            return "splash" if base.dtype != "float32" else "xla"
        is_taken = takes_heads(base.arch.head_dim) and not base.arch.attention_cap
        return "cudnn" if base.dtype != "float32" and is_taken else "xla"
    return choose_body(base.grid, jnp.dtype(base.dtype), base.arch.head_dim, base.arch.attention_cap)


def tuning_program(
    base: Base,
    adapters: AdapterSize,
    batch: BatchSize,
    answers: int,
    *,
    remat: bool,
    parts: int = 1,
    prefix: PrefixSize = NO_PREFIX,
) -> Program:
    """Returns the training step of a population.

    Args:
      base: on a mesh whose adapter axis is 1 for E.
      adapters: that are trained at once; their number is a multiple of the adapter axis.
      batch: packed rows per model and step.
      answers: the most answer tokens in a row.
      remat: whether blocks are recomputed in the backward pass.
      parts: micro-batches per step.
      prefix: ids that a task's prompts share.
    """
    optimizer = population.optimizer_for(Tuning(), Schedule())
    arguments = population.abstract_arguments(
        base.arch, optimizer, base.grid, dtype=base.dtype, slots=adapters.models, rows=batch.rows,
        row_length=batch.row_length, rank=adapters.rank, targets=adapters.targets, answers=answers,
    )  # fmt: skip

    spec = population.StepSpec(base.arch, optimizer, base.grid, remat, parts, prefix.columns, prefix.max_own)

    def lower() -> jax.stages.Lowered:
        return population.make_step(spec).lower(*arguments)

    return Program(base.grid, arguments, lower, attention_body(base))


def states_program(
    base: Base,
    adapters: AdapterSize,
    batch: BatchSize,
    prompts: int,
    *,
    pool: str = "last",
    prefix: PrefixSize = NO_PREFIX,
    pairs: Sequence[tuple[int, int]] = (),
) -> Program:
    """Returns the forward pass of a comparison, which keeps states or, given `pairs`, sums their moments.

    Args:
      base: on a mesh whose adapter axis is 1, as in the comparison.
      adapters: that run at once.
      batch: packed rows, rounded up to the fsdp axis.
      prompts: of a task, whose pooled states are kept.
      pool: as in `states`.
      prefix: ids that all prompts share.
      pairs: models whose moments are summed instead of keeping rows; only if the mesh has devices.
    """
    batch = batch.filling(base.grid)
    spec = PassSpec(base.arch, pool, prefix.columns, prefix.max_own, 0, base.grid)
    weights, stacked, rows, shared = states.abstract_arguments(
        spec, dtype=base.dtype, models=adapters.models, rank=adapters.rank, targets=adapters.targets,
        rows=batch.rows, row_length=batch.row_length,
    )  # fmt: skip
    run: Any
    state: Any
    if pairs:
        run, state = stream_batch, abstract_moments(base.arch, base.grid, adapters.models, pairs)
    else:
        run, state = keep_batch, abstract_kept(base.arch, base.grid, adapters.models, prompts)
    arguments = (weights, stacked, rows, shared, state)
    unread = [leaf for path, leaf in jax.tree.leaves_with_path(weights) if leaf_name(path) == "head"]
    if shared is not None and pool == "last":
        unread.append(shared.sums)
    body = attention_body(base)
    return Program(base.grid, arguments, lambda: run.lower(spec, *arguments), body, tuple(unread))


def similarity_program(
    base: Base, models: int, prompts: int, pairs: Sequence[tuple[int, int]], permutations: int
) -> Program:
    """Returns the row sums of `similarity.compare_states` over a task's kept states.

    Args:
      base: stays on the devices meanwhile.
      models: the number of models whose states are kept.
      prompts: of the task.
      pairs: models that are compared.
      permutations: of the null.
    """
    grid = base.grid
    kept = abstract_kept(base.arch, grid, models, prompts)
    n = kept.shape[2]
    valid = mesh_lib.abstract(grid, (n,), (None,), jnp.bool_)
    ranks = mesh_lib.abstract(grid, (permutations, n), (None, None), jnp.int32)

    def lower() -> jax.stages.Lowered:
        return gram.gram_sums.lower(
            kept, valid, ranks, combinations=gram.gram_combinations(models, pairs), pairs=tuple(pairs),
            tile=gram.tile_size(n), mesh=grid if grid.size > 1 else None,
        )  # fmt: skip

    return Program(grid, (kept, valid, ranks), lower, resident=(abstract_base(base.arch, grid, base.dtype),))


def score_program(base: Base, adapters: AdapterSize, batch: BatchSize, new_tokens: int) -> Program:
    """Returns the greedy decoding of several models' answers to a batch of prompts.

    Args:
      base: on a mesh whose adapter axis is 1.
      adapters: that answer at once.
      batch: prompts, rounded up to the fsdp axis, and the positions of the longest.
      new_tokens: length of the longest answer.
    """
    arch, batch = base.arch, batch.filling(base.grid)
    arguments = generate.abstract_arguments(
        arch, base.grid, dtype=base.dtype, models=adapters.models, rank=adapters.rank, targets=adapters.targets,
        rows=batch.rows, width=batch.row_length,
    )  # fmt: skip

    def lower() -> jax.stages.Lowered:
        return generate.greedy.lower(arch, *arguments, eos=arch.eos, new_tokens=new_tokens, mesh=base.grid)

    return Program(base.grid, arguments, lower, attention_body(base), open_iterations=new_tokens)


def likelihood_program(
    base: Base, adapters: AdapterSize, batch: BatchSize, columns: int, *, prefix: PrefixSize = NO_PREFIX
) -> Program:
    """Returns the reading of given answers by several models, teacher-forced, behind prompts that they have read.

    Args:
      base: on a mesh whose adapter axis is 1.
      adapters: that read at once.
      batch: packed prompts, rounded up to the fsdp axis.
      columns: for answers, per row.
      prefix: ids that all prompts share.
    """
    arch, grid, batch = base.arch, base.grid, batch.filling(base.grid)
    spec = PassSpec(arch, "last", prefix.columns, prefix.max_own, 0, grid)
    read, answers = abstract_branches(spec, base.dtype, adapters.models, batch.rows, batch.row_length, columns)
    arguments = (
        abstract_base(arch, grid, base.dtype),
        abstract_adapters(arch, grid, adapters.models, adapters.rank, adapters.targets),
        read,
        answers,
    )

    def lower() -> jax.stages.Lowered:
        return branch_losses.lower(arch, grid, *arguments)

    # Few queries behind many keys: one masked product, and no kernel.
    return Program(grid, arguments, lower, "xla")


def compile_program(program: Program) -> dict[str, Any]:
    """Compiles a program and returns its figures; these are cached, so that the same program is compiled only once.

    Returns:
      Bytes per chip: `shards` (`Program.argument_bytes`), `arguments` (according to the compiler), `temporary`,
      `beside` (`Program.bytes_beside`), `total` (all of them, with outputs and code). Also `room`, only if the compiler
      itself found the program too large for it; `compile_seconds`, of the first time; `collectives`, None if the
      program has no readable text.
    """
    argument_bytes, beside = program.argument_bytes, program.bytes_beside
    with without_complaints(), cudnn_of_targets():
        lowered = program.lower()

    def build(folder: Path) -> None:
        write_json(folder / "compiled.json", _compile(lowered, argument_bytes, program))

    folder = build_once(f"plans/{_digest(program.grid, lowered.as_text())}", build)
    figures = json.loads((folder / "compiled.json").read_text())
    return {"shards": argument_bytes, "beside": beside} | figures | {"total": figures["total"] + beside}


def _digest(grid: jax.sharding.Mesh, text: str) -> str:
    """Identifies a program, the devices that it is compiled for, and its compiler."""
    devices = grid.devices.flatten()
    versions = [jax.__version__, devices[0].client.platform_version]
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    return hashlib.sha256(
        json.dumps([_READER, text, [repr(device) for device in devices], versions, flags]).encode()
    ).hexdigest()


def _compile(lowered: jax.stages.Lowered, argument_bytes: int, program: Program) -> dict[str, Any]:
    """Returns the compiler's figures for a program, under the names of `compile_program`.

    If the compiler itself finds the program too large, only the figures in its message are known.

    Args:
      lowered: the program, lowered.
      argument_bytes: of its arguments, per chip.
      program: that was lowered.
    """
    start = time.monotonic()
    text = None
    try:
        with without_complaints():
            executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        too_large = compiler_bytes(error, argument_bytes)
        if too_large is None:
            raise
        figures = too_large
    else:
        figures = program_bytes(executable)
        try:
            text = executable.as_text()
        except jax.errors.JaxRuntimeError:
            # jaxlib cannot read every instruction that libtpu writes.
            pass
    seconds = round(time.monotonic() - start, 1)
    transfers = collectives(text, program.grid.shape, program.open_iterations) if text else None
    return figures | {"compile_seconds": seconds, "collectives": transfers}


def check_fits(label: str, total: int, room: int, remedy: str) -> None:
    """Refuses a program that needs more memory than a chip has.

    Args:
      label: names the program, at the front of the refusal.
      total: bytes per chip that it needs.
      room: bytes that a chip has.
      remedy: the way out, at the end of the refusal.

    Raises:
      Refusal: 3, with the number of missing bytes.
    """
    if total > room:
        raise Refusal(
            BAD_INPUT, f"{label} does not fit: {total - room} bytes per chip are missing ({total} of {room}); {remedy}"
        )
