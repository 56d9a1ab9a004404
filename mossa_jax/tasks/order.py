"""Which rows of a split a run takes, and in which order."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from mossa_jax.config import Config
from mossa_jax.tasks.suite import Example, Task

# Sets this use of the run's seed apart from others.
_USE = 18


def draw_seed(config: Config, task: Task, split: str) -> tuple[int, ...] | None:
    """Returns the seed of a split's draw, the same on every process; None if its first rows are taken, in order."""
    if split != "test" or config.tasks.test_order == "first":
        return None
    return (config.seed, zlib.crc32(task.name.encode()), _USE)


def take_rows(task: Task, split: str, limit: int, seed: Sequence[int] | None = None) -> Iterator[Example]:
    """Yields at most `limit` rows of a split.

    A draw reads the split twice, to count it and to take its rows, and keeps only these in memory.

    Args:
      task: the task.
      split: one of its splits.
      limit: the most rows.
      seed: of the draw, in random order, so that the first k are a sample too; None takes the first rows, in order.
    """
    if seed is None:
        yield from islice(task.rows(split), limit)
        return
    count = sum(1 for _ in task.rows(split))
    # [min(limit, count)] int64, places in the split in the order of the draw.
    places = np.random.default_rng(seed).permutation(count)[:limit]
    wanted = set(places.tolist())
    rows = {place: row for place, row in enumerate(task.rows(split)) if place in wanted}
    for place in places.tolist():
        yield rows.pop(place)
