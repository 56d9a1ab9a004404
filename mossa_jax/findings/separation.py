"""How well the clusters of tasks, and the templates within a task, are told apart in a state.

Clusters are the units: the accuracy for a cluster is the share of its rows that are assigned to it, and each cluster
counts once. Chance is what the same rule reaches when the clusters are dealt anew to whole tasks, or the templates to
the rows of a task.

Shape letters: n rows, P dimensions, C classes, T tasks, G groups of rows, V draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mossa_jax.findings.units import p_value, t_interval, unit_means, unit_name
from mossa_jax.similarity import separation

CLUSTER, TEMPLATE = "cluster", "template"
NEIGHBOURS, PROBE = "neighbours", "probe"
ITEM, TASK = "item", "task"

LABELS = (CLUSTER, TEMPLATE)
METHODS = (NEIGHBOURS, PROBE)

CLUSTER_NEIGHBOURS = 5

TEMPLATE_NEIGHBOURS = 1
"""A sample has only a few rows of each template, so that the second neighbour may have to be of another one."""

_DRAWS = 50


@dataclass(frozen=True)
class Sample:
    """What n rows of states belong to.

    Attributes:
      tasks: [n] names.
      clusters: [n] names, one per task.
      templates: [n] the instruction template within the task; -1 if the source does not say.
      items: [n] the same within a task for prompts that belong together beside their template.
    """

    tasks: np.ndarray
    clusters: np.ndarray
    templates: Int[np.ndarray, " n"]
    items: Int[np.ndarray, " n"]

    def take(self, rows: np.ndarray) -> Sample:
        """Returns the sample of some rows, by number or by mask."""
        return Sample(self.tasks[rows], self.clusters[rows], self.templates[rows], self.items[rows])


def separation_rows(points: Float[np.ndarray, "n P"], sample: Sample, seed: int) -> list[dict[str, Any]]:
    """Measures how well clusters and templates are told apart in one state.

    Args:
      points: [n, P] states of one layer and model. Rows that are not finite are left out.
      sample: what the rows belong to.
      seed: of the draws behind `chance`.

    Returns:
      A row per label, method and what is left out beside the row itself (`item`, or `task` for clusters of several
      tasks): `label, method, left_out, value, low, high, chance, p, units`. Values are NaN where the rows do not vary
      or there are fewer than two classes; intervals need three units.
    """
    finite = np.isfinite(points).all(1)
    points, sample = np.asarray(points, np.float64)[finite], sample.take(finite)
    rows = []
    for left_out in (ITEM, TASK):
        for method, (classes, null) in _clusters(points, sample, left_out, seed).items():
            rows.append(_row(CLUSTER, method, left_out, classes, null))
    for method, (tasks, null) in _templates(points, sample, seed).items():
        rows.append(_row(TEMPLATE, method, ITEM, tasks, null))
    return rows


def _row(label: str, method: str, left_out: str, units: np.ndarray, null: np.ndarray) -> dict[str, Any]:
    """Returns one row of the table.

    Args:
      label: what is told apart.
      method: by what.
      left_out: what is left out beside the row itself.
      units: accuracy per unit.
      null: means over units under chance; one alone is an expectation and gives no p value.
    """
    units = units[np.isfinite(units)]
    low, high = t_interval(units)
    value = float(units.mean()) if units.size else float("nan")
    return {
        "label": label,
        "method": method,
        "left_out": left_out,
        "value": value,
        # An accuracy lies between 0 and 1, which the ends of a t interval need not.
        "low": float(np.clip(low, 0, 1)),
        "high": float(np.clip(high, 0, 1)),
        "chance": float(null.mean()) if units.size and null.size else float("nan"),
        "p": p_value(value, null, exact=False) if units.size and null.size > 1 else float("nan"),
        "units": int(units.size),
    }


def _clusters(points: np.ndarray, sample: Sample, left_out: str, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns, per method, the accuracy of each cluster [C], and means over clusters under chance [V]."""
    _, first, task_of = np.unique(sample.tasks, return_index=True, return_inverse=True)
    cluster_of = sample.clusters[first]  # [T]
    if left_out == TASK:
        # With its task left out, a row of a cluster of one task has no row of its cluster to be recognised by.
        clusters, sizes = np.unique(cluster_of, return_counts=True)
        rows = np.isin(sample.clusters, clusters[sizes > 1])
        points, sample, task_of = points[rows], sample.take(rows), task_of[rows]
        used, task_of = np.unique(task_of, return_inverse=True)
        cluster_of = cluster_of[used]
    clusters, class_of = np.unique(cluster_of, return_inverse=True)  # [C], [T]
    count = len(clusters)
    if count < 2 or unit_name(list(cluster_of)) == "tasks" or not _vary(points):
        return {method: (np.zeros(0), np.zeros(0)) for method in METHODS}
    rng = np.random.default_rng((seed, 61))
    labels = class_of[task_of]  # [n]
    if left_out == ITEM:
        # Rows of one task would be recognised under any labels of tasks, so chance is that of labels of rows.
        groups, dealt = _codes(sample), np.zeros((0, len(labels)), np.int64)
    else:
        groups, dealt = task_of, np.stack([rng.permutation(class_of)[task_of] for _ in range(_DRAWS)])
    predictions = _predictions(points, np.concatenate([labels[None], dealt]), groups, count, CLUSTER_NEIGHBOURS, seed)
    results = {}
    for method, (predicted, every) in predictions.items():
        recalls = separation.recall(predicted, every, count)  # [1 + V, C]
        results[method] = (recalls[0], recalls[1:].mean(1) if len(dealt) else np.array([1 / count]))
    return results


