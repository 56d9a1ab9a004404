"""What a person asks of one attempt at a run, beside its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Stale = Literal["refuse", "retrain", "keep"]

STALE: tuple[str, ...] = get_args(Stale)
"""What to do where the run's rows are not those that its models were tuned on: `refuse`; `retrain` the models that rest
on other rows; or `keep` E as it is although tasks came or went, and count those that came as unseen."""


@dataclass(frozen=True)
class Options:
    """What is asked of an attempt.

    Attributes:
      take_from: a run folder whose models and results are taken over where they rest on the same things; "" for none.
      stale: one of `STALE`.
    """

    take_from: str = ""
    stale: str = "refuse"
