"""Is E just the mean of its specialists, and where not?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.competence import BASE, CONTROL, INFORMATION, scores_of
from mossa_jax.findings.curves import HEADLINE, block_layers, layer_order, mean_defined
from mossa_jax.findings.layer_means import layer_means, sound_rows, spread
from mossa_jax.findings.units import estimate

CURVES = {"pretrained": "pretrained", "merged": "cka", "tuned": "tuned"}
"""Model -> column of its CKA with a task's own specialist, over the same prompts."""

UPDATES = ("update_cosine_tuned", "update_cosine_control", "update_size_tuned")
"""Columns on the mean's update: its cosine with that of E and of the specialist, and its size over E's."""

COLUMNS = (*CURVES.values(), "cka_tuned", "difference", *UPDATES)


def find_merged(
    table: pd.DataFrame,
    merged_scores: pd.DataFrame | None,
    scores: pd.DataFrame,
    incompetent: Iterable[str],
    seed: int = 0,
    draws: int = 2000,
    estimator: str = HEADLINE,
) -> dict[str, Any]:
    """Compares the mean of the specialists with E, over the competent tasks of the mixture.

    Args:
      table: the table `results/merged`.
      merged_scores: the table `results/merged_scores`; None or empty if nothing was scored.
      scores: the task scores.
      incompetent: tasks to leave out.
      seed: of the sign flips.
      draws: of the sign flips.
      estimator: `debiased` or `biased`.

    Returns:
      `layers`: all K layer names; `means`: for each of `COLUMNS` the `LayerMeans`; `half`: names of the upper half of
      the blocks; `upper`: the `Estimate` of each column there; `apart_from`: the first block from which on the interval
      of E less the mean stays above zero, None if there is none; `information`: per task `task, cluster, base, merged,
      tuned, control`; `scored`: the `Estimate` of each model's information and of `tuned` less `merged`; `n_tasks`.
    """
    incompetent = set(incompetent)
    rows = sound_rows(table[table["estimator"] == estimator], incompetent)
    layers, blocks = layer_order(rows), block_layers(rows)
    half = blocks[len(blocks) // 2 :]
    columns = [layers.index(layer) for layer in half]
    means, upper = {}, {}
    clusters: list[str] = []
    for index, column in enumerate(COLUMNS):
        values, clusters = spread(rows, column, layers)
        means[column] = layer_means(values, clusters)
        upper[column] = estimate(mean_defined(values[:, columns]), clusters, (seed, 62, index), draws)
    information = _information(merged_scores, scores, incompetent)
    of_clusters = list(information["cluster"])
    scored = {
        name: estimate(information[name].to_numpy(float), of_clusters, (seed, 63, index), draws)
        for index, name in enumerate((*_MODELS, "difference"))
    }
    return {
        "layers": layers,
        "means": means,
        "half": half,
        "upper": upper,
        "apart_from": _apart_from(means["difference"].low[[layers.index(layer) for layer in blocks]], blocks),
        "information": information,
        "scored": scored,
        "n_tasks": len(clusters),
    }


_MODELS = (BASE, "merged", "tuned", CONTROL)


def _information(merged_scores: pd.DataFrame | None, scores: pd.DataFrame, incompetent: set[str]) -> pd.DataFrame:
    columns = ["task", "cluster", *_MODELS, "difference"]
    if merged_scores is None or not len(merged_scores) or not len(scores):
        return pd.DataFrame(columns=columns)
    rows = sound_rows(merged_scores[merged_scores["metric"] == INFORMATION], incompetent)
    result = rows[["task", "cluster"]].sort_values(["cluster", "task"]).reset_index(drop=True)
    of_merged = scores_of(rows, INFORMATION, "merged")
    for name in _MODELS:
        values = of_merged if name == "merged" else scores_of(scores, INFORMATION, name)
        result[name] = result["task"].map(values).astype(float)
    return result.assign(difference=result["tuned"] - result["merged"])


def _apart_from(low: np.ndarray, blocks: list[str]) -> str | None:
    """Returns the first block from which on all lower ends are above zero."""
    below = np.flatnonzero(~(low > 0))
    first = int(below[-1]) + 1 if below.size else 0
    return blocks[first] if first < len(blocks) else None
