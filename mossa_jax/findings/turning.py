"""Does the base's own turning foretell where tuning departs from it? Rank correlations over layers, task by task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import HEADLINE, block_layers
from mossa_jax.findings.layer_means import layer_means, sound_rows, spread
from mossa_jax.findings.profile import carried_shares
from mossa_jax.findings.units import estimate, unit_means
from mossa_jax.similarity.turning import rank_correlation

PREDICTORS = ("novelty", "turning")
"""Of the base: 1 - CKA across a block, and 1 - mean CKA with both neighbours."""

OUTCOMES = ("departure_step", "change_step")
"""What a block adds to E's departure from the base, and to the size of d."""

CARRIED = "carried"
"""What a block's adapter carries of E's gain, by the layer profiles."""


def find_turning(
    table: pd.DataFrame,
    incompetent: Iterable[str],
    seed: int = 0,
    draws: int = 2000,
    estimator: str = HEADLINE,
    profile: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Correlates, over the layers of each task, how the base turns with where E departs from it.

    The base is one network, so that its turns are much the same for every task: the tests are over clusters of tasks,
    for this base.

    Args:
      table: the table `results/turning`.
      incompetent: tasks to leave out.
      seed: of the sign flips.
      draws: of the sign flips.
      estimator: `debiased` or `biased`.
      profile: the table `results/profile`, for what a block's adapter carries of E's gain; None if it was not made.

    Returns:
      `layers`: the K block outputs; `means`: for each predictor and outcome the `LayerMeans`, with the size of
      `change_step`; `turns_at`: the layer where the base turns most, on average; `turning`: how much; `agree`: in how
      many units it is there; `n_units`; `links`: for each predictor, outcome and kind (`plain`, or `beyond_depth` with
      depth held constant) the `Estimate` of the rank correlation, with the outcome `carried` where there is a profile;
      `n_tasks`.
    """
    rows = sound_rows(table[table["estimator"] == estimator], incompetent)
    layers = block_layers(rows)
    values: dict[str, np.ndarray] = {}
    clusters: list[str] = []
    for column in (*PREDICTORS, *OUTCOMES):
        values[column], clusters = spread(rows, column, layers)
    values["change_step"] = np.abs(values["change_step"])
    units = unit_means(values["turning"], clusters)
    means = {name: layer_means(each, clusters) for name, each in values.items()}
    at = _largest(means["turning"].mean)
    depth = np.arange(len(layers), dtype=float)
    outcomes = [*OUTCOMES]
    if profile is not None and len(profile):
        outcomes.append(CARRIED)
        tasks = rows.drop_duplicates("task").sort_values(["cluster", "task"])["task"]
        carried = carried_shares(profile, "tuned", len(layers))
        values[CARRIED] = carried.reindex(index=list(tasks)).to_numpy(float)
    links: dict[str, dict[str, dict[str, Any]]] = {}
    for i, predictor in enumerate(PREDICTORS):
        links[predictor] = {}
        for j, outcome in enumerate(outcomes):
            pairs = list(zip(values[predictor], values[outcome], strict=True))
            kinds = {"plain": None, "beyond_depth": depth}
            links[predictor][outcome] = {
                kind: estimate(
                    np.asarray([rank_correlation(x, y, third) for x, y in pairs]), clusters, (seed, 60, i, j, k), draws
                )
                for k, (kind, third) in enumerate(kinds.items())
            }
    return {
        "layers": layers,
        "means": means,
        "turns_at": None if at is None else layers[at],
        "turning": None if at is None else float(means["turning"].mean[at]),
        "agree": sum(_largest(unit) == at for unit in units),
        "n_units": len(units),
        "links": links,
        "n_tasks": len(clusters),
    }


def _largest(values: np.ndarray) -> int | None:
    return int(np.nanargmax(values)) if np.isfinite(values).any() else None
