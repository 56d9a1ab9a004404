"""Where the base's representation turns along its depth, and where tuning departs from it.

Everything is read off the matrix of CKA between all layers of the base, of E and of a task's control model.

Shape letters: K layers, in order: the embedding, then L block outputs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# A rank correlation of fewer points takes a handful of values, most of them large.
_LEAST_LAYERS = 5


@dataclass(frozen=True)
class Turning:
    """How the base turns and how tuning departs, block by block; NaN where a CKA is undefined.

    Attributes:
      novelty: [L] 1 - CKA of the base's states before and after the block.
      turning: [L] 1 - mean CKA of the base's state with its neighbours, before and after it.
      departure: [L] 1 - CKA of the base's and E's state.
      departure_step: [L] what the block adds to it.
      change: [L] CKA(E, C_t) - CKA(base, C_t).
      change_step: [L] what the block adds to it.
    """

    novelty: Float[np.ndarray, " L"]
    turning: Float[np.ndarray, " L"]
    departure: Float[np.ndarray, " L"]
    departure_step: Float[np.ndarray, " L"]
    change: Float[np.ndarray, " L"]
    change_step: Float[np.ndarray, " L"]


def find_turning(
    base: Float[np.ndarray, "K K"],
    base_tuned: Float[np.ndarray, " K"],
    base_control: Float[np.ndarray, " K"],
    tuned_control: Float[np.ndarray, " K"],
) -> Turning:
    """Reads off how the base turns from block to block, and how E departs from it.

    `1 - turning` is what Liu et al. 2025 call the average CKA with the neighbouring layers; its smallest values mark
    their change-point layers. The last block has one neighbour.

    Args:
      base: CKA of every layer of the base with every other.
      base_tuned: CKA of the base and E at each layer.
      base_control, tuned_control: CKA of the base, and of E, with the task's control model at each layer.

    References:
      Liu et al. 2025, "Spectral insights into data-oblivious critical layers in large language models",
      arXiv 2506.00382, section 3.
    """
    # [L]: CKA of each block's output with the state before it, and with the one after it.
    before = np.diagonal(base, 1)
    after = np.append(before[1:], np.nan)
    with warnings.catch_warnings():
        # A state without variance has no defined neighbour: its mean is NaN, which is no reason to warn.
        warnings.simplefilter("ignore", RuntimeWarning)
        neighbours = np.nanmean([before, after], axis=0)
    departure, change = 1 - np.asarray(base_tuned), np.asarray(tuned_control) - np.asarray(base_control)
    return Turning(
        novelty=1 - before,
        turning=1 - neighbours,
        departure=departure[1:],
        departure_step=np.diff(departure),
        change=change[1:],
        change_step=np.diff(change),
    )


def rank_correlation(
    x: Float[np.ndarray, " L"], y: Float[np.ndarray, " L"], depth: Float[np.ndarray, " L"] | None = None
) -> float:
    """Computes Spearman's correlation over layers, over those where both are defined.

    Args:
      x, y: one figure per layer.
      depth: a third figure whose ranks are held constant (partial correlation). Two curves that both rise with depth
        correlate for that reason alone.

    Returns:
      -1 to 1; NaN with fewer than five layers, or six where depth takes one degree of freedom more, and where a side is
      constant.
    """
    from scipy.stats import rankdata

    keep = np.isfinite(x) & np.isfinite(y)
    if keep.sum() < (_LEAST_LAYERS if depth is None else _LEAST_LAYERS + 1):
        return float("nan")
    ranks = [rankdata(side[keep]) for side in ((x, y) if depth is None else (x, y, depth))]
    ranks = [rank - rank.mean() for rank in ranks]
    if depth is not None:
        *ranks, third = ranks
        # What is left of the ranks once depth has explained what it can.
        ranks = [rank - third * (rank @ third) / (third @ third) for rank in ranks]
    sizes = [np.sqrt(rank @ rank) for rank in ranks]
    # A side that depth explains completely leaves rounding.
    if min(sizes) < 1e-9 * keep.sum():
        return float("nan")
    return float(ranks[0] @ ranks[1] / (sizes[0] * sizes[1]))
