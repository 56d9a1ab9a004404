"""Is E near a task's own specialist, or near every specialist of the format alike?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import TUNED
from mossa_jax.findings.cells import OTHER, OWN, TWIN, Cells, cells_of
from mossa_jax.findings.controls import kind_matrix
from mossa_jax.findings.curves import EXPERIMENTALS, HEADLINE, mean_defined
from mossa_jax.findings.units import MIN_UNITS, estimate, t_interval, unit_means


def find_specificity(
    table: pd.DataFrame | Cells,
    clusters: dict[str, str],
    layers: tuple[list[str], list[str]],
    estimator: str = HEADLINE,
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, Any]:
    """Subtracts the CKA with foreign controls from that with a task's own specialist, on the same prompts.

    A *twin* was trained on permuted answers of the same task: it knows the format and the answers, and not which prompt
    goes with which. Own minus twin therefore has the format taken out. Specialists of other clusters differ in format
    too, which raises own minus other, most of all in the first layers.

    Args:
      table: the results table of the mixture's competent tasks, or its cells.
      clusters: task -> cluster.
      layers: all block outputs, and those to average over.
      estimator: `debiased` or `biased`.
      seed: seed of the sign flips.
      draws: number of flips.

    Returns:
      `measured`; `against`: "twin" if enough units have one, else "other"; `twin` and `other`: for each experimental
      model an `Estimate` over units, and for E `by_layer` (`layer, mean, low, high, n_tasks`); `tuned`: the estimate
      that the finding rests on.
    """
    result: dict[str, Any] = {}
    every, averaged = layers
    table = cells_of(table)
    present = set(table.tasks)
    tasks = [task for task in clusters if task in present]
    names = [clusters[task] for task in tasks]
    for index, (name, kind) in enumerate((("twin", TWIN), ("other", OTHER))):
        result[name] = {"by_layer": []}
        for experimental in EXPERIMENTALS:
            own, foreign = (kind_matrix(table, experimental, k, every, tasks, estimator) for k in (OWN, kind))
            gap = own - foreign
            values = mean_defined(gap[averaged].to_numpy())
            result[name][experimental] = estimate(values, names, (seed, 50, index), draws)
            if experimental == TUNED:
                result[name]["by_layer"] = _by_layer(gap, names)
    has_twins = result["twin"][TUNED]["n_units"] >= MIN_UNITS
    result["against"] = "twin" if has_twins or not result["other"][TUNED]["n_tasks"] else "other"
    result["tuned"] = result[result["against"]][TUNED]
    return result | {"measured": bool(result["tuned"]["n_tasks"])}


def _by_layer(gap: pd.DataFrame, clusters: list[str]) -> list[dict[str, Any]]:
    values = gap.to_numpy()
    means, counts = unit_means(values, clusters), np.isfinite(values).sum(0)  # [U, L] and [L]
    rows = []
    for index, layer in enumerate(gap.columns):
        low, high = t_interval(means[:, index])
        mean = mean_defined(means[None, :, index])[0]
        rows.append({"layer": layer, "mean": mean, "low": low, "high": high, "n_tasks": int(counts[index])})
    return rows
