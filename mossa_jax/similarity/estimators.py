"""The closed forms of linear CKA, from row sums, in float64 on the host.

Notation: `x_i`, `y_i` are centred rows, `K = X X^T`, `L = Y Y^T`, `r_i = K_ii`, `s_i = L_ii`,
`g_i = sum_{j != i} K_ij L_ij`. The diagonal is left out of `g`, so that the debiased value is a sum of terms of
its own size and loses no digits when n is much smaller than the width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Float

ESTIMATORS = ("biased", "debiased")
"""In the order of the last axis of arrays of estimates."""

# The unbiased HSIC is divided by n (n - 3), and a U-centred 3 x 3 matrix is always zero.
MIN_ROWS = 4
FLOAT32_EPS = float(np.finfo(np.float32).eps)

AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)


class UndefinedSimilarity(ValueError):
    """A similarity that has no value (0/0); the message is the reason in words."""


@dataclasses.dataclass(frozen=True)
class Products:
    """HSIC terms of one pair of states, over all rows and with each row left out.

    Attributes:
      biased: [...] float64, the unnormalised `h`.
      debiased: [...] float64, the unnormalised `u`.
      biased_loo: [..., n] float64, `h` of the n samples of n - 1 rows.
      debiased_loo: [..., n] float64, `u` of the same samples.
      noise: [...] float64, the float32 rounding level of `debiased`.
    """

    biased: Float[np.ndarray, " ..."]
    debiased: Float[np.ndarray, " ..."]
    biased_loo: Float[np.ndarray, "... n"]
    debiased_loo: Float[np.ndarray, "... n"]
    noise: Float[np.ndarray, " ..."]


def hsic_products(
    g: Float[np.ndarray, "... n"],
    r: Float[np.ndarray, "... n"],
    s: Float[np.ndarray, "... n"],
    cross: Float[np.ndarray, "... n"],
) -> Products:
    """Computes the HSIC of a pair of states in closed form, over all rows and with each row left out.

    Rows are centred on all n, so `K 1 = 0` and the unbiased form needs only row sums: over all rows
    `u = sum g - 2 r.s/(n-2) + R S/((n-1)(n-2))`, and without row i each of its three terms loses the part of that row.
    The biased form has to be centred again without row i: `C^(i) = C - n/(n-1) x_i y_i^T`, with `C = X^T Y`.

    Args:
      g: [..., n] off-diagonal row sums of `K * L`.
      r: [..., n] squared norms of the rows of X.
      s: [..., n] squared norms of the rows of Y.
      cross: [..., n] `(K s)_i + (L r)_i`.

    Returns:
      The products; needs n >= 4 (n >= 5 for a meaningful `debiased_loo`).

    References:
      Song et al. 2012, "Feature selection via dependence maximization", equation 5.
    """
    n = g.shape[-1]
    # [..., n], the diagonal K_ii L_ii; sums over the rows are [...].
    rs = r * s
    g_all, rs_all, r_all, s_all = g.sum(-1), rs.sum(-1), r.sum(-1), s.sum(-1)
    biased, debiased, noise = whole_products(g_all, rs_all, r_all * s_all, n)
    shrink = n / (n - 1)
    # |C^(i)|^2 expanded, with x_i^T C y_i = g_i + r_i s_i. [..., n]
    biased_loo = biased[..., None] - 2 * shrink * (g + rs) + shrink**2 * rs
    # The three terms of `u` for the samples without row i, with m = n - 1 rows. Off the diagonal, row j of K sums to
    # -r_j - K_ij and all of K to 2 r_i - R; `inner` is the sum over j of (r_j + K_ij)(s_j + L_ij). [..., n] each
    total = (r_all[..., None] - 2 * r) * (s_all[..., None] - 2 * s)
    inner = rs_all[..., None] - 3 * rs + cross + g
    m = n - 1
    debiased_loo = g_all[..., None] - 2 * g + total / ((m - 1) * (m - 2)) - 2 * inner / (m - 2)
    return Products(
        biased=biased,
        debiased=debiased,
        biased_loo=biased_loo,
        debiased_loo=debiased_loo,
        noise=noise,
    )


def whole_products(
    off: np.ndarray, diagonal: np.ndarray, traces: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the HSIC of all n rows: `h`, `u` and the float32 rounding level of `u`.

    Args:
      off: [...] `sum_{i != j} K_ij L_ij`.
      diagonal: [...] `r . s`.
      traces: [...] `(sum r) (sum s)`.
      n: number of rows, at least 3.

    Returns:
      `h`, `u` and the rounding level, each [...] float64.
    """
    # u is a difference of these terms, so its rounding is relative to their size, not to its own.
    inner, outer = 2 * diagonal / (n - 2), traces / ((n - 1) * (n - 2))
    return off + diagonal, off - inner + outer, 16 * FLOAT32_EPS * (np.abs(off) + inner + outer)


