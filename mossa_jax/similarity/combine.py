"""From the sums of the devices to CKA with intervals and p-values, in float64 on the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from mossa_jax.similarity import intervals
from mossa_jax.similarity.estimators import (
    ESTIMATORS,
    MIN_ROWS,
    Items,
    LeftOut,
    Products,
    hsic_products,
    item_products,
    null_mean,
    ratio,
    undefined_reasons,
    variance_missing,
)
from mossa_jax.similarity.items import ItemRows


@dataclasses.dataclass(frozen=True)
class Similarities:
    """CKA of P pairs of models at K layers; the last axis is in the order of `ESTIMATORS`.

    Attributes:
      value: [P, K, 2] float64, signed, never clamped; NaN exactly where `undefined` is not empty.
      low: [P, K, 2] lower end of the 95 % jackknife interval.
      high: [P, K, 2] upper end. With 4 units, or where a
        sample without some item is undefined, the debiased jackknife does not exist: the interval is -1 to 1.
      null_mean: [P, K, 2] mean over all re-pairings: exact if rows are re-paired freely (debiased: 0), otherwise the
        mean of the draws, NaN without any.
      p: [P, K, 2] one-sided permutation p-value; NaN where undefined, and everywhere if `permutations=0` or
        `repairing` is "none".
      undefined: [P, K, 2] the reason in words, or "".
      participation_ratio: [M, K] `(tr S)^2 / tr S^2` of the covariance; NaN for a state without variance.
      offset: [M, K] norm of the mean row over the root mean square norm of the centred rows; inf for a constant
        state, NaN without rows or if all are zero.
      n: rows that counted.
      dropped: valid rows left out, in all models and layers at once, because one of them was not finite.
      units: independent units that the interval rests on: the items of the rows that count, or the rows.
      replicates: [P, K, 2, m] the value with each unit left out, in the order of the sorted item ids, or of the rows;
        NaN where it does not exist. m = 0 from streamed sums.
      template_error: [P, K, 2] standard error from leaving out one template at a time; NaN with fewer than 3 of them,
        or if a template is unknown.
      repairing: what the null re-pairs: "rows", "rows within templates", "items", "items within templates"; or "none"
        if fewer than 20 re-pairings exist.
    """

    value: Float[np.ndarray, "P K 2"]
    low: Float[np.ndarray, "P K 2"]
    high: Float[np.ndarray, "P K 2"]
    null_mean: Float[np.ndarray, "P K 2"]
    p: Float[np.ndarray, "P K 2"]
    undefined: np.ndarray
    participation_ratio: Float[np.ndarray, "M K"]
    offset: Float[np.ndarray, "M K"]
    n: int
    dropped: int
    units: int
    replicates: Float[np.ndarray, "P K 2 m"]
    template_error: Float[np.ndarray, "P K 2"]
    repairing: str


@dataclasses.dataclass(frozen=True)
class Sums:
    """The sums of one comparison, and what it needs to know of its rows.

    Attributes:
      sums: `gram.GramSums` of NumPy arrays.
      rows: the items of the rows that count; None if every row is an item.
      repairing: name of the re-pairings.
      valid_rows: how many rows were valid before those that are not finite were dropped.
      eps: machine epsilon of the stored states.
    """

    sums: Any
    rows: ItemRows | None
    repairing: str
    valid_rows: int
    eps: float

    @property
    def items(self) -> Items | None:
        """The items as the closed forms take them."""
        if self.rows is None:
            return None
        slot, slot_size = np.asarray(self.rows.slot), np.asarray(self.rows.slot_size)
        return Items(slot[self.sums.kept], slot_size[: int(self.rows.items)].astype(np.int64))

    def similarities(
        self, combinations: tuple[tuple[int, int], ...], pairs: tuple[tuple[int, int], ...]
    ) -> Similarities:
        """Combines the sums; the error over templates stays NaN.

        Args:
          combinations: of `sums.g`.
          pairs: of models that are compared.
        """
        sums, items = self.sums, self.items
        kept = sums.kept
        n = int(kept.sum())
        units = n if items is None else len(items.sizes)
        r = sums.r[..., kept].astype(np.float64)  # [K, M, n]
        # [K, M] each, in the unit of the centred rows; powers of two are exact.
        trace = r.sum(-1)
        mean_square = sums.mean_square.astype(np.float64) * 4.0 ** -sums.exponent.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            offset = np.sqrt(mean_square * n / trace).T
        shape = (len(pairs), r.shape[0], 2)
        # [K, M] bool
        is_flat = variance_missing(trace, mean_square, n, self.eps)
        values = {name: np.full(shape, np.nan) for name in ("value", "low", "high", "null_mean", "p")}
        values["replicates"] = np.full((*shape, units), np.nan)
        undefined = np.full(shape, "", dtype=object)
        participation_ratio = np.full(trace.T.shape, np.nan)
        if units < MIN_ROWS:
            what = "finite rows" if items is None else "items"
            undefined[:] = f"{units} {what}; at least {MIN_ROWS} are needed"
        else:
            products = self._products(combinations, r)
            # (tr S)^2 / tr S^2, since |X^T X|^2 is the biased self-product. [M, K]
            for m in range(r.shape[1]):
                with np.errstate(divide="ignore", invalid="ignore"):
                    participation_ratio[m] = np.where(is_flat[:, m], np.nan, trace[:, m] ** 2 / products[m, m].biased)
            for i, (a, b) in enumerate(pairs):
                # A product does not depend on the order of its pair, and is stored with the smaller index first.
                trio = (products[min(a, b), max(a, b)], products[a, a], products[b, b])
                vanishing = (trio[1].debiased <= trio[1].noise, trio[2].debiased <= trio[2].noise)
                for e, name in enumerate(ESTIMATORS):
                    # [K], one reason per layer
                    reason = undefined_reasons(name, (is_flat[:, a], is_flat[:, b]), vanishing)
                    if name == "debiased" and items is not None and items.too_large:
                        reason[reason == ""] = "one item has half of the rows or more"
                    undefined[i, :, e] = reason
                    columns = self._estimate(name, trio, reason == "", (trace[:, a], trace[:, b]), sums.permuted[:, i])
                    for key, column in columns.items():
                        values[key][i, :, e] = column
        return Similarities(
            **values,
            undefined=undefined,
            participation_ratio=participation_ratio,
            offset=offset,
            n=n,
            dropped=self.valid_rows - n,
            units=units,
            template_error=np.full(shape, np.nan),
            repairing=self.repairing,
        )

    def _products(
        self, combinations: tuple[tuple[int, int], ...], r: Float[np.ndarray, "K M n"]
    ) -> dict[tuple[int, int], Products]:
        kept, items = self.sums.kept, self.items
        g = self.sums.g[..., kept].astype(np.float64)  # [K, C, n]
        if items is None:
            cross = self.sums.cross[..., kept].astype(np.float64)  # [K, M, M, n]
            # `cross[k, a, b]` is K_a r_b, so the sum of both orders is the (K s)_i + (L r)_i of `hsic_products`.
            return {
                (a, b): hsic_products(g[:, c], r[:, a], r[:, b], cross[:, a, b] + cross[:, b, a])
                for c, (a, b) in enumerate(combinations)
            }
        by_item = self.sums.items
        assert by_item is not None
        q, within = (part[..., kept].astype(np.float64) for part in (by_item.q, by_item.within))
        # [K, C or M, m] each
        f, h, b_sum, t, own = (part[..., : len(items.sizes)].astype(np.float64) for part in by_item[2:])
        return {
            (a, b): item_products(
                g[:, c],
                within[:, c],
                (q[:, a], q[:, b]),
                LeftOut(f[:, c], h[:, c], t[:, c], (b_sum[:, a], b_sum[:, b]), (own[:, a], own[:, b])),
                items,
            )
            for c, (a, b) in enumerate(combinations)
        }

    def _estimate(
        self,
        name: str,
        trio: tuple[Products, Products, Products],
        defined: np.ndarray,
        traces: tuple[np.ndarray, np.ndarray],
        permuted: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Computes value, interval, replicates, null mean and p of one pair, [K] each; NaN where not defined.

        Args:
          name: the estimator.
          trio: products of (a, b), (a, a) and (b, b).
          defined: [K] bool.
          traces: of both sides, [K].
          permuted: [K, 2 or 3, R] as in `gram.GramSums`, of this pair.

        References:
          Phipson and Smyth 2010, "Permutation p-values should never be zero".
        """
        n = int(self.sums.kept.sum())
        xy, xx, yy = (np.where(defined, getattr(products, name), np.nan) for products in trio)  # each [K]
        value = ratio(xy, xx, yy)
        left_out = tuple(getattr(products, f"{name}_loo") for products in trio)  # each [K, m]
        units = left_out[0].shape[-1]
        # A sample without one of 4 rows has 3, and a U-centred 3 x 3 matrix is always zero: there is nothing to
        # resample. Nor is there if some sample without an item has no debiased product.
        if name == "debiased" and (units == MIN_ROWS or np.isnan(left_out[0]).any()):
            replicates = np.full(left_out[0].shape, np.nan)
            low, high = np.where(defined, -1.0, np.nan), np.where(defined, 1.0, np.nan)
        else:
            replicates = intervals.jackknife_values(value, (xy, xx, yy), left_out)
            low, high = intervals.confidence_interval(value, intervals.jackknife_error(replicates), units)
        parts = permuted.astype(np.float64)
        h, rs = parts[:, 0], parts[:, 1]  # [K, R]
        mean = np.where(defined, 0.0, np.nan)
        if name == "biased":
            mean = np.where(defined, null_mean(*traces, xx, yy, n), np.nan)
        elif self.items is None:
            # The sum over the re-paired rows includes their diagonal: `u = h - n/(n-2) r.Ps + R S / ((n-1)(n-2))`.
            # Traces and self-products are those of the observed pairing, since permuting rows changes neither.
            h = h - n / (n - 2) * rs + (traces[0] * traces[1] / ((n - 1) * (n - 2)))[:, None]
        else:
            # The sum includes pairs of one item. Whole items are exchanged, so their sizes stay where they are.
            h = h - parts[:, 2] - 2 * rs
        # [K, R]
        draws = ratio(h, xx[:, None], yy[:, None])
        count = draws.shape[1]
        if self.items is not None or self.repairing not in ("rows", "none"):
            mean = np.where(defined, draws.mean(1), np.nan) if count else np.full(value.shape, np.nan)
        # A permutation that changes nothing must count as a tie despite rounding.
        reached = (draws >= value[:, None] - 1e-6).sum(1)
        # The observed pairing counts as one of the draws, so p is never zero.
        p = np.where(defined & (count > 0) & (self.repairing != "none"), (1 + reached) / (count + 1), np.nan)
        return {"value": value, "low": low, "high": high, "replicates": replicates, "null_mean": mean, "p": p}
