"""Is E near a task's own specialist, or near every specialist alike?"""

from typing import Any

import pandas as pd

from mossa_jax.findings.curves import EXPERIMENTALS, HEADLINE, mean_defined, task_layer_matrix
from mossa_jax.findings.resampling import paired_change


def find_specificity(
    table: pd.DataFrame, layers: list[str], estimator: str = HEADLINE, seed: int = 0, draws: int = 2000
) -> dict[str, Any]:
    """Subtracts the CKA with mismatched controls from that with the matched one, on the same prompts.

    Only tasks of the mixture count: tasks that E never saw say nothing about what it learned for each task.

    Args:
      table: the results table. Rows whose control is another task's are the mismatched ones.
      layers: the layers to average over.
      estimator: `debiased` or `biased`.
      seed: seed of the resampling.
      draws: number of resamples.

    Returns:
      `measured` (whether the table has mismatched rows), and a `PairedChange` over tasks per experimental model.

    References:
      Ding et al. 2021, arXiv 2108.01661, for the comparison.
    """
    other = table[
        (table["control"] != table["task"])
        & table["control"].isin(set(table["task"]))
        & (table["estimator"] == estimator)
        & (table["undefined"].fillna("") == "")
        & table["layer"].astype(str).isin(layers)
        & ~table["held_out"].astype(bool)
    ]
    result: dict[str, Any] = {"measured": bool(len(other))}
    for experimental in EXPERIMENTALS:
        matched = task_layer_matrix(table, experimental, estimator, False, layers)
        rows = other[other["experimental"] == experimental]
        rows = rows.assign(layer=rows["layer"].astype(str))
        mismatched = rows.pivot_table(index="task", columns="layer", values="cka", aggfunc="mean")
        mismatched = mismatched.reindex(index=matched.index, columns=layers).astype(float)
        gap = mean_defined((matched - mismatched).to_numpy())
        result[experimental] = paired_change(gap, seed, draws)
    return result
