"""The mixture that E is tuned on: every task's rows, under a cap per cluster."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from mossa_jax.tasks.suite import Suite


def mixture_counts(suite: Suite, rows: Mapping[str, int], held_out: set[str], max_per_cluster: int) -> dict[str, int]:
    """How many rows of each task are in the mixture.

    Within a cluster that has more than `max_per_cluster` rows, tasks give in proportion to their size, rounded by
    largest remainders, so that the cap is met exactly (our reading of the authors' "50k per cluster").

    Args:
      suite: tasks and clusters.
      rows: training rows of each task, already under the cap per task.
      held_out: tasks that give nothing.
      max_per_cluster: the cap.
    """
    counts: dict[str, int] = {}
    for tasks in suite.clusters().values():
        names = [task.name for task in tasks if task.name not in held_out]
        sizes = np.asarray([rows[name] for name in names], float)
        if sizes.sum() > max_per_cluster:
            exact = sizes / sizes.sum() * max_per_cluster
            whole = np.floor(exact).astype(int)
            spare = max_per_cluster - whole.sum()
            whole[np.argsort(whole - exact, kind="stable")[:spare]] += 1
            sizes = whole
        counts |= dict(zip(names, (int(size) for size in sizes), strict=True))
    return counts


def sample(name: str, rows: int, count: int, seed: int) -> np.ndarray:
    """Which rows of a task are in the mixture: `count` of `rows` without replacement, sorted; from name and seed."""
    if count >= rows:
        return np.arange(rows)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return np.sort(rng.choice(rows, count, replace=False))
