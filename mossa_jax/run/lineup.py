"""The models that a task of a run compares, and which of them only fill a place."""

from __future__ import annotations

import hashlib
import heapq
import json
from dataclasses import dataclass
from functools import lru_cache

from mossa_jax.config import TUNED
from mossa_jax.run.context import Run
from mossa_jax.similarity.lineup import Lineup
from mossa_jax.tasks import Task
from mossa_jax.tasks.controls import seed_name, twin_name


@dataclass(frozen=True)
class Compared:
    """The models that a task compares.

    Attributes:
      names: of the models, in the order of the lineup; None is the base.
      lineup: their numbers.
      fillers: indices of models that only fill a place; their cells are not kept.
    """

    names: tuple[str | None, ...]
    lineup: Lineup
    fillers: frozenset[int]

    @property
    def kept_names(self) -> list[str | None]:
        """The models whose cells are kept."""
        return [name for at, name in enumerate(self.names) if at not in self.fillers]


def line_up(run: Run, task: Task) -> Compared:
    """Lines up the models that a task compares.

    A task with further seeds or a twin has as many places as any task of the run needs, and its own control fills those
    that it does not: so a run has one lineup for tasks with them and one for tasks without.
    """
    tuning = run.config.tuning
    extras = [*(seed_name(task.name, number) for number in range(1, tuning.control_seeds)), twin_name(task.name)]
    seeds = twins = 0
    if any(name in run.controls for name in extras):
        twins = int(any(control.is_twin for control in run.controls.values()))
        is_seeded = any(seed_name(other.name, 1) in run.controls for other in run.suite.tasks)
        seeds = tuning.control_seeds - 1 if is_seeded else 0
    places = [*extras[:seeds], *extras[-1:][:twins]]
    mismatched = draw_mismatched(run, task)
    first = [None, TUNED, task.name, *run.experimental_names[1:]]
    fillers = frozenset(len(first) + at for at, name in enumerate(places) if name not in run.controls)
    filled = [name if name in run.controls else task.name for name in places]
    lineup = Lineup(len(mismatched), seeds, twins, len(run.experimental_names) - 1)
    return Compared((*first, *filled, *mismatched), lineup, fillers)


def draw_mismatched(run: Run, task: Task) -> list[str]:
    """Draws control models of other clusters for a task's prompts, anew for each task.

    They come from tasks of the mixture if there are any, since E has not seen the others. Each task has its own draw,
    so that one odd specialist does not stand for "others" in a whole cluster.

    References:
      Thaler and Ravishankar 1998, "Using name-based mappings to increase hit rates" (highest random weight).
    """
    suite = run.suite
    others = [other.name for other in suite.tasks if other.cluster != task.cluster]
    others = [name for name in others if name not in suite.held_out] or others
    # The rank of another task in a task's draw does not depend on what further tasks there are, so a task that is added
    # or taken away changes few draws. What all ranks of a draw begin with is hashed once: there are N^2 of them.
    start = hashlib.sha256(json.dumps([run.config.seed, task.name])[:-1].encode())

    def rank(name: str) -> bytes:
        own = start.copy()
        own.update(_end(name))
        return own.digest()

    return heapq.nsmallest(run.config.compare.mismatched, others, key=rank)


@lru_cache(maxsize=1 << 14)
def _end(name: str) -> bytes:
    return f", {json.dumps(name)}]".encode()
