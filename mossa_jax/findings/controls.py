"""Controls of one kind as a matrix: the task's own specialist, another seed, a twin, or another task's."""

from __future__ import annotations

import pandas as pd

from mossa_jax.findings.cells import EXPERIMENTAL, OTHER, OWN, SEED, TWIN, Cells, cells_of
from mossa_jax.findings.curves import HEADLINE, matrix_frame

__all__ = ["EXPERIMENTAL", "OTHER", "OWN", "SEED", "TWIN", "kind_matrix"]


def kind_matrix(
    table: pd.DataFrame | Cells,
    experimental: str,
    kind: str,
    layers: list[str],
    tasks: list[str],
    estimator: str = HEADLINE,
) -> pd.DataFrame:
    """Spreads CKA out over tasks and layers for controls of one kind; several controls of a task are averaged.

    Args:
      table: the results table, or its cells.
      experimental: of the rows.
      kind: of the controls.
      layers: the columns of the result.
      tasks: the rows of the result.
      estimator: `debiased` or `biased`.

    Returns:
      [tasks, layers] float64, NaN where undefined or absent.
    """
    values = cells_of(table).matrix((experimental, kind, estimator), tasks, layers)
    return matrix_frame(values, tasks, layers)
