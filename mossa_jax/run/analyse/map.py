"""Where the states of tasks and clusters lie: maps at five depths (the paper's figure 4), and how well they part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.files.checked import damage, read_table
from mossa_jax.files.sums import is_intact, write_summed
from mossa_jax.files.write import parquet_bytes
from mossa_jax.findings.separation import Sample, separation_rows
from mossa_jax.log import log
from mossa_jax.run.analyse.analysis import Analysis, TaskStates, all_tasks, own_models
from mossa_jax.run.context import Run
from mossa_jax.similarity.lineup import BASE, E
from mossa_jax.similarity.maps import PCA, TSNE, neighbour_map, principal_plane
from mossa_jax.similarity.sample import sample_states
from mossa_jax.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

_MODELS = {PRETRAINED: BASE, TUNED: E}
_TABLES = ("map", "separation")

# The paper's layers 1, 10, 15, 20 and 32 of 32.
_DEPTHS = (0.0, 10 / 32, 15 / 32, 20 / 32, 1.0)

# Sets this use of a task's seed apart from others.
_USE = 23


def map_layers(layers: int) -> list[str]:
    """Returns the names of the layers that are drawn: the paper's depths, or fewer if these fall together."""
    return [str(layer) for layer in sorted({max(1, round(depth * layers)) for depth in _DEPTHS})]


def _price(run: Run) -> str:
    config, arch = run.config.analyse, run.architecture
    width = min(arch.hidden, config.map_dimensions)
    size = len(_MODELS) * (arch.layers + 2) * config.map_prompts * width * 4 * len(run.suite.tasks)
    return (
        f"{config.map_prompts} prompts per task, {width} dimensions of each state of the comparison "
        f"({size / 1e6:,.0f} MB in all), laid out in one thread of the writer; no further passes"
    )


def _rows(run: Run, task: Task, states: TaskStates | None) -> list[dict[str, Any]]:
    assert states is not None
    config, prompts = run.config.analyse, states.prompts
    order = np.random.default_rng((*run.seed(task.name), _USE)).permutation(len(prompts))
    places = np.sort(order[: config.map_prompts])
    # A task with few prompts repeats the last one, so that all tasks share one program.
    padded = np.pad(places, (0, config.map_prompts - len(places)), mode="edge")
    # One basis for all tasks.
    sample = sample_states(states.kept.states, padded, len(_MODELS), config.map_dimensions, run.config.seed)
    return [
        {
            "model": model,
            "layer": layer,
            "prompt": int(prompts.rows[place]),
            "template": int(prompts.templates[place]),
            "item": int(prompts.items[place]),
            "state": sample[at, k, number],
        }
        for model, at in _MODELS.items()
        for k, layer in enumerate(states.kept.names)
        for number, place in enumerate(places)
    ]


def _tables(run: Run, parts: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    """Returns the tables; those of equal parts are read, since a layout of thousands of prompts takes minutes."""
    folder = run.folder / "results/parts/map_tables"
    places = {name: folder / f"{name}.{_digest(parts, run.config.seed)}.parquet" for name in _TABLES}
    if not all(is_intact(place) for place in places.values()):
        for what in filter(None, map(damage, places.values())):
            log.warning("%s: made anew", what)
        for name, table in make_tables(run, parts).items():
            write_summed(places[name], parquet_bytes(table))
    return {name: read_table(place) for name, place in places.items()}


def _digest(parts: pd.DataFrame, seed: int) -> str:
    sha256 = hashlib.sha256(str(seed).encode())
    sha256.update(parts.drop(columns="state").to_csv(index=False).encode())
    for state in parts["state"]:
        sha256.update(np.asarray(state, np.float32).tobytes())
    return sha256.hexdigest()[:16]


def make_tables(run: Run, parts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Computes maps and separation from the sampled states of all tasks.

    Args:
      run: gives layers and seed.
      parts: columns of `rows`, and `task`, `cluster` and `held_out`.
    """
    import pandas as pd
    from threadpoolctl import threadpool_limits

    drawn = map_layers(run.architecture.layers)
    maps: list[pd.DataFrame] = []
    separation: list[dict[str, Any]] = []
    # Sums over threads have no fixed order, and t-SNE turns a rounding into another map.
    with threadpool_limits(limits=1):
        for model in _MODELS:
            for layer in run.architecture.state_names():
                rows = parts[(parts["model"] == model) & (parts["layer"] == layer)]
                points = np.stack(list(rows["state"])).astype(np.float64)  # [n, P]
                sample = Sample(*(rows[name].to_numpy() for name in ("task", "cluster", "template", "item")))
                measures = separation_rows(points, sample, run.config.seed)
                separation += [{"model": model, "layer": layer, **row} for row in measures]
                if layer in drawn:
                    maps += _maps(rows, points, run.config.seed)
    return {"map": pd.concat(maps, ignore_index=True), "separation": pd.DataFrame(separation)}


def _maps(rows: pd.DataFrame, points: np.ndarray, seed: int) -> list[pd.DataFrame]:
    """Returns one table per method with the coordinates of the prompts of one state."""
    finite = np.isfinite(points).all(1)
    points = points[finite]
    plane, shares = principal_plane(points)
    layouts = {PCA: plane, TSNE: neighbour_map(points, seed)}
    names = rows.loc[finite, ["model", "layer", "task", "cluster", "held_out", "prompt", "template"]]
    return [
        names.assign(
            method=method,
            x=layout[:, 0],
            y=layout[:, 1],
            share_x=shares[0] if method == PCA else np.nan,
            share_y=shares[1] if method == PCA else np.nan,
        )
        for method, layout in layouts.items()
    ]


ANALYSIS = Analysis(
    name="map",
    models=own_models,
    settings=("map_prompts", "map_dimensions"),
    table_names=_TABLES,
    needs_states=True,
    price=_price,
    tasks=all_tasks,
    rows=_rows,
    tables=_tables,
)
