"""The programs of a run as shapes on a mesh that need not be there, and what their compiler says of them.

Nothing is computed and no weights are needed: a program is lowered from the shapes and shardings that a run would give
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
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from mossa_jax.config import Mesh, Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.devices.memory import bytes_on_device, compiler_bytes, program_bytes
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.cache import build_once
from mossa_jax.files.write import write_json
from mossa_jax.llama import generate
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.placement import abstract_base, check_mesh, leaf_name
from mossa_jax.planning.collectives import collectives
from mossa_jax.planning.hardware import Hardware
from mossa_jax.similarity import gram
from mossa_jax.similarity.streamed.forward import abstract_moments, stream_batch
from mossa_jax.states import forward as states
from mossa_jax.states.forward import PassSpec
from mossa_jax.states.keep import abstract_kept, keep_batch
from mossa_jax.tuning import population

Grid = jax.sharding.Mesh | AbstractMesh


@dataclass(frozen=True)
class Program:
    """A program of a run.

    Attributes:
      grid: its mesh.
      arguments: shapes with shardings.
      lower: gives what can be compiled; only where `grid` has devices.
      attention: the body that it takes; "" where there is none.
      unread: those of `arguments` that it does not read, and that a compiler leaves out.
      beside: shapes of what else lies on the devices.
    """

    grid: Grid
    arguments: tuple
    lower: Callable[[], Any]
    attention: str = ""
    unread: tuple = ()
    beside: tuple = ()

    @property
    def shards(self) -> int:
        """Bytes of the arguments on a chip, summed over the shapes of their parts."""
        return bytes_on_device(self.arguments) - bytes_on_device(self.unread)

    @property
    def around(self) -> int:
        """Bytes on a chip of what is no argument of the compiled program."""
        return bytes_on_device(self.unread) + bytes_on_device(self.beside)


def grid_for(hardware: Hardware, mesh: Mesh, arch: Architecture, name: str, adapters: bool = True) -> Grid:
    """The mesh of a run on that hardware; an abstract one where no devices are known.

    Args:
      hardware: of the run.
      mesh: devices per axis.
      arch, name: of the model, which must be spread evenly.
      adapters: False folds the adapter axis into `fsdp`, as in `mesh.make_mesh`.

    Raises:
      Refusal: 2 when sizes do not fit the number of devices or the model.
    """
    if hardware.devices:
        grid = mesh_lib.make_mesh(mesh, adapters, hardware.devices)
    else:
        sizes = mesh_lib.axis_sizes(mesh, hardware.chips, adapters)
        grid = AbstractMesh(tuple(sizes), mesh_lib.AXES, axis_types=(AxisType.Auto,) * 3)
    check_mesh(arch, grid, name)
    return grid


def attention_body(grid: Grid, dtype: str, prefix: int) -> str:
    """The body of attention that a pass takes; of an abstract mesh, which stands for GPUs, theirs."""
    if isinstance(grid, AbstractMesh):
        return "xla" if prefix or dtype == "float32" else "cudnn"
    return population.attention_body(grid, dtype, prefix)


def tuning_program(
    arch: Architecture,
    grid: Grid,
    *,
    dtype: str,
    slots: int,
    rows: int,
    row_length: int,
    rank: int,
    targets: Sequence[str],
    answers: int,
    remat: bool,
    parts: int = 1,
    prefix: int = 0,
    max_own: int = 0,
) -> Program:
    """The population's training step.

    Args:
      arch: the base model's.
      grid: with an adapter axis of 1 for E.
      dtype: of the base.
      slots: models that are trained at once, with the empty ones: a multiple of the adapter axis.
      rows, row_length: packed rows a model and step, and their positions.
      rank, targets: of the adapters.
      answers: the most answer tokens in a row.
      remat, parts, prefix, max_own: as `StepSpec` of `tuning.population` has them; `parts` are its micro-batches.
    """
    optimizer = population.optimizer_for(Tuning(), Schedule())
    shapes = population.abstract_arguments(
        arch, optimizer, grid, dtype=dtype, slots=slots, rows=rows, row_length=row_length, rank=rank, targets=targets,
        answers=answers,
    )  # fmt: skip
    spec = population.StepSpec(arch, optimizer, grid, remat, parts, prefix, max_own)
    lower = lambda: population.make_step(spec).lower(*shapes)  # noqa: E731
    return Program(grid, shapes, lower, attention_body(grid, dtype, prefix))


def states_program(
    arch: Architecture,
    grid: Grid,
    *,
    dtype: str,
    models: int,
    rank: int,
    targets: Sequence[str],
    rows: int,
    row_length: int,
    prompts: int,
    pool: str = "last",
    prefix: int = 0,
    max_own: int = 0,
    pairs: Sequence[tuple[int, int]] = (),
) -> Program:
    """The pass of a comparison: the layerwise forward pass with its kept states, or with `pairs` with their moments.

    Args:
      arch: the base model's.
      grid: with an adapter axis of 1, as in the comparison.
      dtype: of the base.
      models, rank, targets: adapters that run at once.
      rows, row_length: packed rows in a batch (rounded up to the fsdp axis), and their positions.
      prompts: of a task, whose pooled states are kept.
      pool: as in `states`.
      prefix: columns for the ids that all prompts share.
      max_own: as in `states.forward.PassSpec`.
      pairs: of models whose moments are summed instead of keeping rows; only where `grid` has devices.
    """
    rows = mesh_lib.round_up(rows, grid.shape["fsdp"])
    spec = PassSpec(arch, pool, prefix, max_own, 0, grid)
    base, adapters, batch, shared = states.abstract_arguments(
        spec, dtype=dtype, models=models, rank=rank, targets=targets, rows=rows, row_length=row_length
    )
    run, state = keep_batch, abstract_kept(arch, grid, models, prompts)
    if pairs:
        run, state = stream_batch, abstract_moments(arch, grid, models, pairs)
    arguments = (base, adapters, batch, shared, state)
    unread = [leaf for path, leaf in jax.tree.leaves_with_path(base) if leaf_name(path) == "head"]
    if prefix and pool == "last":
        unread.append(shared.sums)
    body = attention_body(grid, dtype, prefix)
    return Program(grid, arguments, lambda: run.lower(spec, *arguments), body, tuple(unread))


def similarity_program(
    arch: Architecture,
    grid: Grid,
    *,
    dtype: str,
    models: int,
    prompts: int,
    pairs: Sequence[tuple[int, int]],
    permutations: int,
) -> Program:
    """The row sums of `similarity.compare_states` over a task's kept states; the base stays where it is meanwhile.

    Args:
      arch, grid, dtype, models, prompts: as of `states_program`.
      pairs: of models that are compared.
      permutations: of the null.
    """
    kept = abstract_kept(arch, grid, models, prompts)
    n = kept.shape[2]
    valid = mesh_lib.abstract(grid, (n,), (None,), jnp.bool_)
    ranks = mesh_lib.abstract(grid, (permutations, n), (None, None), jnp.int32)
    lower = lambda: gram.gram_sums.lower(  # noqa: E731
        kept, valid, ranks, combinations=gram.gram_combinations(models, pairs), pairs=tuple(pairs),
        tile=gram.tile_size(n), mesh=grid if grid.size > 1 else None,
    )  # fmt: skip
    return Program(grid, (kept, valid, ranks), lower, beside=(abstract_base(arch, grid, dtype),))


def score_program(
    arch: Architecture,
    grid: Grid,
    *,
    dtype: str,
    models: int,
    rank: int,
    targets: Sequence[str],
    rows: int,
    width: int,
    new_tokens: int,
) -> Program:
    """Greedy answers of several models to a batch of prompts.

    Args:
      arch, grid, dtype, models, rank, targets: as of `states_program`.
      rows, width: prompts in a batch (rounded up to the fsdp axis), and positions of the longest.
      new_tokens: longest answer.
    """
    rows = mesh_lib.round_up(rows, grid.shape["fsdp"])
    arguments = generate.abstract_arguments(
        arch, grid, dtype=dtype, models=models, rank=rank, targets=targets, rows=rows, width=width
    )
    lower = lambda: generate.greedy.lower(arch, *arguments, eos=arch.eos, new_tokens=new_tokens, mesh=grid)  # noqa: E731
    return Program(grid, arguments, lower, attention_body(grid, dtype, 0))


def compiled(program: Program) -> dict[str, Any]:
    """Compiles a program; the same one is compiled once, and its figures kept in the cache.

    Returns:
      Bytes a chip: `shards` (`Program.shards`), `arguments` (as the compiler says), `temporary`, `beside`
      (`Program.around`), `total` (with outputs and code, and with what lies beside); `room` where the compiler
      itself found the program too large for it; `compile_seconds`, of the first time; `collectives`, None where the
      program's text cannot be had.
    """
    shards, beside = program.shards, program.around
    lowered = program.lower()

    def build(folder: Path) -> None:
        write_json(folder / "compiled.json", _compile(lowered, shards, dict(program.grid.shape)))

    folder = build_once(f"plans/{_digest(program.grid, lowered.as_text())}", build)
    found = json.loads((folder / "compiled.json").read_text())
    return {"shards": shards, "beside": beside} | found | {"total": found["total"] + beside}


def _digest(grid: Grid, text: str) -> str:
    """Identifies a program, what it is compiled for and by which compiler."""
    devices = grid.devices.flatten()
    versions = [jax.__version__, devices[0].client.platform_version]
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    return hashlib.sha256(
        json.dumps([text, [repr(device) for device in devices], versions, flags]).encode()
    ).hexdigest()


def _compile(lowered: Any, arguments: int, axes: dict[str, int]) -> dict[str, Any]:
    """What a compiler says of a program with so many bytes of arguments a chip, in the names of `compiled`.

    Of a program that the compiler itself finds too large only the compiler's figures are known.
    """
    start = time.monotonic()
    text = ""
    try:
        made = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := compiler_bytes(error, arguments)) is None:
            raise
    else:
        found = program_bytes(made)
        try:
            text = made.as_text()
        except jax.errors.JaxRuntimeError:  # jaxlib cannot read every instruction that libtpu writes
            pass
    seconds = round(time.monotonic() - start, 1)
    return found | {"compile_seconds": seconds, "collectives": collectives(text, axes) if text else None}


def check_fits(what: str, total: int, room: int, remedy: str) -> None:
    """Refuses a program that needs more bytes a chip, `total`, than there are, `room`.

    Raises:
      Refusal: 3, with the number of missing bytes.
    """
    if total > room:
        raise Refusal(
            BAD_INPUT, f"{what} does not fit: {total - room} bytes a chip are missing ({total} of {room}); {remedy}"
        )
