"""What a comparison of several runs shows, on the console and on its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mossa_jax.findings.between_runs import Comparison


@dataclass(frozen=True)
class RunFacts:
    """What one run is.

    Attributes:
      name: in the comparison.
      folder: its place, that of a variant included.
      base: of the model.
      layers: number of blocks.
      tasks: task -> "mixture" or "held out", and whether its specialist is left out of the findings.
      settings: every field of the configuration by its dotted name.
      versions: package -> version, of the last command.
      findings: from its analysis.
      scores: the table `results/scores`; None if there is none.
    """

    name: str
    folder: str
    base: str
    layers: int
    tasks: Mapping[str, str]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    findings: Sequence[dict[str, Any]]
    scores: pd.DataFrame | None


@dataclass(frozen=True)
class RunsInputs:
    """Several runs beside one another.

    Attributes:
      runs: the first is the reference.
      comparison: of their tables.
      command: that made it.
    """

    runs: Sequence[RunFacts]
    comparison: Comparison
    command: str = ""
