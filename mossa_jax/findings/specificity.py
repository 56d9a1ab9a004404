"""Two questions a reviewer asks: is E near its own control only, and does similarity go with ability?"""

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import HEADLINE, mean_defined, task_layer_matrix
from mossa_jax.findings.resampling import spearman
from mossa_jax.findings.unseen import paired_change


def find_specificity(
    table: pd.DataFrame, layers: list[str], estimator: str = HEADLINE, seed: int = 0, draws: int = 2000
) -> dict:
    """Matched minus mismatched control on the same prompts, per task of the mixture.

    Tasks that E never saw say nothing about what it learned of its own (Ding et al. 2021, arXiv 2108.01661, for the
    comparison).

    Args:
        table: The tidy results table; rows whose control is neither the task's own nor E are the mismatched ones.
        layers: Layers to average over.
        estimator: `debiased` or `biased`.
        seed: Seed of the resampling.
        draws: Number of resamples.

    Returns:
        `measured`, and per experimental model the output of `paired_change` over tasks.
    """
    other = table[
        (table["control"] != table["task"])
        & (table["control"] != "tuned")
        & (table["estimator"] == estimator)
        & (table["undefined"].fillna("") == "")
        & table["layer"].astype(str).isin(layers)
        & ~table["held_out"].astype(bool)
    ]
    result = {"measured": bool(len(other))}
    for experimental in ("pretrained", "tuned"):
        matched = task_layer_matrix(table, experimental, estimator, False, layers)
        rows = other[other["experimental"] == experimental]
        rows = rows.assign(layer=rows["layer"].astype(str))
        mismatched = rows.pivot_table(index="task", columns="layer", values="cka", aggfunc="mean")
        mismatched = mismatched.reindex(index=matched.index, columns=layers).astype(float)
        gap = mean_defined((matched - mismatched).to_numpy())
        result[experimental] = paired_change(gap, seed, draws)
    return result


def find_ability(levels: pd.DataFrame, scores: pd.DataFrame, seed: int = 0, draws: int = 2000) -> dict:
    """Task scores of base, E and controls, and whether a small CKA goes with a large gain of the specialist.

    Args:
        levels: From `clusters.task_levels`, over all tasks; the correlation has no part of E.
        scores: Columns `task, held_out, model, exact_match` (0..1).
        seed: Seed of the resampling.
        draws: Number of resamples.

    Returns:
        `means` (exact match per model, over tasks of the mixture that have it), `held_out` (the same of tasks held
        out), `n_tasks`, `tuned_minus_base`, `control_minus_base` and `tuned_minus_control` (paired over tasks of the
        mixture), `rank_correlation` between pre-trained CKA and the gain of the control over the base, over all tasks.
    """
    wide = scores.pivot_table(index="task", columns="model", values="exact_match", aggfunc="mean")
    wide = wide.reindex(columns=["base", "tuned", "control"]).astype(float)
    out = wide.index.isin(scores["task"][scores["held_out"].astype(bool)])
    seen, unseen = wide[~out], wide[out]
    gain = (wide["control"] - wide["base"]).reindex(levels.index)
    rho, p, n = spearman(levels["pretrained"].to_numpy(), gain.to_numpy(), draws, np.random.default_rng([seed, 30]))
    pairs = (("tuned", "base"), ("control", "base"), ("tuned", "control"))
    return {
        "means": {name: float(seen[name].mean()) for name in seen.columns},
        "held_out": {name: float(unseen[name].mean()) for name in unseen.columns},
        "n_tasks": len(seen),
        **{f"{a}_minus_{b}": paired_change((seen[a] - seen[b]).to_numpy(), seed, draws) for a, b in pairs},
        "rank_correlation": {"rho": rho, "p": p, "n_tasks": n},
    }
