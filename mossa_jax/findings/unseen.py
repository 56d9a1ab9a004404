"""Tasks held out of the mixture: does tuning move them towards their specialists? (MOSSA, figure 7)."""

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import HEADLINE, block_layers, differences, mean_defined
from mossa_jax.findings.resampling import interval_of_mean, sign_flip

MIN_TASKS = 5


def paired_change(values: np.ndarray, seed: int = 0, draws: int = 2000) -> dict:
    """Mean of paired differences over tasks with interval and two-sided sign-flip p value.

    Args:
        values: Float array [tasks], tuned minus pre-trained; NaN are left out.
        seed: Seed of bootstrap and sign flips.
        draws: Number of resamples.

    Returns:
        `mean`, `low`, `high`, `p`, `n_tasks`, `positive` (number of tasks that rose), `smallest_p` (the least
        p value this many tasks can give) and `reason`; p and interval are NaN with fewer than five tasks.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    n = values.size
    result = {
        "mean": float(values.mean()) if n else float("nan"),
        "n_tasks": n,
        "positive": int((values > 0).sum()),
    }
    result |= {"low": float("nan"), "high": float("nan"), "p": float("nan"), "smallest_p": 2.0 ** (1 - n)}
    if n < MIN_TASKS:
        return result | {
            "reason": f"{n} task{' is' if n == 1 else 's are'} too few for a claim; at least {MIN_TASKS} are needed"
        }
    low, high = interval_of_mean(values, draws, np.random.default_rng([seed, 20]))
    p = sign_flip(values, draws, np.random.default_rng([seed, 21]))
    return result | {"low": low, "high": high, "p": p, "reason": ""}


def find_unseen(
    table: pd.DataFrame, upper: list[str], estimator: str = HEADLINE, seed: int = 0, draws: int = 2000
) -> dict:
    """Held-out tasks, tuned minus pre-trained, in the upper layers and in those below them.

    Args:
        table: The tidy results table.
        upper: The layers counted as upper (the same as for the other findings).
        estimator: `debiased` or `biased`.
        seed: Seed of the resampling.
        draws: Number of resamples.

    Returns:
        `tasks` (a dict per task with its mean difference in both parts), `upper` and `lower` (from
        `paired_change`), and `by_layer`: mean difference and number of tasks at every block output.
    """
    layers = block_layers(table)
    matrix = differences(table, estimator, held_out=True, layers=layers)
    lower = [layer for layer in layers if layer not in set(upper)]
    above, below = (mean_defined(matrix[part].to_numpy()) for part in (upper, lower))
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
