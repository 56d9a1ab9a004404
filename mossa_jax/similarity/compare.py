"""Same-layer CKA of pairs of models, with intervals and a permutation null, from kept rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.similarity import gram, intervals, null
from mossa_jax.similarity.checks import check_pairs, check_states, mesh_of
from mossa_jax.similarity.estimators import (
    ESTIMATORS,
    MIN_ROWS,
    Products,
    hsic_products,
    null_mean,
    ratio,
    undefined_reasons,
    variance_missing,
)


@dataclasses.dataclass(frozen=True)
class Similarities:
    """CKA of P pairs of models at K layers; the last axis is in the order of `ESTIMATORS`.

    Attributes:
      value: [P, K, 2] float64, signed, never clamped; NaN exactly where `undefined` is not empty.
      low: [P, K, 2] lower end of the 95 % jackknife interval.
      high: [P, K, 2] upper end. With n = 4 the debiased jackknife does not exist: the interval is -1 to 1.
      null_mean: [P, K, 2] exact mean over all re-pairings of the rows (debiased: 0).
      p: [P, K, 2] one-sided permutation p-value; NaN where undefined, and everywhere if `permutations=0`.
      undefined: [P, K, 2] the reason in words, or "".
      participation_ratio: [M, K] `(tr S)^2 / tr S^2` of the covariance; NaN for a state without variance.
      offset: [M, K] norm of the mean row over the root mean square norm of the centred rows; inf for a constant
        state, NaN without rows or if all are zero.
      n: rows that counted.
      dropped: valid rows left out, in all models and layers at once, because one of them was not finite.
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


def compare_states(
    states: Float[Array, "M K n D"],
    valid: np.ndarray | jax.Array,
    pairs: Sequence[tuple[int, int]],
    *,
    permutations: int = 0,
    seed: int = 0,
    rows: int | None = None,
) -> Similarities:
    """Computes exact linear CKA, biased and debiased, of pairs of models at every layer.

    Everything of size n x D stays on the devices, in one compiled program per shape; row sums come back to the host
    and are combined in float64.

    Args:
      states: [M, K, n, D] float32 or bfloat16 pooled states, possibly sharded on a mesh.
      valid: [n] bool, False on padding and on prompts left out; the same on every process.
      pairs: (a, b) indices of models.
      permutations: how many random re-pairings the p-value rests on.
      seed: of the re-pairings.
      rows: only so many rows are looked at, the first ones; all by default. The work grows with their square, and each
        number of them is a program of its own.

    Raises:
      ValueError: a row behind them is valid.
      Refusal: 3 if shapes or indices do not fit; 2 for a negative number of permutations.
    """
    # On the host: the number of valid rows and the draws below are the same on every process.
    valid = np.asarray(valid)
    pairs = tuple((int(a), int(b)) for a, b in pairs)
    states = jnp.asarray(states)
    check_states(states, valid)
    check_pairs(pairs, states.shape[0])
    if permutations < 0:
        raise Refusal(BAD_CONFIG, f"permutations is {permutations}; give 0 (no p-value) or more")
    rows = len(valid) if rows is None else rows
    if valid[rows:].any():
        raise ValueError(f"rows behind the first {rows} are valid")
    valid = valid[:rows]
    combinations = gram.gram_combinations(states.shape[0], pairs)
    sums = gram.gram_sums(
        states,
        valid,
        null.draw_ranks(valid, permutations, seed),
        combinations=combinations,
        pairs=pairs,
        tile=gram.tile_size(rows),
        mesh=mesh_of(states),
    )
    # Only these sums leave the devices, about K M^2 n numbers and 2 K P R of the permutations.
    sums = jax.tree.map(np.asarray, sums)
    return _combine(sums, int(valid.sum()), combinations, pairs, float(jnp.finfo(states.dtype).eps))