def _templates(points: np.ndarray, sample: Sample, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns, per method, the accuracy of templates in each unit, and means over units under chance [V].

    A task's accuracy is the mean over its templates; a unit's is the mean over its tasks.
    """
    values: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}  # [1 + V] per task
    clusters = []
    rng = np.random.default_rng((seed, 62))
    for task in np.unique(sample.tasks):
        rows = np.flatnonzero((sample.tasks == task) & (sample.templates >= 0))
        own = sample.take(rows)
        # A template of one item cannot be recognised once the item is left out.
        items = [len(np.unique(own.items[own.templates == template])) for template in own.templates]
        rows = rows[np.array(items, int) > 1] if len(items) else rows
        own = sample.take(rows)
        templates, labels = np.unique(own.templates, return_inverse=True)
        if len(templates) < 2 or not _vary(points[rows]):
            continue
        every = np.stack([labels, *(rng.permutation(labels) for _ in range(_DRAWS))])
        predictions = _predictions(points[rows], every, _codes(own), len(templates), TEMPLATE_NEIGHBOURS, seed)
        clusters.append(str(own.clusters[0]))
        for method, (predicted, labels_of) in predictions.items():
            values[method].append(separation.recall(predicted, labels_of, len(templates)).mean(1))
    if not clusters:
        return {method: (np.zeros(0), np.zeros(0)) for method in METHODS}
    results = {}
    for method in METHODS:
        means = unit_means(np.stack(values[method]), clusters)  # [units, 1 + V]
        results[method] = (means[:, 0], means[:, 1:].mean(0))
    return results


def _predictions(
    points: np.ndarray, labels: Int[np.ndarray, "V n"], groups: np.ndarray, classes: int, k: int, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predicts V sets of labels by each method, and returns the predictions with the labels, [V, n] both."""
    neighbours = separation.nearest(points, groups, k, seed)
    votes = np.stack([separation.vote(neighbours, each, classes) for each in labels])
    probe = separation.fit_probe(points, labels[0], groups, classes)
    return {NEIGHBOURS: (votes, labels), PROBE: (probe.predict(labels, classes), labels)}


def _codes(sample: Sample) -> np.ndarray:
    """Numbers the items of all tasks: [n] int64."""
    return np.unique(
        np.stack([np.unique(sample.tasks, return_inverse=True)[1], sample.items]), axis=1, return_inverse=True
    )[1].ravel()


def _vary(points: np.ndarray) -> bool:
    return len(points) > 1 and bool(points.std(0).max() > 1e-12 * np.abs(points).max())
