"""Tasks held out of the mixture: does tuning move them towards their specialists? (MOSSA, figure 7)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mossa_jax.findings.cells import Cells, cells_of
from mossa_jax.findings.curves import HEADLINE, clusters_of, differences, mean_defined
from mossa_jax.findings.units import estimate


def find_unseen(
    table: pd.DataFrame | Cells,
    layers: list[str],
    upper: list[str],
    estimator: str = HEADLINE,
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, Any]:
    """Compares tuned with pre-trained on held-out tasks, in the upper layers and in those below them.

    Args:
      table: the results table, or its cells.
      layers: all block outputs.
      upper: the layers that count as upper (the same as for the other findings).
      estimator: `debiased` or `biased`.
      seed: seed of the sign flips.
      draws: number of flips.

    Returns:
      `tasks` (one dict per task, with its mean difference in the upper and in the lower layers), `upper` and `lower`
      (each an `Estimate` over units), and `by_layer`: mean difference and number of tasks at every block output.
    """
    table = cells_of(table)
    matrix = differences(table, estimator, held_out=True, layers=layers)
    cluster_of = clusters_of(table)
    clusters = [cluster_of[task] for task in matrix.index]
    lower = [layer for layer in layers if layer not in set(upper)]
    above, below = (mean_defined(matrix[group].to_numpy()) for group in (upper, lower))
    mean, counts = mean_defined(matrix.to_numpy(), axis=0), matrix.notna().sum().to_numpy()
    return {
        "tasks": [
            {"task": task, "cluster": cluster_of[task], "upper": above[i], "lower": below[i]}
            for i, task in enumerate(matrix.index)
        ],
        "upper": estimate(above, clusters, (seed, 40), draws),
        "lower": estimate(below, clusters, (seed, 41), draws),
        "by_layer": [
            {"layer": layer, "difference": mean[i], "n_tasks": int(counts[i])} for i, layer in enumerate(layers)
        ],
    }
