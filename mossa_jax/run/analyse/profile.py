"""What each layer's adapter does for the answers: layer profiles of E and of each specialist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mossa_jax.config import TUNED
from mossa_jax.function.profile import profile_rows, profile_variants, sources
from mossa_jax.function.variant_schedule import make_schedule
from mossa_jax.function.variants import row_bytes, variant_likelihoods
from mossa_jax.run.analyse.analysis import Analysis, TaskStates, all_tasks, one_table, own_models
from mossa_jax.run.context import Run
from mossa_jax.run.models import model_groups, tunes_whole_models
from mossa_jax.tasks import Task


def _tasks(run: Run) -> Sequence[Task]:
    """Returns all tasks; none where models are tuned in full, since their layers are no adapters over one base."""
    return () if tunes_whole_models(run.config) else all_tasks(run)


def _price(run: Run) -> str:
    arch, settings = run.architecture, run.config.analyse
    variants = sources(profile_variants(arch.layers, settings.profile_layers))
    shape = run.profile_shape
    schedule, rows = make_schedule(variants, shape.size), shape.pairs.rows[-1]
    size = row_bytes(arch, variants, rows.length, jnp.dtype(run.config.dtype).itemsize)
    on_device = size * rows.rows / run.mesh.shape["fsdp"] / 2**30
    count, passes = len(set(schedule.slot_of.tolist())), schedule.steps / arch.layers
    return (
        f"{count} variants of E and a specialist over one base, on {settings.profile_prompts} prompts per task with "
        f"two answers each, in one program; they share states, so that this is the work of {passes:.0f} passes; "
        f"{on_device:.2f} GiB of states per device"
    )


def _rows(run: Run, task: Task, _: TaskStates | None) -> list[dict[str, Any]]:
    variants = profile_variants(run.architecture.layers, run.config.analyse.profile_layers)
    pairs = run.profile_pairs(task)
    # The base, E and the specialist are the sources that the variants are made from, in this order.
    (group,) = model_groups(run, (None, TUNED, task.name))
    likelihoods = variant_likelihoods(
        group.model, group.adapters, sources(variants), pairs.pairs, run.pair_config, run.profile_shape
    )
    return profile_rows(variants, pairs, likelihoods)


ANALYSIS = Analysis(
    name="profile",
    models=own_models,
    settings=("profile_prompts", "profile_layers"),
    table_names=("profile",),
    needs_states=False,
    price=_price,
    tasks=_tasks,
    rows=_rows,
    tables=one_table("profile"),
    needs="adapters over one base",
)
