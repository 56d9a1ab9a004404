"""What of a run is compared with other runs, and its cells with the errors that they carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.curves import EXPERIMENTALS, block_layers

CHANGE = "change"
QUANTITIES = (CHANGE, PRETRAINED, TUNED)
"""What is compared, for each task's own specialist: the change d_t(l), and CKA with the base and with E."""


@dataclass(frozen=True)
class RunTables:
    """What of a run is compared.

    Attributes:
      name: of the run, unlike those of the others.
      table: the table `results/cka`.
      change: the table `results/change`; None if there is none.
      analysis: of the run, from `find`.
      settings: fields of its configuration, by their dotted names.
      prompts: task -> what is equal for two runs with the same test prompts.
    """

    name: str
    table: pd.DataFrame
    change: pd.DataFrame | None
    analysis: Mapping[str, Any]
    settings: Mapping[str, Any]
    prompts: Mapping[str, str]

    @property
    def blocks(self) -> list[str]:
        """Names of the block outputs, in network order."""
        return block_layers(self.table)

    @property
    def incompetent(self) -> set[str]:
        """Tasks whose specialist does not use its prompts."""
        return set(self.analysis["competence"]["incompetent"])

    @property
    def held_out(self) -> set[str]:
        """Tasks that E never saw."""
        return set(self.table.loc[self.table["held_out"].astype(bool), "task"])


def is_seed(table: pd.DataFrame) -> pd.Series:
    """Returns which rows compare with a further seed of a task's own specialist."""
    first = table["control"].str.replace(r"\.seed\d+$", "", regex=True)
    return (first == table["task"]) & (table["control"] != table["task"])


def seed_freedom(table: pd.DataFrame) -> pd.DataFrame:
    """Counts the degrees of freedom of the pooled variance between seeds, per `quantity, layer, estimator`."""
    keys = ["quantity", "layer", "estimator"]
    rows = table[is_seed(table) & table["experimental"].isin(EXPERIMENTALS) & table["cka"].notna()]
    # A change has a seed where E has one.
    change = rows[rows["experimental"] == TUNED].assign(quantity=CHANGE)
    rows = pd.concat([rows.assign(quantity=rows["experimental"]), change])
    return rows.groupby(keys, sort=False).size().rename("seed_freedom").reset_index()


def run_cells(run: RunTables) -> pd.DataFrame:
    """Returns a run's cells for each task's own specialist, with what their errors are made of.

    Returns:
      Columns `task, cluster, held_out, quantity, layer, estimator, value, error_rows, units, error_seeds,
      seed_freedom`; errors are NaN where they were not measured.
    """
    table = run.table
    own = table[(table["control"] == table["task"]) & table["experimental"].isin(EXPERIMENTALS)]
    own = own.reindex(columns=[*own.columns, *({"error_rows", "error_seeds", "units"} - set(own.columns))])
    place = ["task", "cluster", "held_out", "layer", "estimator"]
    columns = [*place, "quantity", "value", "error_rows", "units", "error_seeds"]
    cells = own.assign(quantity=own["experimental"], value=own["cka"])[columns]
    after = cells[cells["quantity"] == TUNED]
    if run.change is not None:
        change = run.change.merge(after[[*place, "units"]], on=place).assign(quantity=CHANGE)
        change = change.assign(value=change["change"])
    else:
        before = cells.loc[cells["quantity"] == PRETRAINED, [*place, "value"]]
        change = after.merge(before, on=place, suffixes=("", "_before")).assign(quantity=CHANGE)
        change = change.assign(value=change["value"] - change["value_before"], error_rows=np.nan, error_seeds=np.nan)
    cells = pd.concat([cells, change.reindex(columns=columns)], ignore_index=True)
    cells = cells.astype({"layer": str}).merge(seed_freedom(table), how="left", on=["quantity", "layer", "estimator"])
    return cells.astype({"value": float, "error_rows": float, "units": float, "error_seeds": float})
