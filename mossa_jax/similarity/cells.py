"""From arrays to tidy rows: one cell per pair, layer and estimator; control of false discoveries over a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mossa_jax.similarity.combine import Similarities
from mossa_jax.similarity.estimators import ESTIMATORS
from mossa_jax.similarity.intervals import jackknife_error

if TYPE_CHECKING:
    import pandas as pd


def similarity_cells(
    similarities: Similarities, pairs: Sequence[tuple[int, int]], layers: Sequence[str]
) -> list[list[dict]]:
    """Returns a list of cells for every pair, layer by layer and estimator by estimator.

    A cell has `layer, estimator, cka, low, high, n, units, error_rows, error_template, participation_ratio_a,
    participation_ratio_b, offset_a, offset_b, null_mean, p, repairing, undefined`. If `undefined` gives a reason, the
    figures that it concerns are NaN.

    Args:
      similarities: of P pairs at K layers.
      pairs: (a, b) indices of models, as the similarities were computed for.
      layers: the K layer names.
    """
    return [
        [
            _cell(similarities, (p, k, e), (a, b), layer, estimator)
            for k, layer in enumerate(layers)
            for e, estimator in enumerate(ESTIMATORS)
        ]
        for p, (a, b) in enumerate(pairs)
    ]


def _cell(
    similarities: Similarities, at: tuple[int, int, int], pair: tuple[int, int], layer: str, estimator: str
) -> dict:
    """Returns one cell; `at` = (pair, layer, estimator) indexes the arrays [P, K, 2]."""
    (a, b), k = pair, at[1]
    return {
        "layer": layer,
        "estimator": estimator,
        "cka": similarities.value[at],
        "low": similarities.low[at],
        "high": similarities.high[at],
        "n": similarities.n,
        "units": similarities.units,
        "error_rows": float(jackknife_error(similarities.replicates[at])),
        "error_template": similarities.template_error[at],
        # [M, K]: figures of one model's state, not of the pair.
        "participation_ratio_a": similarities.participation_ratio[a, k],
        "participation_ratio_b": similarities.participation_ratio[b, k],
        "offset_a": similarities.offset[a, k],
        "offset_b": similarities.offset[b, k],
        "null_mean": similarities.null_mean[at],
        "p": similarities.p[at],
        "repairing": similarities.repairing,
        "undefined": str(similarities.undefined[at]),
    }


def add_q_values(table: pd.DataFrame, untouched: Sequence[str] = ()) -> pd.DataFrame:
    """Returns the table with a column `q`: p adjusted over the matched cells of each estimator.

    Args:
      table: one row per cell, with columns `control, task, layer, estimator, p`.
      untouched: layers that all models compute alike. Their similarity is 1 by construction, which is no test, so they
        get no q.

    References:
      Benjamini and Hochberg 1995, "Controlling the false discovery rate".
    """
    from scipy.stats import false_discovery_control

    q = np.full(len(table), np.nan)
    # Each estimator is a family of tests of its own: both test the same hypotheses, with other figures.
    for estimator in ESTIMATORS:
        # Matched cells only: a task against its own control model.
        rows = (table.estimator == estimator) & (table.control == table.task) & table.p.notna()
        # Their states are equal, so their p is small without a test, and would lower the q of the other cells.
        rows &= ~table.layer.isin(untouched)
        if rows.any():
            q[rows] = false_discovery_control(table.p[rows])
    return table.assign(q=q)
