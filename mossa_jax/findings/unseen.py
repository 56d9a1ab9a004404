"""Tasks held out of the mixture: does tuning move them towards their specialists? (MOSSA, figure 7)."""

from typing import Any

import pandas as pd

from mossa_jax.findings.curves import HEADLINE, block_layers, differences, mean_defined
from mossa_jax.findings.resampling import paired_change


def find_unseen(
    table: pd.DataFrame, upper: list[str], estimator: str = HEADLINE, seed: int = 0, draws: int = 2000
) -> dict[str, Any]:
    """Compares tuned with pre-trained on held-out tasks, in the upper layers and in those below them.

    Args:
      table: the results table.
      upper: the layers that count as upper (the same as for the other findings).
      estimator: `debiased` or `biased`.
      seed: seed of the resampling.
      draws: number of resamples.

    Returns:
      `tasks` (one dict per task, with its mean difference in the upper and in the lower layers), `upper` and `lower`
      (each a `PairedChange`), and `by_layer`: mean difference and number of tasks at every block output.
    """
    layers = block_layers(table)
    matrix = differences(table, estimator, held_out=True, layers=layers)
    lower = [layer for layer in layers if layer not in set(upper)]
    above, below = (mean_defined(matrix[group].to_numpy()) for group in (upper, lower))
    mean = mean_defined(matrix.to_numpy(), axis=0)
    return {
        "tasks": [{"task": task, "upper": above[i], "lower": below[i]} for i, task in enumerate(matrix.index)],
        "upper": paired_change(above, seed, draws),
        "lower": paired_change(below, seed, draws),
        "by_layer": [
            {"layer": layer, "difference": mean[i], "n_tasks": int(matrix[layer].notna().sum())}
            for i, layer in enumerate(layers)
        ],
    }
