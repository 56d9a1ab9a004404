"""Other measures of similarity on a subset fixed in advance: does what CKA shows depend on CKA?"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.run import models
from mossa_jax.run.analyse.analysis import Analysis, TaskStates, compared_models, one_table
from mossa_jax.run.analyse.measures_subset import MODELS, OTHER_POOL_MODELS, Subset, choose_subset, panel_tasks
from mossa_jax.run.context import Run
from mossa_jax.similarity.lineup import BASE, OWN, E
from mossa_jax.similarity.measures.panel import PANEL, RAW, VARIANTS, measure_panel
from mossa_jax.states import PassConfig, PassShape
from mossa_jax.states.keep import STATE_AXES
from mossa_jax.tasks import Task
from mossa_jax.tasks.controls import seed_name, twin_name

CONTROL = "control"
"""The experimental model of rows that compare a task's control with another seed of it, as in `results/cka`."""

_POOLS = {"last": "mean", "mean": "last"}
"""The comparison's pooling -> the other one."""


_MODELS = MODELS
"""Models of a program: the base, E, the own control, a foreign one and a further seed."""


@dataclass(frozen=True)
class _Pairs:
    """The models of a task that the panel takes from states of several.

    Attributes:
      models: their indices in the states, `_MODELS` of them: the own control fills places that are not needed, so that
        all tasks and both poolings share their programs.
      labels: experimental model and control of each pair that counts, with the place of the pair in `_PAIRS`.
    """

    models: tuple[int, ...]
    labels: tuple[tuple[int, str, str], ...]


_PAIRS = ((BASE, OWN), (E, OWN), (E, OWN + 1), (OWN, OWN + 2))
"""Of `_MODELS`: the base and E against the own control, E against a foreign one, the own control against a seed."""


def _price(run: Run) -> str:
    subset, tasks = choose_subset(run), panel_tasks(run)
    limit = run.config.analyse.measures_share
    over = ", above the limit, since the panel cannot be smaller" if 0 < limit < subset.share else ""
    return (
        f"{len(PANEL)} measures of {len(VARIANTS)} variants at layers {', '.join(map(str, subset.layers))}, up to "
        f"{subset.prompts} prompts of each of {len(tasks)} tasks; one more pass of {OTHER_POOL_MODELS} models over "
        f"these prompts, pool {_POOLS[run.config.compare.pool]!r}; about {100 * subset.share:.0f} % of the "
        f"comparison's operations{over}"
    )


def _rows(run: Run, task: Task, states: TaskStates | None) -> list[dict[str, Any]]:
    assert states is not None
    subset, pool = choose_subset(run), run.config.compare.pool
    slots = _slots(run, subset)
    chosen = spread_over_items(states.prompts.items)[: subset.prompts]
    valid = np.arange(slots) < len(chosen)
    # Rows behind the last prompt repeat the first one, and do not count.
    rows = np.pad(chosen, (0, slots - len(chosen)))
    items = states.prompts.items[rows]
    compared = _choose_pairs(run, task, states)
    cut = _cut(run, states.kept.states, compared.models, subset, rows)
    cells = list(_cells((cut, valid, items), compared, VARIANTS, subset, pool))
    ids: list = [states.prompts.ids[row] for row in chosen]  # NumPy arrays, which stand for sequences of ids
    own = _Pairs((BASE, E, OWN, OWN, OWN), compared.labels[:2])
    other, shapes = _other_pass(run, subset)
    kept = models.model_states(run, states.names[: OWN + 1], ids, other, shapes)
    cut = _cut(run, kept.states, own.models, subset, np.where(valid, np.arange(slots), 0))
    cells += _cells((cut, valid, items), own, (RAW,), subset, other.pool)
    return cells


