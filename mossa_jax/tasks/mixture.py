"""The mixture that E is tuned on: how many rows each task contributes, and which."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from mossa_jax.config import Tasks
from mossa_jax.tasks.suite import Suite


def mixture_counts(suite: Suite, rows: Mapping[str, int], config: Tasks) -> dict[str, int]:
    """Counts the rows of each task in the mixture; held-out tasks are not in it.

    - `capped`: a task contributes all its rows. In a cluster with more than `max_per_cluster` rows, tasks contribute in
      proportion to their size, so that the cap is met exactly. This is our reading of the authors' "50k per task
      cluster" with examples-proportional mixing; their sampling script is not public.
    - `proportional`: a task's weight is min(its rows, `max_rate`), as in FLAN 2021, where `max_rate` is 3,000.
      `mixture_rows` examples are divided in proportion.
    - `equal`: every task has the same weight.

    With `mixture_rows` 0, the mixture is as large as it can be without showing a row twice. Fractions are rounded by
    largest remainders, so that totals are exact; among equal remainders the earlier task gets the row.

    Args:
      suite: tasks, clusters and held-out tasks.
      rows: training rows of each task, already under the cap per task.
      config: `mixture` and the fields named above.

    Returns:
      Task name -> rows in the mixture.

    References:
      Wei et al. 2021, "Finetuned language models are zero-shot learners", arXiv 2109.01652, section 2.4 (FLAN 2021).
    """
    names = [task.name for task in suite.tasks if task.name not in suite.held_out]
    if config.mixture == "capped":
        counts: dict[str, int] = {}
        for tasks in suite.clusters().values():
            members = [task.name for task in tasks if task.name in names]
            sizes = [rows[name] for name in members]
            counts |= dict(zip(members, share(sizes, min(sum(sizes), config.max_per_cluster)), strict=True))
        return {name: counts[name] for name in names}
    sizes = [rows[name] for name in names]
    if config.mixture == "equal":
        weights = [1] * len(names)
        total = config.mixture_rows or min(sizes) * len(names)
    else:
        weights = [min(size, config.max_rate) for size in sizes]
        total = config.mixture_rows or sum(weights)
    return dict(zip(names, share(weights, total), strict=True))


def share(weights: Sequence[int], total: int) -> list[int]:
    """Divides `total` into integers proportional to `weights` that add up exactly, by largest remainders."""
    weight_sum = sum(weights)
    if weight_sum == 0:
        return [0] * len(weights)
    shares = [weight * total // weight_sum for weight in weights]
    remainders = [weight * total % weight_sum for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: -remainders[i])
    for index in order[: total - sum(shares)]:
        shares[index] += 1
    return shares


def sample(name: str, rows: int, count: int, seed: int) -> np.ndarray:
    """Draws the rows of a task that are in the mixture, without replacement.

    If more are asked for than there are, every row is taken as often as it fits, and the remainder is drawn.

    Args:
      name: the task's name, on which the draw depends, besides the seed.
      rows: how many rows the task has.
      count: how many are drawn.
      seed: the run's seed.

    Returns:
      [count] int64 indices of rows, sorted.
    """
    repeats, remainder = divmod(count, rows)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = rng.choice(rows, remainder, replace=False) if remainder else np.arange(0)
    return np.sort(np.concatenate([np.tile(np.arange(rows), repeats), drawn]))
