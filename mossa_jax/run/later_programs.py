"""The programs of the scores and of the comparison, from shapes alone: for the thread that compiles ahead.

They must be those of the stages themselves to the last shape, or they are compiled for nothing. Models that are tuned
in full take turns in other programs, and sums of moments depend on more than shapes: neither is compiled ahead.

Shape letters: M models, L layers, n kept rows, T columns of the shared prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.function.likelihood import abstract_branches, branch_losses, read_rows
from mossa_jax.llama import generate
from mossa_jax.run.context import Run
from mossa_jax.run.lineup import line_up
from mossa_jax.run.models import tunes_whole_models
from mossa_jax.similarity import engine, gram
from mossa_jax.states import forward
from mossa_jax.states.forward import PassSpec
from mossa_jax.states.keep import STATE_AXES, keep_batch
from mossa_jax.states.shapes import PassShape


def score_programs(run: Run) -> Iterator[Callable[[], object]]:
    """Yields what compiles the reading of given answers and the answering of prompts, for each size of a batch."""
    if tunes_whole_models(run.config):
        return
    arch, mesh, answers = run.architecture, run.mesh, run.answer_shape
    new_tokens, eos = run.config.tuning.score_tokens, tuple(dict.fromkeys((run.tokenizer.eos, *arch.eos)))
    # Some tasks have further seeds and a twin.
    for models in sorted({len(run.scored_names(task)) for task in run.suite.tasks}):
        for shape in run.continuation_shape.passes:
            yield from _continuations(run, shape, models)
        for width in answers.widths:
            arguments = generate.abstract_arguments(
                arch, mesh, models=models, rows=answers.rows, width=width, prefix=answers.prefix, **_tuned(run)
            )
            yield generate.greedy.lower(arch, *arguments, eos=eos, new_tokens=new_tokens, mesh=mesh).compile


def _continuations(run: Run, shape: PassShape, models: int) -> Iterator[Callable[[], object]]:
    """Yields what compiles the reading of prompts, and that of given answers behind them, by M models."""
    arch, mesh = run.architecture, run.mesh
    first_changed = min(run.config.tuning.first_layer, arch.layers - 1)
    spec = PassSpec(arch, run.reading_config.pool, shape.prefix_length, shape.max_own, first_changed, mesh)
    for row in shape.rows:
        for rows in row.batches:
            base, adapters, batch, prefix = forward.abstract_arguments(
                spec, models=models, rows=rows, row_length=row.length, **_tuned(run)
            )
            slots: Any = mesh_lib.abstract(mesh, (rows, row.prompts), ("rows", None), jnp.int32)
            yield read_rows.lower(spec, base, adapters, batch._replace(ends=slots, ids=slots), prefix).compile
            columns = run.continuation_shape.columns(row.length)
            read, answers = abstract_branches(spec, run.config.dtype, models, rows, row.length, columns)
            yield branch_losses.lower(arch, mesh, base, adapters, read, answers).compile


def compare_programs(run: Run) -> Iterator[Callable[[], object]]:
    """Yields what compiles the passes over prompts and their similarities, for each size that tasks have."""
    if tunes_whole_models(run.config) or not _keeps_rows(run):
        return
    arch, mesh, shapes = run.architecture, run.mesh, run.pass_shapes
    # Tasks with and without seeds or a twin; and with fewer mismatched controls, if there are too few clusters.
    for lineup in sorted({line_up(run, task).lineup for task in run.suite.tasks}):
        models, pairs = lineup.models, lineup.pairs

        # All tasks' states are written to arrays of one size; similarity looks at the first rows of them.
        size = (models, arch.layers + 2, shapes[0].kept[-1], arch.hidden)
        kept = mesh_lib.abstract(mesh, size, STATE_AXES, jnp.float32)
        for shape in shapes:
            yield from _pass_programs(run, shape, models, kept)
        for rows in shapes[0].kept:
            # The last two come from the host as they are.
            arguments = (
                kept,
                jax.ShapeDtypeStruct((rows,), jnp.bool_),
                jax.ShapeDtypeStruct((run.config.compare.permutations, rows), jnp.int32),
            )
            yield gram.gram_sums.lower(
                *arguments,
                combinations=gram.gram_combinations(models, pairs),
                pairs=pairs,
                tile=gram.tile_size(rows),
                mesh=mesh if mesh.size > 1 else None,
            ).compile


def _pass_programs(
    run: Run, shape: PassShape, models: int, kept: jax.ShapeDtypeStruct
) -> Iterator[Callable[[], object]]:
    """Yields what compiles the passes of M models over lists of prompts of one shape; `kept` is [M, L + 2, n, D]."""
    arch, mesh, config = run.architecture, run.mesh, run.config
    first_changed = min(config.tuning.first_layer, arch.layers - 1)
    spec = PassSpec(arch, config.compare.pool, shape.prefix_length, shape.max_own, first_changed, mesh)
    has_prefix_program = False
    for row in shape.rows:
        for rows in row.batches:
            base, adapters, batch, prefix = forward.abstract_arguments(
                spec, models=models, rows=rows, row_length=row.length, **_tuned(run)
            )
            if prefix is not None and not has_prefix_program:
                tokens = mesh_lib.abstract(mesh, (1, shape.prefix_length), (None, None), jnp.int32)  # [1, T]
                count = mesh_lib.abstract(mesh, (), (), jnp.int32)
                yield forward.read_prefix.lower(arch, mesh, base, adapters, tokens, count).compile
                has_prefix_program = True
            slots: Any = mesh_lib.abstract(mesh, (rows, row.prompts), ("rows", None), jnp.int32)
            batch = batch._replace(ends=slots, ids=slots)
            yield keep_batch.lower(spec, base, adapters, batch, prefix, kept).compile


def _tuned(run: Run) -> dict[str, Any]:
    """Returns what the shapes of all adapters have in common, and the base's number type."""
    tuning = run.config.tuning
    return {"dtype": run.config.dtype, "rank": tuning.rank, "targets": tuning.targets}


def _keeps_rows(run: Run) -> bool:
    """Returns whether the comparison will keep rows, where this is plain: they take little of a device's memory."""
    config, arch = run.config.compare, run.architecture
    if config.pool == "all" or config.engine == engine.MOMENTS:
        return False
    lineup = max((line_up(run, task).lineup for task in run.suite.tasks), key=lambda each: each.models)
    costs = engine.estimate_costs(
        lineup.models,
        arch.layers + 2,
        run.pass_shapes[0].kept[-1],
        arch.hidden,
        lineup.pairs,
        run.mesh.size,
        config.pool,
    )
    return config.engine == engine.KEPT or costs.kept.bytes <= engine.MEMORY_SHARE * engine.memory_per_device()
