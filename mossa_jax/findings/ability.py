"""Does similarity go with ability, at equal ability of the specialist?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mossa_jax.config import PRETRAINED
from mossa_jax.findings.competence import BASE, CONTROL, EXACT_MATCH, INFORMATION, scores_of
from mossa_jax.findings.units import MIN_UNITS, estimate, p_value, too_few, unit_means, unit_name

SCORED_MODELS = ("base", "tuned", "control")
"""Values of the column `model` of the task scores that the averages show."""

# A partial correlation given one variable needs units beyond the three that fit it exactly.
_MIN_UNITS = MIN_UNITS + 1


def find_ability(
    levels: pd.DataFrame, scores: pd.DataFrame, competent: list[str], seed: int = 0, draws: int = 2000
) -> dict[str, Any]:
    """Averages task scores per model, and relates the base's similarity to what the specialist gains over it.

    A specialist that learned nothing is near the base and gains nothing, which alone makes the two go together. So only
    competent tasks count, and the correlation is partial: at equal score of the specialist.

    Args:
      levels: from `clusters.task_levels`, over all competent tasks. Held-out tasks count too, since E is not involved.
      scores: the task scores.
      competent: tasks of the mixture that carry findings.
      seed: seed of the resampling.
      draws: number of permutations and flips.

    Returns:
      `metrics`: per metric the mean of each model over competent tasks of the mixture; `n_tasks`; `metric`: that of the
      link; `tuned_minus_base`, `control_minus_base`, `tuned_minus_control`: an `Estimate` over units each; `link`: the
      partial rank correlation (`partial_spearman`).
    """
    scored = set(scores["task"])
    seen = [task for task in competent if task in scored]
    metrics = {
        metric: {model: float(scores_of(scores, metric, model).reindex(seen).mean()) for model in SCORED_MODELS}
        for metric in scores["metric"].unique()
    }
    metric = INFORMATION if INFORMATION in metrics else EXACT_MATCH
    values = {model: scores_of(scores, metric, model) for model in SCORED_MODELS}
    cluster_of = scores.drop_duplicates("task").set_index("task")["cluster"]
    differences = {}
    for number, (a, b) in enumerate((("tuned", "base"), ("control", "base"), ("tuned", "control"))):
        gap = (values[a].reindex(seen) - values[b].reindex(seen)).to_numpy()
        names = [str(cluster_of[task]) for task in seen]
        differences[f"{a}_minus_{b}"] = estimate(gap, names, (seed, 60, number), draws)
    gain = (values[CONTROL] - values[BASE]).reindex(levels.index).to_numpy()
    given = values[CONTROL].reindex(levels.index).to_numpy()
    similarity = levels[PRETRAINED].to_numpy()
    link = partial_spearman(
        np.stack([similarity, gain, given]), list(levels["cluster"]), draws, np.random.default_rng([seed, 30])
    )
    return {"metrics": metrics, "metric": metric, "n_tasks": len(seen), **differences, "link": link}


def partial_spearman(
    variables: Float[np.ndarray, "3 T"], clusters: list[str], draws: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Computes a partial rank correlation over units, with a two-sided permutation p value.

    Units are averaged before they are ranked. Ranks of the first two variables are freed of the third by least squares;
    the residuals of one are permuted.

    Args:
      variables: two variables and the one that is held equal, per task; tasks with an undefined one are left out.
      clusters: the cluster of each task.
      draws: number of permutations.
      rng: source of randomness.

    Returns:
      `rho`, `p`, `n_units`, `n_tasks`, `unit`, `least_p` and `reason`; rho and p are NaN with too few units or if a
      variable does not vary.

    References:
      Freedman and Lane 1983, "A nonstochastic interpretation of reported significance levels", J. Business and
      Economic Statistics 1.
    """
    from scipy.stats import rankdata

    keep = np.isfinite(variables).all(0)
    names = [name for name, kept in zip(clusters, keep, strict=True) if kept]
    units = unit_means(variables[:, keep].T, names).T if names else np.zeros((3, 0))  # [3, U]
    n = units.shape[1]
    result: dict[str, Any] = {
        "rho": float("nan"),
        "p": float("nan"),
        "n_units": n,
        "n_tasks": len(names),
        "unit": unit_name(names) if names else "clusters",
        "least_p": 1 / (draws + 1),
    }
    if n < _MIN_UNITS:
        reason = too_few(n, result["unit"]) or f"{n} {result['unit']} are too few; at least {_MIN_UNITS} are needed"
        return result | {"reason": reason}
    x, y, z = (rankdata(row) - (n + 1) / 2 for row in units)
    if not z.any():
        z = np.zeros(n)
    x, y = (side - z * (side @ z) / max(z @ z, 1e-300) for side in (x, y))
    scale = np.sqrt((x @ x) * (y @ y))
    if scale < 1e-9:
        return result | {"reason": "a variable does not vary over units"}
    null = np.abs(rng.permuted(np.tile(y, (draws, 1)), axis=1) @ x) / scale
    rho = float(x @ y / scale)
    return result | {"rho": rho, "p": p_value(abs(rho), null, exact=False), "reason": ""}
