"""The compiled steps of a group: one for each length of rows, made when it is first needed or ahead of that.

Shape letters: A slots, B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from mossa_jax.config import Schedule, Tuning
from mossa_jax.devices.memory import compile_step
from mossa_jax.llama.files.load import Model
from mossa_jax.tuning import population
from mossa_jax.tuning.members import Member, RowLength
from mossa_jax.tuning.population import StepSpec
from mossa_jax.tuning.roster import Roster


def compile_step_for(
    label: str,
    rows: RowLength,
    model: Model,
    schedule: Schedule,
    tuning: Tuning,
    arguments: tuple[Any, ...],
    is_quiet: bool = False,
) -> jax.stages.Compiled:
    """Compiles the step for rows of one length, with recomputation where configuration or memory ask for it.

    Args:
      label: in front of lines in the log.
      rows: the batches, [A, B, ...].
      model: the base; only its architecture, mesh and number type count.
      schedule: of every member.
      tuning: of the run.
      arguments: of `population.make_step`'s function, or their shapes.
      is_quiet: writes no line about the memory that the step takes.

    Raises:
      Refusal: 2 for a number of rows that no step can be compiled for; 3 when the step does not fit.
    """
    optimizer, mesh = population.optimizer_for(tuning, schedule), model.mesh
    spec = StepSpec(
        model.architecture,
        optimizer,
        mesh,
        micro_batches=rows.micro_batches(schedule),
        prefix=rows.prefix,
        max_own=rows.max_own,
        reproducible=tuning.reproducible,
        log_every=tuning.log_every,
    )
    if not tuning.reproducible:  # rows go one by one there
        # Refused here, with the number to change, rather than by the compiler.
        population.check_rows(label, rows.batch_rows, spec.micro_batches)
    return compile_step(
        label,
        tuning.remat,
        lambda remat: population.make_step(replace(spec, remat=remat)),
        arguments,
        mesh.local_devices[0],
        is_quiet,
    )


def steps_ahead(
    members: Sequence[Member], outline: Model, schedule: Schedule, tuning: Tuning
) -> Iterator[Callable[[], jax.stages.Compiled]]:
    """Yields what compiles each step of a group, as `tune_population` will compile it.

    Args:
      members: all that are tuned together.
      outline: the base on the group's mesh; its state may be shapes.
      schedule: of every member.
      tuning: of the run.
    """
    arch, mesh = outline.architecture, outline.mesh
    roster = Roster.of(members, schedule.batch_rows, tuning.slots, mesh.shape["adapter"])
    for rows in roster.row_lengths:
        if rows.batch_rows:
            arguments = population.abstract_arguments(
                arch,
                population.optimizer_for(tuning, schedule),
                mesh,
                dtype=jax.tree.leaves(outline.state)[0].dtype,
                slots=roster.places,
                rows=rows.batch_rows,
                row_length=rows.length,
                rank=tuning.rank,
                targets=tuning.targets,
                answers=rows.width,
            )
            yield partial(compile_step_for, "", rows, outline, schedule, tuning, arguments, is_quiet=True)
