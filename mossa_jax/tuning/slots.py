"""Which model is trained in which slot and when: a plan that is a pure function of everyone's steps."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timeline:
    """When each of n models is trained.

    Attributes:
      slots: how many are trained at once.
      slot: [n] int64, where.
      start: [n] int64, the first step, counted from the beginning of all.
      stop: [n] int64, the step after its last one.
    """

    slots: int
    slot: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @property
    def steps(self) -> int:
        """Steps until all are done."""
        return int(self.stop.max(initial=0))

    @property
    def utilisation(self) -> float:
        """Share of all slots' steps in which a model is trained."""
        return float((self.stop - self.start).sum() / max(self.slots * self.steps, 1))

    def at(self, step: int, places: int = 0) -> np.ndarray:
        """[max(slots, places)] int64: the model in each slot at a step; -1 in an empty one, and behind the last."""
        found = np.full(max(self.slots, places), -1)
        here = np.flatnonzero((self.start <= step) & (step < self.stop))
        found[self.slot[here]] = here
        return found


def plan_slots(steps: Sequence[int], slots: int) -> Timeline:
    """Gives each model the slot that is free first, the longest model first; deterministic.

    (Graham's rule: at most 4/3 - 1/(3 slots) times the shortest possible plan.)

    Args:
      steps: of each model, at least 1.
      slots: how many there are.
    """
    count = len(steps)
    slot, start = np.zeros(count, np.int64), np.zeros(count, np.int64)
    free = [(0, index) for index in range(slots)]
    for model in sorted(range(count), key=lambda model: (-steps[model], model)):
        start[model], slot[model] = heapq.heappop(free)
        heapq.heappush(free, (int(start[model]) + steps[model], int(slot[model])))
    return Timeline(slots, slot, start, start + np.asarray(steps, np.int64))
