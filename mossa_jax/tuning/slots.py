"""Which model is trained in which slot and when: a plan that is a pure function of everyone's steps."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Timeline:
    """When and where each of n models is trained. Steps count from the beginning of the population's training.

    Attributes:
      slots: how many models are trained at once.
      slot: [n] int64, the slot of each model.
      start: [n] int64, its first step.
      stop: [n] int64, the step after its last one.
    """

    slots: int
    slot: Int[np.ndarray, " n"]
    start: Int[np.ndarray, " n"]
    stop: Int[np.ndarray, " n"]

    @property
    def steps(self) -> int:
        """Steps until all models are done."""
        return int(self.stop.max(initial=0))

    @property
    def utilisation(self) -> float:
        """Returns the share of all slots' steps in which a model is trained, 0 to 1."""
        # Both in steps of one slot; the rest is idle time behind the models that end first.
        return float((self.stop - self.start).sum() / max(self.slots * self.steps, 1))

    def at(self, step: int, places: int = 0) -> Int[np.ndarray, " places"]:
        """Returns the model in each slot at a step.

        Args:
          step: from 0.
          places: the result's length, where it is more than the slots.

        Returns:
          [max(slots, places)] int64, -1 in an empty slot and in places after the last slot.
        """
        models = np.full(max(self.slots, places), -1)
        # At most one model per slot: each starts when its slot is free.
        running = np.flatnonzero((self.start <= step) & (step < self.stop))
        models[self.slot[running]] = running
        return models


def plan_slots(steps: Sequence[int], slots: int) -> Timeline:
    """Gives each model the slot that is free first, the longest model first; deterministic.

    The plan takes at most 4/3 - 1/(3 slots) times as many steps as the shortest possible one.

    Args:
      steps: of each model, at least 1.
      slots: how many there are.

    References:
      Graham 1969, "Bounds on multiprocessing timing anomalies" (longest processing time first).
    """
    count = len(steps)
    slot, start = np.zeros(count, np.int64), np.zeros(count, np.int64)
    # A heap: the slot that is free first, and the lowest number among equals, so that the plan is the same everywhere.
    free = [(0, index) for index in range(slots)]  # (step from which it is free, slot)
    # Longest first: a long model that starts late would leave all other slots empty at the end.
    for model in sorted(range(count), key=lambda model: (-steps[model], model)):
        start[model], slot[model] = heapq.heappop(free)
        heapq.heappush(free, (int(start[model]) + steps[model], int(slot[model])))
    return Timeline(slots, slot, start, start + np.asarray(steps, np.int64))
