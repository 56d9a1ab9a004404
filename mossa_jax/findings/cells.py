"""The results table as matrices of tasks and layers, read once.

A results table names six things in every row. To select rows by name takes milliseconds, and the findings ask about
sixty times, so the names become numbers once.

Shape letters: T tasks, L layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from mossa_jax.config import TUNED

OWN, SEED, TWIN, OTHER, EXPERIMENTAL = KINDS = ("own", "seed", "twin", "other", "experimental")
"""Kinds of a control: the task's own specialist, another seed of it, its twin, another task's, or E."""

Key = tuple[str, str, str]
"""Experimental model, kind of the control, estimator."""


@dataclass(frozen=True)
class Cells:
    """One column of the results table.

    Attributes:
      tasks: names, sorted by cluster, then by task.
      clusters: the cluster of each task.
      held_out: [T] whether the task was held out of the mixture.
      layers: names in network order: `embed`, `1..L`, `final_norm`.
      values: [T, L] per key, NaN where undefined or absent; several controls of one kind are averaged.
      is_present: [T] per key, whether the table has a row of the task, be it undefined.
    """

    tasks: tuple[str, ...]
    clusters: tuple[str, ...]
    held_out: Bool[np.ndarray, " T"]
    layers: tuple[str, ...]
    values: dict[Key, Float[np.ndarray, "T L"]]
    is_present: dict[Key, Bool[np.ndarray, " T"]]

    def experimentals(self) -> list[str]:
        """Returns the experimental models with at least one row, sorted."""
        return sorted({key[0] for key, present in self.is_present.items() if present.any()})

    def only(self, keep: Bool[np.ndarray, " T"]) -> Cells:
        """Returns the cells of some of the tasks."""
        names = np.flatnonzero(keep)
        return replace(
            self,
            tasks=tuple(self.tasks[i] for i in names),
            clusters=tuple(self.clusters[i] for i in names),
            held_out=self.held_out[keep],
            values={key: values[keep] for key, values in self.values.items()},
            is_present={key: present[keep] for key, present in self.is_present.items()},
        )

    def without(self, tasks: Collection[str]) -> Cells:
        """Returns the cells of all tasks but these."""
        left_out = set(tasks)
        return self.only(np.array([task not in left_out for task in self.tasks], bool))

    def present(self, key: Key, held_out: bool | None) -> list[str]:
        """Returns the tasks with a row, sorted; `held_out` as in `curves.task_layer_matrix`."""
        keep = self.is_present.get(key, np.zeros(len(self.tasks), bool))
        if held_out is not None:
            keep = keep & (self.held_out == held_out)
        return [self.tasks[i] for i in np.flatnonzero(keep)]

    def matrix(self, key: Key, tasks: Sequence[str], layers: Sequence[str]) -> Float[np.ndarray, "T L"]:
        """Returns the values of some tasks and layers, in this order; NaN where absent."""
        values = self.values.get(key)
        if values is None:
            return np.full((len(tasks), len(layers)), np.nan)
        rows, columns = _places(self.tasks, tasks), _places(self.layers, layers)
        found = values[np.ix_(rows, columns)] if values.size else np.full((len(rows), len(columns)), np.nan)
        found[rows < 0] = np.nan
        found[:, columns < 0] = np.nan
        return found


def cells_of(table: pd.DataFrame | Cells, column: str = "cka") -> Cells:
    """Reads one column of a results table; returns cells as they are.

    Args:
      table: columns `experimental, control, task, cluster, held_out, layer, estimator, undefined` and `column`.
      column: the column to read.
    """
    if isinstance(table, Cells):
        return table
    task, names = pd.factorize(table["task"])
    _, first = np.unique(task, return_index=True)
    about = table.iloc[first]
    clusters = [str(name) for name in about["cluster"]]
    order = sorted(range(len(names)), key=lambda i: (clusters[i], names[i]))
    task = np.argsort(order)[task] if len(order) else task
    layer_code, layer_names = pd.factorize(table["layer"])
    layers = ordered_layers(str(name) for name in layer_names)
    layer = np.array([layers.index(str(name)) for name in layer_names], int)[layer_code]
    control, control_names = _sorted_codes(table["control"])
    experimental, experimental_names = _sorted_codes(table["experimental"])
    estimator, estimator_names = _sorted_codes(table["estimator"])
    tasks = tuple(str(names[i]) for i in order)
    pairs, pair = np.unique(control * max(1, len(tasks)) + task, return_inverse=True)
    kind_of = [KINDS.index(kind_of_control(control_names[p // len(tasks)], tasks[p % len(tasks)])) for p in pairs]
    kind = np.array(kind_of, int)[pair]

    keys, key = np.unique((experimental * len(KINDS) + kind) * len(estimator_names) + estimator, return_inverse=True)
    shape = (len(keys), len(tasks), len(layers))
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(float, na_value=np.nan)
    is_defined = np.isfinite(values) & (table["undefined"].fillna("") == "").to_numpy(bool)
    place = (key * shape[1] + task) * shape[2] + layer
    # Sums run in the order of the controls' names, so that the order of the table's rows changes no bit.
    rows = np.argsort(control, kind="stable")
    rows = rows[is_defined[rows]]
    counts = np.bincount(place[rows], minlength=int(np.prod(shape))).reshape(shape)
    sums = np.bincount(place[rows], values[rows], minlength=int(np.prod(shape))).reshape(shape)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    present = np.zeros(shape[:2], bool)
    present[key, task] = True
    names_of = [_key(int(code), experimental_names, estimator_names) for code in keys]
    return Cells(
        tasks=tasks,
        clusters=tuple(clusters[i] for i in order),
        held_out=about["held_out"].astype(bool).to_numpy()[order] if order else np.zeros(0, bool),
        layers=tuple(layers),
        values=dict(zip(names_of, means, strict=True)),
        is_present=dict(zip(names_of, present, strict=True)),
    )


def kind_of_control(control: str, task: str) -> str:
    """Returns the kind of a control on a task's prompts, one of `KINDS`."""
    if control == task:
        return OWN
    if control == TUNED:
        return EXPERIMENTAL
    if control.startswith(f"{task}.seed"):
        return SEED
    return TWIN if control == f"{task}.twin" else OTHER


def ordered_layers(names: Iterable[str]) -> list[str]:
    """Returns layer names in network order: `embed`, `1..L`, `final_norm`."""
    names = set(names)
    head = ["embed"] if "embed" in names else []
    blocks = sorted((name for name in names if name.isdigit()), key=int)
    return [*head, *blocks, *sorted(name for name in names if not name.isdigit() and name != "embed")]


def _sorted_codes(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Numbers the names of a column in sorted order."""
    codes, names = pd.factorize(column)
    names = [str(name) for name in names]
    order = sorted(range(len(names)), key=names.__getitem__)
    return (np.argsort(order)[codes] if names else codes), [names[i] for i in order]


def _key(code: int, experimentals: list[str], estimators: list[str]) -> Key:
    rest, estimator = divmod(code, len(estimators))
    experimental, kind = divmod(rest, len(KINDS))
    return experimentals[experimental], KINDS[kind], estimators[estimator]


def _places(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Returns the index of each wanted name, -1 where absent."""
    index = {name: i for i, name in enumerate(names)}
    return np.array([index.get(name, -1) for name in wanted], int)
