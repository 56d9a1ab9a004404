"""Which models a task compares with one another: their places and their pairs."""

from __future__ import annotations

from dataclasses import dataclass

BASE, E, OWN = range(3)


@dataclass(frozen=True, order=True)
class Lineup:
    """The numbers of models of a task, on which the shapes of the compiled programs depend.

    The models stand in this order: the base, E, the task's own control, further seeds of E, further seeds of the own
    control, its twins, controls of other tasks.

    Attributes:
      mismatched: controls of other tasks.
      control_seeds: further seeds of the own control.
      twins: controls that learned permuted answers of the task; 0 or 1.
      experimental_seeds: further seeds of E.
    """

    mismatched: int = 1
    control_seeds: int = 0
    twins: int = 0
    experimental_seeds: int = 0

    @property
    def models(self) -> int:
        """The number of models."""
        return OWN + 1 + self.experimental_seeds + self.control_seeds + self.twins + self.mismatched

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Indices of the models that are compared; the base and E against the own control come first."""
        seeds = range(OWN + 1 + self.experimental_seeds, OWN + 1 + self.experimental_seeds + self.control_seeds)
        return (
            *((model, OWN) for model in (BASE, E, *range(OWN + 1, seeds.start))),
            *((model, control) for control in range(seeds.start, self.models) for model in (BASE, E)),
            # Two seeds of one control: the ceiling.
            *((OWN, seed) for seed in seeds),
            (BASE, E),
        )
