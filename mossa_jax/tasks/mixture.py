"""The mixture that E is tuned on: how many rows each task gives, and which."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from mossa_jax.config import Tasks
from mossa_jax.tasks.suite import Suite


def mixture_counts(suite: Suite, rows: Mapping[str, int], config: Tasks) -> dict[str, int]:
    """How many rows of each task are in the mixture; tasks that are held out are not in it.

    `capped`: a task gives all it has. Within a cluster that has more than `max_per_cluster` rows, tasks give in
    proportion to their size, so that the cap is met exactly. This is our reading of the authors' "50k per task
    cluster" with examples-proportional mixing; their sampling script is not public.

    `proportional`: a task counts as min(its rows, `max_rate`), as in FLAN 2021 (Wei et al., arXiv 2109.01652, which
    takes 3,000), and `mixture_rows` examples are shared in proportion. `equal`: every task counts the same. With
    `mixture_rows` 0 the examples are as many as can be had without showing a row twice.

    Fractions are rounded by largest remainders, so that totals are exact; among equal remainders the earlier task
    gets the row.

    Args:
      suite: tasks, clusters, held-out tasks.
      rows: training rows of each task, already under the cap per task.
      config: the fields named above.
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
    """`total` in whole parts proportional to `weights`, exactly, by largest remainders; integers throughout."""
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    parts = [weight * total // whole for weight in weights]
    rest = [weight * total % whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: -rest[i])
    for index in order[: total - sum(parts)]:
        parts[index] += 1
    return parts


def sample(name: str, rows: int, count: int, seed: int) -> np.ndarray:
    """Which rows of a task are in the mixture, sorted: drawn without replacement from name and seed.

    More than there are: every row as often as it fits, and the rest drawn.
    """
    whole, rest = divmod(count, rows)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = rng.choice(rows, rest, replace=False) if rest else np.arange(0)
    return np.sort(np.concatenate([np.tile(np.arange(rows), whole), drawn]))
