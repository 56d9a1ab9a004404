"""The updates of E and of the specialists: how large they are, layer by layer, and how far they coincide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mossa_jax.config import TUNED
from mossa_jax.llama.adapters import Adapter
from mossa_jax.llama.updates import Update, base_norms, cosines, norms, overlap, quotients
from mossa_jax.run.analyse.analysis import Analysis, TaskStates, one_table
from mossa_jax.run.context import Run
from mossa_jax.run.exported import tuned_adapter
from mossa_jax.run.lineup import draw_mismatched
from mossa_jax.run.models import tunes_whole_models
from mossa_jax.tasks import Task
from mossa_jax.tasks.controls import seed_name

_ANGLES = ("cosine", "overlap_in", "overlap_out")


def _tasks(run: Run) -> Sequence[Task]:
    """Returns all tasks; none if models are tuned in full, whose updates are no products."""
    return [] if tunes_whole_models(run.config) else run.suite.tasks


def _price(_: Run) -> str:
    return "products of rank x rank of the adapters, on the host; no passes, one small program for the base's norms"


def _rows(run: Run, task: Task, _: TaskStates | None) -> list[dict[str, Any]]:
    tuned, control = (tuned_adapter(run, name) for name in (TUNED, task.name))
    others = draw_mismatched(run, task)[:1]
    seeds = [name for name in (seed_name(task.name, 1),) if name in run.controls]
    targets = [target for target in tuned if target in control]
    other, seed = (tuned_adapter(run, names[0]) if names else None for names in (others, seeds))
    of_base = base_norms(run.mesh, run.model.state, targets)
    rows = []
    for target in targets:
        columns = {}
        for name, adapter in (("tuned", tuned), ("control", control)):
            columns[f"norm_{name}"] = norms(adapter[target])
            columns[f"relative_{name}"] = quotients(columns[f"norm_{name}"], of_base[target])
        spaces = overlap(tuned[target], control[target])
        columns |= _angles(tuned[target], control[target], "")
        columns |= {"chance_in": spaces.chance_inputs, "chance_out": spaces.chance_outputs}
        # What E has in common with any specialist, and what two seeds of one specialist have.
        columns |= _angles(tuned[target], _update(other, target), "_other")
        columns |= _angles(control[target], _update(seed, target), "_seed")
        rows += [
            {"layer": str(layer + 1), "target": target, **{name: values[layer] for name, values in columns.items()}}
            for layer in range(run.architecture.layers)
        ]
    return rows


def _models(run: Run, task: Task) -> list[str]:
    """Returns E, the task's control, a further seed of it and another task's control."""
    seeds = [name for name in (seed_name(task.name, 1),) if name in run.controls]
    return [TUNED, task.name, *seeds, *draw_mismatched(run, task)[:1]]


def _update(adapter: Adapter | None, target: str) -> Update | None:
    return None if adapter is None else adapter.get(target)


def _angles(x: Update, y: Update | None, suffix: str) -> dict[str, np.ndarray]:
    """Returns columns that say how far two updates coincide; NaN without the second one."""
    if y is None:
        return dict.fromkeys([f"{name}{suffix}" for name in _ANGLES], np.full(len(x["scale"]), np.nan))
    spaces = overlap(x, y)
    values = (cosines(x, y), spaces.inputs, spaces.outputs)
    return {f"{name}{suffix}": value for name, value in zip(_ANGLES, values, strict=True)}


ANALYSIS = Analysis(
    name="weights",
    models=_models,
    settings=(),
    table_names=("weights",),
    needs_states=False,
    price=_price,
    tasks=_tasks,
    rows=_rows,
    tables=one_table("weights"),
    needs="adapters over one base",
)
