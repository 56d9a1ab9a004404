"""Which control a row of the results table has: the task's own, another seed, a twin, or another task's."""

from __future__ import annotations

import pandas as pd

from mossa_jax.config import TUNED
from mossa_jax.findings.curves import HEADLINE

OWN, SEED, TWIN, OTHER, EXPERIMENTAL = "own", "seed", "twin", "other", "experimental"


def kinds(table: pd.DataFrame) -> pd.Series:
    """Returns the kind of each row's control, one of the names above."""
    return pd.Series(
        [_kind(str(control), str(task)) for control, task in zip(table["control"], table["task"], strict=True)],
        index=table.index,
        dtype=object,
    )


def _kind(control: str, task: str) -> str:
    if control == task:
        return OWN
    if control == TUNED:
        return EXPERIMENTAL
    if control.startswith(f"{task}.seed"):
        return SEED
    return TWIN if control == f"{task}.twin" else OTHER


def kind_matrix(
    table: pd.DataFrame, experimental: str, kind: str, layers: list[str], tasks: list[str], estimator: str = HEADLINE
) -> pd.DataFrame:
    """Spreads CKA out over tasks and layers for controls of one kind; several controls of a task are averaged.

    Args:
      table: the results table with a column `kind`.
      experimental: of the rows.
      kind: of the controls.
      layers: the columns of the result.
      tasks: the rows of the result.
      estimator: `debiased` or `biased`.

    Returns:
      [tasks, layers] float64, NaN where undefined or absent.
    """
    rows = table[
        (table["kind"] == kind)
        & (table["experimental"] == experimental)
        & (table["estimator"] == estimator)
        & (table["undefined"].fillna("") == "")
    ]
    rows = rows.assign(layer=rows["layer"].astype(str), cka=rows["cka"].astype(float))
    matrix = rows.pivot_table(index="task", columns="layer", values="cka", aggfunc="mean")
    return matrix.reindex(index=tasks, columns=layers).astype(float)
