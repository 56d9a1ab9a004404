"""How far the table itself can be trusted: sample sizes, undefined cells, estimators, nulls, offsets."""

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.cells import OWN, Cells, cells_of
from mossa_jax.findings.curves import EXPERIMENTALS, HEADLINE, REPORTED_ESTIMATORS, block_layers, layer_order

FDR = 0.05
_FLAT = "no variance"
_SIDES = {
    " in a and b": " in the states of either model",
    " in a": " in the states of the experimental model",
    " in b": " in the states of the specialist",
}
_MAX_EXAMPLES = 3


def find_trust(
    table: pd.DataFrame, prompts: dict[str, int] | None = None, cells: Cells | None = None
) -> dict[str, Any]:
    """Checks all cells of the table.

    Args:
      table: the results table.
      prompts: as in `find`.
      cells: of the table, if they were read already.

    Returns:
      `cells` and `undefined`: numbers of rows, both estimators together.
      `reasons`: each reason for an undefined cell, with its count, its first cells as examples, and how many of them
      are `expected`: the embedding of the last token is the same for all prompts that end in the same way.
      `prompts`: the fewest and the most prompts of a task.
      `above_null`: share of debiased matched cells with q <= `FDR`.
      `null_mean`: largest mean of the biased null over matched cells, that is, what unrelated states over such prompts
      would show. (The debiased null has mean 0.)
      `estimator_gap`: per experimental model, biased minus debiased over block outputs: median, largest, and rank
      correlation over cells.
      `offsets`: the largest offset per layer.
    """
    cells = cells_of(table) if cells is None else cells
    has_value = table["undefined"].fillna("") == ""
    matched = table[(table["control"] == table["task"]) & has_value]
    q = matched.loc[matched["estimator"] == HEADLINE, "q"].dropna()
    counts = table["n"] if prompts is None else pd.Series(prompts)
    null = matched.loc[matched["estimator"] == "biased", "null_mean"].dropna()
    return {
        "cells": len(table),
        "undefined": int((~has_value).sum()),
        "reasons": _reasons(table[~has_value]),
        "prompts": {"smallest": counts.min(), "largest": counts.max()},
        "above_null": {"share": (q <= FDR).mean() if len(q) else None, "cells": len(q), "fdr": FDR},
        "null_mean": null.max() if len(null) else None,
        "estimator_gap": _estimator_gaps(cells, block_layers(cells)),
        "offsets": _offsets(table),
    }


def reason_in_words(reason: str) -> str:
    """Returns the reason for an undefined cell with the two sides of the comparison called by their names."""
    for side, words in _SIDES.items():
        if reason.endswith(side):
            return f"{reason.removesuffix(side)}{words}"
    return reason


def _reasons(undefined: pd.DataFrame) -> list[dict[str, Any]]:
    """Counts the reasons of undefined cells, most frequent first, each with a few examples."""
    reasons: list[dict[str, Any]] = []
    for reason, rows in undefined.groupby("undefined"):
        cells = rows.drop_duplicates(["task", "layer"]).sort_values(["task", "layer"])[["task", "layer"]]
        examples = [f"{task}, layer {layer}" for task, layer in cells.head(_MAX_EXAMPLES).itertuples(index=False)]
        expected = (rows["layer"].astype(str) == "embed") & str(reason).startswith(_FLAT)
        reasons.append({"reason": reason, "cells": len(rows), "expected": int(expected.sum()), "examples": examples})
    return sorted(reasons, key=lambda row: (-row["cells"], row["reason"]))


def _estimator_gaps(cells: Cells, layers: list[str]) -> dict[str, dict[str, float | None]]:
    """Measures biased minus debiased over block outputs where both are defined, per experimental model."""
    gaps: dict[str, dict[str, float | None]] = {}
    for experimental in EXPERIMENTALS:
        debiased, biased = (
            cells.matrix((experimental, OWN, name), cells.tasks, layers).ravel() for name in REPORTED_ESTIMATORS
        )
        keep = np.isfinite(debiased) & np.isfinite(biased)
        debiased, biased = debiased[keep], biased[keep]
        gap = biased - debiased
        varies = len(gap) > 2 and np.ptp(biased) > 0 and np.ptp(debiased) > 0
        gaps[experimental] = {
            "median": float(np.median(gap)) if gap.size else None,
            "largest": float(np.abs(gap).max()) if gap.size else None,
            "rank_correlation": float(pd.Series(biased).corr(pd.Series(debiased), "spearman")) if varies else None,
        }
    return gaps


def _offsets(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the largest offset of the mean against the spread, per layer and side."""
    sides = ["offset_a", "offset_b"]
    largest = table[sides].groupby(table["layer"].astype(str)).max()
    return [{"layer": layer} | {side: largest[side].get(layer) for side in sides} for layer in layer_order(table)]