@dataclasses.dataclass(frozen=True)
class Items:
    """The items of the n rows that count.

    Attributes:
      slot: [n] int, the item of each row.
      sizes: [m] int, rows of each item.
    """

    slot: np.ndarray
    sizes: np.ndarray

    def sum(self, rows: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "... m"]:
        """Sums over the rows of each item."""
        order = np.argsort(self.slot, kind="stable")
        return np.add.reduceat(rows[..., order], np.cumsum(self.sizes) - self.sizes, axis=-1)

    @functools.cached_property
    def divisor_without(self) -> np.ndarray:
        """[m] float64, `c` of the samples without each item; not finite where such a sample is undefined."""
        size, count = np.unique(self.sizes, return_counts=True)
        rest = (len(self.slot) - self.sizes)[:, None]
        # [m, distinct sizes]. The item itself is not among the others.
        counts = count - (self.sizes[:, None] == size)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 + np.where(counts > 0, counts * size / (rest - 2 * size), 0).sum(1)

    @property
    def too_large(self) -> bool:
        """Whether one item has half of the rows or more."""
        return bool(2 * self.sizes.max() >= len(self.slot))

    @property
    def undefined_without(self) -> np.ndarray:
        """[m] bool, the items without which another one has half of the rows or more."""
        largest = np.sort(self.sizes)[-2:]
        other = np.where((self.sizes == largest[-1]) & (largest[0] < largest[-1]), largest[0], largest[-1])
        return 2 * other >= len(self.slot) - self.sizes


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Sums without each item, as in `items.ItemSums`, each [..., m]; `b` and `own` for both sides of a pair."""

    f: np.ndarray
    g: np.ndarray
    t: np.ndarray
    b: tuple[np.ndarray, np.ndarray]
    own: tuple[np.ndarray, np.ndarray]


def item_debiased(
    off: Float[np.ndarray, " ..."], q: tuple[Float[np.ndarray, "... n"], Float[np.ndarray, "... n"]], items: Items
) -> tuple[np.ndarray, np.ndarray]:
    """Computes `u` of all rows, and its float32 rounding level, each [...]; NaN if an item has half of the rows.

    Args:
      off: [...] sum of `K * L` over pairs of rows of different items.
      q: of both sides, [..., n] `x_i . s_g(i)`.
      items: of the rows.
    """
    n, sizes = len(items.slot), items.sizes
    z, y = items.sum(q[0]), items.sum(q[1])  # [..., m] each
    two = np.where(2 * sizes < n, 1 / np.where(2 * sizes < n, n - 2 * sizes, 1), np.nan)
    f, h = (q[0] * q[1] / (n - sizes[items.slot])).sum(-1), (z * y * two / (n - sizes)).sum(-1)
    mean = (z * two).sum(-1) * (y * two).sum(-1) / (1 + (sizes * two).sum())
    # As in `whole_products`: the rounding is relative to the size of the terms.
    terms = np.abs(off) + 2 * (np.abs(f) + np.abs(h) + np.abs(mean))
    return off - 2 * (f + h - mean), 16 * FLOAT32_EPS * terms


def item_products(
    g: Float[np.ndarray, "... n"],
    within: Float[np.ndarray, "... n"],
    q: tuple[Float[np.ndarray, "... n"], Float[np.ndarray, "... n"]],
    left_out: LeftOut,
    items: Items,
) -> Products:
    """Computes the HSIC of a pair of states whose rows belong to items, over all rows and with each item left out.

    Args:
      g: [..., n] row sums of `K * L` over the rows of other items.
      within: [..., n] row sums of `K * L` over the rows of the same item, the diagonal included.
      q: of both sides, [..., n] `x_i . s_g(i)`.
      left_out: sums without each item.
      items: of the rows.

    Returns:
      The products; the last axis of those that leave out is that of the items. The formulas are in `items`.
    """
    n, sizes = len(items.slot), items.sizes
    off, all_within = g.sum(-1), within.sum(-1)
    debiased, noise = item_debiased(off, q, items)
    # Without item h. [m] each
    rest, c = n - sizes, items.divisor_without
    g_items, w_items = items.sum(g), items.sum(within)
    added_loo = 2 * (left_out.f + left_out.g - left_out.b[0] * left_out.b[1] / c)
    kept = off[..., None] - 2 * g_items
    biased_loo = (
        kept + (all_within[..., None] - w_items) - 2 / rest * left_out.t + left_out.own[0] * left_out.own[1] / rest**2
    )
    # No sample without an item may have an item with half of its rows: its debiased product does not exist.
    missing = items.undefined_without
    return Products(
        biased=off + all_within,
        debiased=debiased,
        biased_loo=biased_loo,
        debiased_loo=np.where(missing, np.nan, kept - added_loo),
        noise=noise,
    )


def undefined_reasons(
    estimator: str, flat: tuple[np.ndarray, np.ndarray], vanishing: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Returns the reasons why an estimator has no value.

    Args:
      estimator: one of `ESTIMATORS`.
      flat: for sides a and b, [...] bool: the state has no variance.
      vanishing: for sides a and b, [...] bool: the debiased self-similarity is rounding. It is the squared norm of
        the U-centred Gram matrix, which is zero for equidistant rows.

    Returns:
      [...] the reasons in words; "" where there is a value.
    """
    # Later reasons replace earlier ones: no variance outweighs a vanishing self-similarity, and both sides outweigh
    # one.
    flaws = {"no variance in": flat}
    if estimator == "debiased":
        flaws = {"debiased self-similarity is not positive in": vanishing} | flaws
    reason = np.full(np.broadcast_shapes(flat[0].shape, flat[1].shape), "", dtype=object)
    for words, (in_a, in_b) in flaws.items():
        for side, where in (("b", in_b), ("a", in_a), ("a and b", in_a & in_b)):
            reason[np.broadcast_to(where, reason.shape)] = f"{words} {side}"
    return reason


