"""Does similarity go with ability?"""

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED
from mossa_jax.findings.resampling import paired_change, spearman

SCORED_MODELS = ("base", "tuned", "control")
"""Values of the column `model` of the task scores."""


def find_ability(levels: pd.DataFrame, scores: pd.DataFrame, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """Averages task scores per model, and tests whether a low CKA goes with a large gain of the specialist.

    Args:
      levels: from `clusters.task_levels`, over all tasks. Held-out tasks count too, since the correlation does not
        involve E.
      scores: columns `task, held_out, model, exact_match` (0..1).
      seed: seed of the resampling.
      draws: number of resamples.

    Returns:
      `means` (exact match per model, over tasks of the mixture that have it) and `held_out` (the same over held-out
      tasks); `n_tasks`; `tuned_minus_base`, `control_minus_base` and `tuned_minus_control` (each a `PairedChange` over
      tasks of the mixture); `rank_correlation` of pre-trained CKA with the gain of the control over the base, over all
      tasks.
    """
    wide = scores.pivot_table(index="task", columns="model", values="exact_match", aggfunc="mean")
    wide = wide.reindex(columns=list(SCORED_MODELS)).astype(float)
    is_held_out = wide.index.isin(scores["task"][scores["held_out"].astype(bool)])
    seen, unseen = wide[~is_held_out], wide[is_held_out]
    gain = (wide["control"] - wide["base"]).reindex(levels.index)
    rho, p, n = spearman(levels[PRETRAINED].to_numpy(), gain.to_numpy(), draws, np.random.default_rng([seed, 30]))
    pairs = (("tuned", "base"), ("control", "base"), ("tuned", "control"))
    return {
        "means": {name: float(seen[name].mean()) for name in seen.columns},
        "held_out": {name: float(unseen[name].mean()) for name in unseen.columns},
        "n_tasks": len(seen),
        **{f"{a}_minus_{b}": paired_change((seen[a] - seen[b]).to_numpy(), seed, draws) for a, b in pairs},
        "rank_correlation": {"rho": rho, "p": p, "n_tasks": n},
    }
