"""A panel of measures and variants, fixed in advance: does a result depend on the measure that shows it?

Linear CKA weighs directions by their variance. The panel asks other measures the same question, and all of them again
on states without the directions that may decide it.

Shape letters: M models, K layers, n rows, D width, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from mossa_jax.similarity.compare import compare_states
from mossa_jax.similarity.estimators import ESTIMATORS
from mossa_jax.similarity.measures.same_layer import measure_states
from mossa_jax.similarity.measures.variants import standardised, unit_rows, without_top_components

RAW, STANDARDISED, TOP_REMOVED = "raw", "standardised", "top_removed"
VARIANTS = (RAW, STANDARDISED, TOP_REMOVED)
"""States as they are; every dimension scaled to the same spread; without the first principal component."""

CKA_DEBIASED, CKA_BIASED = "cka_debiased", "cka_biased"
_GEOMETRY = ("rbf_cka", "procrustes", "svcca", "rsa")
_NEIGHBOURS = ("mutual_knn", "cknna", "cknna_released")
PANEL = (CKA_DEBIASED, CKA_BIASED, *_GEOMETRY, *_NEIGHBOURS)
"""The measures, in the order of the report. Those of neighbours take rows of norm 1, as their paper does."""

ROWS_PER_COMPONENT = 5
"""With fewer rows per component SVCCA would be near 1 for lack of room, whatever the states."""


class PanelCells(NamedTuple):
    """One measure of one variant, for P pairs at K layers.

    Attributes:
      measure: one of `PANEL`.
      variant: one of `VARIANTS`.
      value: [P, K] float64; NaN exactly where `undefined` is not empty.
      undefined: [P, K] the reason in words, or "".
      n: rows that counted.
    """

    measure: str
    variant: str
    value: Float[np.ndarray, "P K"]
    undefined: np.ndarray
    n: int


def measure_panel(
    states: Float[Array, "M K n D"],
    valid: np.ndarray | jax.Array,
    pairs: Sequence[tuple[int, int]],
    variants: Sequence[str] = VARIANTS,
    items: np.ndarray | None = None,
) -> Iterator[PanelCells]:
    """Measures pairs of models by every measure of the panel, on each variant of their states.

    All variants have the shape of the states, so they share one program per family of measures.

    Args:
      states: [M, K, n, D] float32 pooled states, possibly sharded on a mesh.
      valid: [n] bool.
      pairs: (a, b) indices of models.
      variants: some of `VARIANTS`.
      items: [n] ids; the debiased CKA leaves out pairs of rows of one item, as in `compare_states`.

    Yields:
      The cells of each measure, variant after variant.
    """
    for variant in variants:
        transformed = _transformed(states, valid, variant)
        similarities = compare_states(transformed, valid, pairs, items=items)
        for name, estimator in ((CKA_DEBIASED, "debiased"), (CKA_BIASED, "biased")):
            e = ESTIMATORS.index(estimator)
            undefined = similarities.undefined[..., e]
            yield PanelCells(name, variant, similarities.value[..., e], undefined, similarities.n)
        for names, rows in ((_GEOMETRY, transformed), (_NEIGHBOURS, unit_rows(transformed, valid))):
            measured = measure_states(rows, valid, pairs, names, rows_per_component=ROWS_PER_COMPONENT)
            for name in names:
                yield PanelCells(name, variant, measured.value[name], measured.undefined[name], measured.n)


def _transformed(states: jax.Array, valid: np.ndarray | jax.Array, variant: str) -> jax.Array:
    if variant == STANDARDISED:
        return standardised(states, valid)
    return without_top_components(states, valid) if variant == TOP_REMOVED else states


# Measured on a CPU core: one pair of rows of one state costs as much in sorts, histograms and kernels as so many
# multiplications and additions of a matrix product, and so does one entry of a square matrix in its factorisation.
_PAIR_OPERATIONS = 6_000
_FACTOR_OPERATIONS = 60
# Passes over the whole Gram matrix: 3 of the kernels, 4 of the neighbours, 1 of the ranks and of CKA together.
_GRAM_PASSES = 8


def panel_operations(models: int, layers: int, rows: int, width: int, pairs: int, variants: int) -> float:
    """Estimates the operations of a panel; a multiplication with its addition counts two.

    Args:
      models: M.
      layers: K.
      rows: n.
      width: D.
      pairs: P.
      variants: how many variants of the states are measured.
    """
    smaller = min(rows, width)
    # Of each state for SVCCA, and for the component that is removed; of each pair for Procrustes and SVCCA.
    factorisations = (2 * models + 2 * pairs) * _FACTOR_OPERATIONS * smaller**3
    by_pairs_of_rows = models * rows**2 * (2 * _GRAM_PASSES * width + _PAIR_OPERATIONS)
    return float(variants * layers * (by_pairs_of_rows + factorisations))