def ratio(xy: np.ndarray, xx: np.ndarray, yy: np.ndarray) -> np.ndarray:
    """Computes `xy / sqrt(xx yy)`; NaN where a self term is not positive."""
    positive = (xx > 0) & (yy > 0)
    # Ones stand in for the products that are not positive: no warnings, and NaN in the end.
    return np.where(positive, xy / np.sqrt(np.where(positive, xx * yy, 1.0)), np.nan)


def null_mean(
    trace_a: np.ndarray, trace_b: np.ndarray, h_aa: np.ndarray, h_bb: np.ndarray, n: int | np.ndarray
) -> np.ndarray:
    """Computes the mean biased CKA over all n! pairings of the rows: `R S / (n-1)` over the norms.

    The mean of the debiased value is exactly 0.

    Args:
      trace_a: [...] `R`, the sum of the squared norms of the centred rows.
      trace_b: [...] `S`.
      h_aa: [...] `h(X, X)`.
      h_bb: [...] `h(Y, Y)`.
      n: number of rows.

    Returns:
      [...] float64; NaN where a self-product is not positive.
    """
    # Under a random pairing y_P(i) and y_P(j) are centred draws without replacement: E[L_ij] is S/n on the diagonal and
    # -S / (n (n-1)) off it, and off the diagonal K sums to -R.
    return ratio(trace_a * trace_b / (n - 1), h_aa, h_bb)


def variance_missing(trace: AnyArray, mean_square: AnyArray, n: int | AnyArray, eps: float) -> AnyArray:
    """Tells whether `tr C <= (8 eps)^2 n |mu|^2`: then the spread is rounding of the mean, and CKA would be 0/0.

    Args:
      trace: `tr C`, the sum of the squared norms of the centred rows.
      mean_square: `|mu|^2` in the same unit.
      n: number of rows.
      eps: machine epsilon of the dtype in which the states were stored.

    Returns:
      [...] bool.
    """
    # Storing rounds each entry by up to eps/2 of its size, which alone makes `tr C` up to (eps/2)^2 n |mu|^2. The 8 is
    # a margin.
    return trace <= (8 * eps) ** 2 * n * mean_square