def _combine(
    sums: gram.GramSums,
    valid_rows: int,
    combinations: tuple[tuple[int, int], ...],
    pairs: tuple[tuple[int, int], ...],
    eps: float,
) -> Similarities:
    """Combines the sums of the devices in float64.

    Args:
      sums: as NumPy arrays.
      valid_rows: how many rows were valid before those that are not finite were dropped.
      combinations: of `sums.g`.
      pairs: of models that are compared.
      eps: machine epsilon of the stored states.
    """
    kept = np.asarray(sums.kept)
    n = int(kept.sum())
    # [K, C, n], [K, M, n], [K, M, M, n]. From here on n is the number of rows that count.
    g, r, cross = (np.asarray(a)[..., kept].astype(np.float64) for a in (sums.g, sums.r, sums.cross))
    # [K, M] each, in the unit of the centred rows; powers of two are exact.
    trace = r.sum(-1)
    mean_square = np.asarray(sums.mean_square, np.float64) * 4.0 ** -np.asarray(sums.exponent, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.sqrt(mean_square * n / trace).T
    shape = (len(pairs), r.shape[0], 2)
    # [K, M] bool
    is_flat = variance_missing(trace, mean_square, n, eps)
    values = {name: np.full(shape, np.nan) for name in ("value", "low", "high", "null_mean", "p")}
    undefined = np.full(shape, "", dtype=object)
    participation_ratio = np.full(trace.T.shape, np.nan)
    if n < MIN_ROWS:
        undefined[:] = f"{n} finite rows; at least {MIN_ROWS} are needed"
    else:
        # `cross[k, a, b]` is K_a r_b, so the sum of both orders is the (K s)_i + (L r)_i of `hsic_products`.
        products = {
            (a, b): hsic_products(g[:, c], r[:, a], r[:, b], cross[:, a, b] + cross[:, b, a])
            for c, (a, b) in enumerate(combinations)
        }
        # (tr S)^2 / tr S^2, since |X^T X|^2 is the biased self-product. [M, K]
        for m in range(r.shape[1]):
            with np.errstate(divide="ignore", invalid="ignore"):
                participation_ratio[m] = np.where(is_flat[:, m], np.nan, trace[:, m] ** 2 / products[m, m].biased)
        permuted = np.asarray(sums.permuted)
        for i, (a, b) in enumerate(pairs):
            # A product does not depend on the order of its pair, and is stored with the smaller index first.
            trio = (products[min(a, b), max(a, b)], products[a, a], products[b, b])
            vanishing = (trio[1].debiased <= trio[1].noise, trio[2].debiased <= trio[2].noise)
            for e, name in enumerate(ESTIMATORS):
                # [K], one reason per layer
                reason = undefined_reasons(name, (is_flat[:, a], is_flat[:, b]), vanishing)
                undefined[i, :, e] = reason
                columns = _estimate(name, trio, reason == "", n, trace[:, a], trace[:, b], permuted[:, i])
                for key, column in columns.items():
                    values[key][i, :, e] = column
    return Similarities(
        **values,
        undefined=undefined,
        participation_ratio=participation_ratio,
        offset=offset,
        n=n,
        dropped=valid_rows - n,
    )


def _estimate(
    name: str,
    trio: tuple[Products, Products, Products],
    defined: np.ndarray,
    n: int,
    trace_a: np.ndarray,
    trace_b: np.ndarray,
    permuted: np.ndarray,
) -> dict[str, np.ndarray]:
    """Computes value, interval, null mean and p of one pair by one estimator, each [K]; NaN where it is not defined.

    Args:
      name: the estimator.
      trio: products of (a, b), (a, a) and (b, b).
      defined: [K] bool.
      n: rows.
      trace_a: [K].
      trace_b: [K].
      permuted: [K, 2, R] as in `gram.GramSums`, of this pair.

    References:
      Phipson and Smyth 2010, "Permutation p-values should never be zero".
    """
    xy, xx, yy = (np.where(defined, getattr(products, name), np.nan) for products in trio)  # each [K]
    value = ratio(xy, xx, yy)
    # A sample without one of 4 rows has 3, and a U-centred 3 x 3 matrix is always zero: there is nothing to resample.
    if name == "debiased" and n == MIN_ROWS:
        low, high = np.where(defined, -1.0, np.nan), np.where(defined, 1.0, np.nan)
    else:
        left_out = tuple(getattr(products, f"{name}_loo") for products in trio)  # each [K, n]
        error = intervals.jackknife_error(value, (xy, xx, yy), left_out)
        low, high = intervals.confidence_interval(value, error, n)
    h, rs = permuted[:, 0].astype(np.float64), permuted[:, 1].astype(np.float64)  # [K, R]
    if name == "debiased":
        # The sum over the re-paired rows includes their diagonal: `u = h - n/(n-2) r.Ps + R S / ((n-1)(n-2))`. Traces
        # and self-products are those of the observed pairing, since permuting rows changes neither.
        mean = np.where(defined, 0.0, np.nan)
        h = h - n / (n - 2) * rs + (trace_a * trace_b / ((n - 1) * (n - 2)))[:, None]
    else:
        mean = np.where(defined, null_mean(trace_a, trace_b, xx, yy, n), np.nan)
    # [K, R]
    draws = ratio(h, xx[:, None], yy[:, None])
    count = draws.shape[1]
    # A permutation that changes nothing must count as a tie despite rounding.
    reached = (draws >= value[:, None] - 1e-6).sum(1)
    # The observed pairing counts as one of the draws, so p is never zero.
    p = np.where(defined & (count > 0), (1 + reached) / (count + 1), np.nan)
    return {"value": value, "low": low, "high": high, "null_mean": mean, "p": p}
