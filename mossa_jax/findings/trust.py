"""How far the table itself can be trusted: sample sizes, undefined cells, estimators, nulls, offsets."""

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import EXPERIMENTALS, block_layers, layer_order

FDR = 0.05


def find_trust(table: pd.DataFrame, prompts: dict[str, int] | None = None) -> dict:
    """Checks over all cells of the table.

    Args:
        table: The tidy results table.
        prompts: As of `find`.

    Returns:
        `cells` and `undefined` (debiased and biased cells together), `reasons` (each reason with its count
        and the first cells it names), `prompts` (the fewest and the most of a task), `above_null` (share of debiased
        matched cells with q <= 0.05), `null_mean` (largest mean of the biased null over matched cells: what unrelated
        states of such prompts would show; the debiased null's is 0), `estimator_gap`
        per experimental model (biased minus debiased: median, largest, and rank correlation over cells) and
        `offsets` (largest per layer).
    """
    bad = table[table["undefined"].fillna("") != ""]
    reasons = []
    for reason, rows in bad.groupby("undefined"):
        cells = rows.drop_duplicates(["task", "layer"]).sort_values(["task", "layer"])
        examples = [
            f"{task}, layer {layer}" for task, layer in cells[["task", "layer"]].head(3).itertuples(index=False)
        ]
        reasons.append({"reason": reason, "cells": len(rows), "examples": examples})
    matched = table[(table["control"] == table["task"]) & (table["undefined"].fillna("") == "")]
    debiased = matched[matched["estimator"] == "debiased"]
    key = ["experimental", "task", "layer"]
    wide = matched.pivot_table(index=key, columns="estimator", values="cka").reindex(columns=["debiased", "biased"])
    wide = wide.dropna().reset_index()
    gaps = {}
    for experimental in EXPERIMENTALS:
        rows = wide[(wide["experimental"] == experimental) & wide["layer"].astype(str).isin(block_layers(table))]
        gap = (rows["biased"] - rows["debiased"]).to_numpy(float)
        varied = len(rows) > 2 and rows["biased"].nunique() > 1 and rows["debiased"].nunique() > 1
        gaps[experimental] = {
            "median": float(np.median(gap)) if gap.size else None,
            "largest": float(np.abs(gap).max()) if gap.size else None,
            "rank_correlation": float(rows["biased"].corr(rows["debiased"], method="spearman")) if varied else None,
        }
    offsets = table.assign(layer=table["layer"].astype(str)).groupby("layer")[["offset_a", "offset_b"]].max()
    q = debiased["q"].dropna()
    counts = table["n"] if prompts is None else pd.Series(prompts)
    null = matched.loc[matched["estimator"] == "biased", "null_mean"].dropna()
    return {
        "cells": len(table),
        "undefined": len(bad),
        "reasons": sorted(reasons, key=lambda row: (-row["cells"], row["reason"])),
        "prompts": {"smallest": counts.min(), "largest": counts.max()},
        "above_null": {"share": (q <= FDR).mean() if len(q) else None, "cells": len(q), "fdr": FDR},
        "null_mean": null.max() if len(null) else None,
        "estimator_gap": gaps,
        "offsets": [
            {
                "layer": layer,
                "offset_a": offsets["offset_a"].get(layer),
                "offset_b": offsets["offset_b"].get(layer),
            }
            for layer in layer_order(table)
        ],
    }
