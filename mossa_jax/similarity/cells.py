"""From arrays to tidy rows: one cell per pair, layer and estimator; false discovery control over a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from mossa_jax.similarity.compare import Similarities
from mossa_jax.similarity.estimators import ESTIMATORS


def cells(similarities: Similarities, pairs: Sequence[tuple[int, int]], layers: Sequence[str]) -> list[list[dict]]:
    """For every pair a list of cells, layer by layer and estimator by estimator.

    A cell has `layer, estimator, cka, low, high, n, participation_ratio_a, participation_ratio_b, offset_a,
    offset_b, null_mean, p, undefined`; where `undefined` gives a reason, the figures it concerns are NaN.
    """
    found = []
    for index, (a, b) in enumerate(pairs):
        found.append([])
        for k, layer in enumerate(layers):
            for e, estimator in enumerate(ESTIMATORS):
                at = (index, k, e)
                found[-1].append(
                    {
                        "layer": layer,
                        "estimator": estimator,
                        "cka": similarities.value[at],
                        "low": similarities.low[at],
                        "high": similarities.high[at],
                        "n": similarities.n,
                        "participation_ratio_a": similarities.participation_ratio[a, k],
                        "participation_ratio_b": similarities.participation_ratio[b, k],
                        "offset_a": similarities.offset[a, k],
                        "offset_b": similarities.offset[b, k],
                        "null_mean": similarities.null_mean[at],
                        "p": similarities.p[at],
                        "undefined": str(similarities.undefined[at]),
                    }
                )
    return found


def with_q(table: pd.DataFrame, same: Sequence[str] = ()) -> pd.DataFrame:
    """The table with a column `q`: p after Benjamini and Hochberg's control over each estimator's matched cells.

    Args:
      table: with `control, task, layer, estimator, p`.
      same: layers that all models compute alike: their cells, 1 by construction, are no tests and get no q.
    """
    q = np.full(len(table), np.nan)
    for estimator in ESTIMATORS:
        rows = (table.estimator == estimator) & (table.control == table.task) & table.p.notna()
        rows &= ~table.layer.isin(same)
        if rows.any():
            q[rows] = false_discovery_control(table.p[rows])
    return table.assign(q=q)


def pairs_of(controls: int) -> list[tuple[int, int]]:
    """What is compared among the base (0), E (1) and so many controls (2, ...)."""
    return [(one, control) for control in range(2, 2 + controls) for one in (0, 1)] + [(0, 1)]