def _choose_pairs(run: Run, task: Task, states: TaskStates) -> _Pairs:
    """Chooses the models of a task: a foreign control is the task's twin, or else the first one of another task."""
    chosen = [BASE, E, *[OWN] * (_MODELS - OWN)]
    labels = [(0, PRETRAINED, task.name), (1, TUNED, task.name)]
    names, twin, seed = states.names, twin_name(task.name), seed_name(task.name, 1)
    others = [name for name in names if name in run.controls and run.controls[name].task.name != task.name]
    foreign = twin if twin in names else next(iter(others), None)
    if foreign is not None:
        chosen[OWN + 1] = names.index(foreign)
        labels.append((2, TUNED, foreign))
    if seed in names:
        chosen[OWN + 2] = names.index(seed)
        labels.append((3, CONTROL, seed))
    return _Pairs(tuple(chosen), tuple(labels))


def spread_over_items(items: np.ndarray) -> Int[np.ndarray, " n"]:
    """Orders rows so that related ones come last: the first row of each item in order, then the second ones, and so on.

    Related rows are neighbours of one another in any state, which says nothing about the model.
    """
    seen: Counter = Counter()
    places = []
    for item in items:
        places.append(seen[item])
        seen[item] += 1
    return np.argsort(places, kind="stable")


def _slots(run: Run, subset: Subset) -> int:
    """Returns how many rows all tasks' states have, a number that every mesh of the run divides."""
    return mesh_lib.round_up(subset.prompts, run.mesh.shape["fsdp"])


def _other_pass(run: Run, subset: Subset) -> tuple[PassConfig, tuple[PassShape, ...]]:
    """Returns the pass of the other pooling, and its shapes for all tasks of the panel."""
    config = dataclasses.replace(run.pass_config, pool=_POOLS[run.config.compare.pool])
    sizes = []
    for task in panel_tasks(run):
        prompts = run.test_prompts(task)
        ids: list = [prompts.ids[row] for row in spread_over_items(prompts.items)[: subset.prompts]]
        sizes.append(config.pack(run.architecture, ids).sizes)
    return config, config.shapes(sizes, run.mesh)


def _cut(
    run: Run, states: Float[Array, "M L+2 n D"], chosen: Sequence[int], subset: Subset, rows: np.ndarray
) -> Float[Array, "m K r D"]:
    """Cuts states to some models, the subset's layers and some rows, spread over the mesh as before."""
    shape = (len(chosen), len(subset.layers), len(rows), states.shape[-1])
    sharding = mesh_lib.sharding(run.mesh, shape, STATE_AXES)
    # The embedding is layer 0 of the states, so that block l is layer l.
    return _take(states, np.asarray(chosen), np.asarray(subset.layers), rows, sharding=sharding)


@functools.partial(jax.jit, static_argnames=("sharding",))
def _take(
    states: jax.Array, chosen: jax.Array, layers: jax.Array, rows: jax.Array, *, sharding: jax.sharding.Sharding
) -> jax.Array:
    # One axis after the other, the one that leaves least first.
    states = jnp.take(jnp.take(jnp.take(states, rows, axis=2), layers, axis=1), chosen, axis=0)
    return jax.lax.with_sharding_constraint(states, sharding)


def _cells(
    rows: tuple[jax.Array, np.ndarray, np.ndarray],
    compared: _Pairs,
    variants: Sequence[str],
    subset: Subset,
    pool: str,
) -> Iterator[dict[str, Any]]:
    """Yields a row per pair, layer, measure and variant; `rows` are states, which count, and their items."""
    states, valid, items = rows
    for cells in measure_panel(states, valid, _PAIRS, variants, items):
        for p, experimental, control in compared.labels:
            for k, layer in enumerate(subset.layers):
                yield {
                    "experimental": experimental,
                    "control": control,
                    "layer": str(layer),
                    "measure": cells.measure,
                    "variant": cells.variant,
                    "pool": pool,
                    "value": float(cells.value[p, k]),
                    "n": cells.n,
                    "undefined": cells.undefined[p, k],
                }


ANALYSIS = Analysis(
    name="measures",
    models=compared_models,
    settings=("measures_tasks", "measures_prompts", "measures_layers", "measures_share"),
    table_names=("measures",),
    needs_states=True,
    price=_price,
    tasks=panel_tasks,
    rows=_rows,
    tables=one_table("measures"),
)
