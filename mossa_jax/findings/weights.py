"""The updates of E and of the specialists, layer by layer: how large they are and how far they coincide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import block_layers
from mossa_jax.findings.layer_means import layer_means, sound_rows, spread
from mossa_jax.findings.units import estimate

AGAINST = {"": "own", "_other": "other", "_seed": "seed"}
"""Suffix of columns -> what they compare: E with the task's own specialist, E with one of another cluster, and two
seeds of one specialist."""

OVERLAPS = ("overlap_in", "overlap_out")


def find_weights(table: pd.DataFrame, incompetent: Iterable[str], seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """Summarises the updates over the competent tasks of the mixture.

    Norms of a block's projections add up as squares; cosines and overlaps are averaged over its projections.

    Args:
      table: the table `results/weights`.
      incompetent: tasks to leave out.
      seed: of the sign flips.
      draws: of the sign flips.

    Returns:
      `layers`: the K block outputs; `relative`: for `tuned` and `control` the `LayerMeans` of the update's norm over
      that of the base's projections; `cosine`, `overlap_in`, `overlap_out`: for `own`, `other` and `seed` the
      `LayerMeans`, and for the overlaps `chance` [K]; `gain`: for those three, the `Estimate` of own less other, mean
      over layers; `n_tasks`.
    """
    rows = sound_rows(table, incompetent)
    layers = block_layers(rows)
    blocks = _by_block(rows)
    result: dict[str, Any] = {"layers": layers, "gain": {}}
    values: dict[str, np.ndarray] = {}
    clusters: list[str] = []
    for column in blocks.columns.drop(["task", "cluster", "layer"]):
        values[column], clusters = spread(blocks, column, layers)
    means = {name: layer_means(each, clusters) for name, each in values.items()}
    result["relative"] = {name: means[f"relative_{name}"] for name in ("tuned", "control")}
    for index, measure in enumerate(("cosine", *OVERLAPS)):
        result[measure] = {name: means[f"{measure}{suffix}"] for suffix, name in AGAINST.items()}
        # Specialists of other clusters say what any two updates over this base have in common.
        gap = values[measure] - values[f"{measure}_other"]
        result["gain"][measure] = estimate(_row_means(gap), clusters, (seed, 61, index), draws)
    for side in ("in", "out"):
        result[f"overlap_{side}"]["chance"] = means[f"chance_{side}"].mean
    return result | {"n_tasks": len(clusters)}


def _row_means(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    return np.where(finite.any(1), np.where(finite, values, 0).sum(1) / np.maximum(finite.sum(1), 1), np.nan)


def _by_block(rows: pd.DataFrame) -> pd.DataFrame:
    """Joins the projections of a block: one row per task and layer."""
    keys = ["task", "cluster", "layer"]
    angles = [f"{measure}{suffix}" for measure in ("cosine", *OVERLAPS) for suffix in AGAINST]
    blocks = rows.groupby(keys, sort=False)[[*angles, "chance_in", "chance_out"]].mean()
    squares = rows[keys].copy()
    for name in ("tuned", "control"):
        squares[name] = rows[f"norm_{name}"] ** 2
    # The base's norm is that of the ratio; where one update is zero, the other one tells it.
    of_base = (rows["norm_tuned"] / rows["relative_tuned"]).fillna(rows["norm_control"] / rows["relative_control"])
    squares["base"] = of_base**2
    sums = squares.groupby(keys, sort=False).sum()
    for name in ("tuned", "control"):
        blocks[f"relative_{name}"] = np.sqrt(sums[name] / sums["base"])
    return blocks.reset_index()
