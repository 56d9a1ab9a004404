"""Every layer of the base, of E and of a control model against every other one, and where the base turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.run.analyse.analysis import Analysis, TaskStates, one_table, own_models
from mossa_jax.run.analyse.sample import first_rows, rows_of
from mossa_jax.run.context import Run
from mossa_jax.similarity.estimators import ESTIMATORS
from mossa_jax.similarity.lineup import OWN
from mossa_jax.similarity.matrix import cka_matrix
from mossa_jax.similarity.turning import find_turning
from mossa_jax.tasks import Task
from mossa_jax.tasks.controls import chosen_tasks

if TYPE_CHECKING:
    import pandas as pd

MODELS = (PRETRAINED, TUNED, "control")
"""Columns `model_a` and `model_b`, in the order of the lineup: the base, E, the task's own control."""


def _tasks(run: Run) -> Sequence[Task]:
    names = chosen_tasks(run.suite, "config.analyse.layers_tasks", run.config.analyse.layers_tasks)
    return [task for task in run.suite.tasks if task.name in names]


def _price(run: Run) -> str:
    states = len(MODELS) * (run.architecture.layers + 2)
    most = min(run.config.analyse.layers_prompts, run.config.tasks.max_test)
    return f"one product of {states} states with one another per task, up to {most:,} prompts each; no further passes"


def _rows(run: Run, task: Task, states: TaskStates | None) -> list[dict[str, Any]]:
    assert states is not None
    kept, most = states.kept, run.config.analyse.layers_prompts
    # Rows behind the last prompt only pad the array.
    rows = rows_of(kept.rows, most)
    items = states.prompts.items[:most]
    valid = np.arange(rows) < len(items)
    # Ids of rows that pad the array mean nothing.
    matrix = cka_matrix(
        first_rows(run.mesh, kept.states, OWN + 1, rows), valid, items=np.pad(items, (0, rows - len(items)))
    )
    names, values = kept.names, {"biased": matrix.biased, "debiased": matrix.debiased}
    cells = []
    for s in range(len(MODELS) * len(names)):
        (a, layer_a) = divmod(s, len(names))
        # The matrix is symmetric, so its upper half holds every pair of states.
        for t in range(s, len(MODELS) * len(names)):
            (b, layer_b) = divmod(t, len(names))
            cells += [
                {
                    "model_a": MODELS[a],
                    "model_b": MODELS[b],
                    "layer_a": names[layer_a],
                    "layer_b": names[layer_b],
                    "estimator": estimator,
                    "cka": values[estimator][s, t],
                    "n": matrix.n,
                    "undefined": matrix.undefined[s, t, e],
                }
                for e, estimator in enumerate(ESTIMATORS)
            ]
    return cells


def layer_square(cells: pd.DataFrame, model_a: str, model_b: str, layers: Sequence[str]) -> np.ndarray:
    """Returns the matrix of two models of one task, by one estimator.

    Args:
      cells: rows of `results/layers` of that task and estimator.
      model_a, model_b: as in `MODELS`, in this order.
      layers: K names.

    Returns:
      [K, K] float64; layers of `model_a` are rows.
    """
    pair = cells[(cells["model_a"] == model_a) & (cells["model_b"] == model_b)]
    square = pair.pivot_table(index="layer_a", columns="layer_b", values="cka", dropna=False)
    values = square.reindex(index=layers, columns=layers).to_numpy(float)
    # Of a model with itself only the upper half is stored.
    return np.where(np.isnan(values), values.T, values) if model_a == model_b else values


def _turning_table(run: Run, parts: pd.DataFrame) -> pd.DataFrame:
    """Returns how the base turns and E departs, one row per task, block and estimator."""
    import pandas as pd

    # The embedding and the blocks; the final norm is no block.
    layers = run.architecture.state_names()[:-1]
    rows = []
    for (task, cluster, held_out, estimator), cells in parts.groupby(
        ["task", "cluster", "held_out", "estimator"], sort=False
    ):
        base = layer_square(cells, PRETRAINED, PRETRAINED, layers)
        diagonals = [
            np.diagonal(layer_square(cells, a, b, layers))
            for a, b in ((PRETRAINED, TUNED), (PRETRAINED, "control"), (TUNED, "control"))
        ]
        turning = find_turning(base, *diagonals)
        for block, layer in enumerate(layers[1:]):
            values = {name: float(values[block]) for name, values in vars(turning).items()}
            first = {"task": task, "cluster": cluster, "held_out": held_out}
            rows.append({**first, "layer": layer, "estimator": estimator, **values})
    return pd.DataFrame(rows)


def _tables(run: Run, parts: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    return {**one_table("layers")(run, parts), "turning": _turning_table(run, parts)}


ANALYSIS = Analysis(
    name="layers",
    models=own_models,
    settings=("layers_tasks", "layers_prompts"),
    table_names=("layers", "turning"),
    needs_states=True,
    price=_price,
    tasks=_tasks,
    rows=_rows,
    tables=_tables,
)
