"""From streamed moments to values: CKA of every pair at every layer, combined in float64 on the host.

The rounding error of each value is estimated; above `TOLERANCE` the value is undefined. That happens if the shift lies
far from the mean or, for the debiased value, with far fewer rows than columns. Kept rows give a value there.

Shape letters: K layers, M models, C crossed pairs, P pairs, D' width rounded up to whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from mossa_jax.log import log
from mossa_jax.similarity.combine import Similarities
from mossa_jax.similarity.estimators import (
    ESTIMATORS,
    FLOAT32_EPS,
    MIN_ROWS,
    null_mean,
    ratio,
    undefined_reasons,
    variance_missing,
)
from mossa_jax.similarity.layerwise import replicate
from mossa_jax.similarity.streamed.moments import (
    COUNT_BITS,
    Moments,
    MomentSums,
    blocks,
    crossed_pairs,
    crossed_side,
)

# The largest estimated error of a value that is reported.
TOLERANCE = 1e-5

# Rounding level of a term relative to its size. All errors of values that were measured (n 4 to 2000, D 12 to 4096,
# shifts up to 30 spreads off, isotropic to low-rank) lay below 0.55 of the level made from it, most below 0.3.
ROUNDING = FLOAT32_EPS / 2


class _Condensed(NamedTuple):
    """Streams without their D x D sums; mu and nu are the means of the shifted rows of two models.

    The first four attributes hold terms that are to be summed over their last axis in float64.

    Attributes:
      h_own: [K, M, *] terms of `|C|^2`, C the covariance of a model with itself (times n).
      mean_own: [K, M, *] terms of `mu^T S mu`, S the sum of x x^T.
      h_cross: [K, C, *] as `h_own`, for crossed pairs.
      mean_cross: [K, C, *] as `mean_own`, for crossed pairs: `mu^T S nu`.
      sums: the other sums of the stream; `own` and `cross` are empty.
      carry: the other carries.
      shift: [K, M, D] as in `Moments`.
      exponent: [K, M] as in `Moments`.
      rows: [K, 2] as in `Moments`.
      dropped: [K, 2] as in `Moments`.
    """

    h_own: Float[Array, "K M *"]
    mean_own: Float[Array, "K M *"]
    h_cross: Float[Array, "K C *"]
    mean_cross: Float[Array, "K C *"]
    sums: MomentSums
    carry: MomentSums
    shift: Float[Array, "K M D"]
    exponent: Int[Array, "K M"]
    rows: Int[Array, "K 2"]
    dropped: Int[Array, "K 2"]


def _condense(state: Moments) -> _Condensed:
    """Reduces one layer's D x D sums to vectors, on the device.

    Float32 is enough: rounding here is no larger than that of the batches, and of random sign.
    """
    sums, carry = state.sums, state.carry
    # [] float32; the host repeats the count exactly.
    n = state.rows[0].astype(jnp.float32) + state.rows[1].astype(jnp.float32) * 2.0**COUNT_BITS
    mean = (sums.x - carry.x) / jnp.maximum(n, 1)  # [M, D']
    count, block = blocks(state.shift.shape[1])
    # [U] each, row by row as in `moments._own_blocks`.
    rows, columns = np.triu_indices(count)
    # [M, count, d]
    by_block = mean.reshape(-1, count, block)
    outer = by_block[:, rows, :, None] * by_block[:, columns, None, :]  # [M, U, d, d]
    # [U, 1]. Blocks off the diagonal also count for their mirror images.
    weight = jnp.asarray(np.where(rows == columns, 1, 2), jnp.float32)[:, None]
    own = sums.own - carry.own  # [M, U, d, d]
    p, q = crossed_side(state.pairs, 0), crossed_side(state.pairs, 1)
    outer_cross = mean[p][:, :, None] * mean[q][:, None, :]  # [C, D', D']
    cross = sums.cross - carry.cross  # [C, D', D']

    def weighted(x: jax.Array) -> jax.Array:
        return (x * weight).reshape(x.shape[0], -1)  # [M, U d]

    none = jnp.zeros(())
    return _Condensed(
        # C = S - n mu nu^T, formed entry by entry before it is squared: a difference of squares would cancel far more.
        h_own=weighted(jnp.square(own - n * outer).sum(3)),
        mean_own=weighted((own * outer).sum(3)),
        h_cross=jnp.square(cross - n * outer_cross).sum(2),
        mean_cross=(cross * outer_cross).sum(2),
        sums=sums._replace(own=none, cross=none),
        carry=carry._replace(own=none, cross=none),
        shift=state.shift,
        exponent=state.exponent,
        rows=state.rows,
        dropped=state.dropped,
    )


@jax.jit
def _condense_layers(states: Moments) -> _Condensed:
    """Condenses every layer, and puts the result whole on every device."""
    return replicate(lax.map(_condense, states), states.mesh)


class _PairSums(NamedTuple):
    """Sums over the shifted rows x of one model and y of another, in float64; see `MomentSums` for the letters.

    Attributes:
      mu: [K, D'] mean of x.
      nu: [K, D'] mean of y.
      h: [K] `|C|^2`, C the cross-covariance (times n).
      mean: [K] `mu^T S nu`.
      a: [K] sum of |x|^2.
      b: [K] sum of |y|^2.
      ab: [K] sum of |x|^2 |y|^2.
      bx: [K, D'] sum of |y|^2 x.
      ay: [K, D'] sum of |x|^2 y.
    """

    mu: Float[np.ndarray, "K D"]
    nu: Float[np.ndarray, "K D"]
    h: Float[np.ndarray, " K"]
    mean: Float[np.ndarray, " K"]
    a: Float[np.ndarray, " K"]
    b: Float[np.ndarray, " K"]
    ab: Float[np.ndarray, " K"]
    bx: Float[np.ndarray, "K D"]
    ay: Float[np.ndarray, "K D"]


class _Terms(NamedTuple):
    """HSIC of a pair of models and its rounding level, each [K] float64: biased `h` and debiased `u`."""

    h: Float[np.ndarray, " K"]
    u: Float[np.ndarray, " K"]
    h_noise: Float[np.ndarray, " K"]
    u_noise: Float[np.ndarray, " K"]


def _hsic_terms(n: Float[np.ndarray, " K"], sums: _PairSums) -> _Terms:
    """Computes HSIC of `n` rows from the sums of shifted rows."""
    # [K] each
    mu2, nu2 = np.square(sums.mu).sum(-1), np.square(sums.nu).sum(-1)
    # The sum of |x - mu|^2 |y - nu|^2 over the rows, term by term: [7, K].
    diagonal = np.stack(
        [
            sums.ab,
            -2 * (sums.nu * sums.ay).sum(-1),
            -2 * (sums.mu * sums.bx).sum(-1),
            4 * sums.mean,
            nu2 * sums.a,
            mu2 * sums.b,
            -3 * n * mu2 * nu2,
        ]
    )
    # R S / ((n-1)(n-2)), with the trace of centred rows R = sum a - n |mu|^2.
    traces = (sums.a - n * mu2) * (sums.b - n * nu2) / ((n - 1) * (n - 2))
    # |n mu nu^T|, which is subtracted from the sums to give C: its rounding stays in C, whose square is h.
    drift = n * np.sqrt(mu2 * nu2)
    h_noise = ROUNDING * (sums.h + 2 * np.sqrt(sums.h) * drift) + (ROUNDING * drift) ** 2
    inner = n / (n - 2)
    # u is a difference of h, the diagonal and the traces, so the size of each term adds its rounding.
    u_noise = h_noise + ROUNDING * (inner * np.abs(diagonal).sum(0) + traces)
    return _Terms(sums.h, sums.h - inner * diagonal.sum(0) + traces, h_noise, u_noise)


def similarities_of(states: Moments) -> Similarities:
    """Computes both estimates of CKA of every pair at every layer, in float64.

    Args:
      states: of K streams, stacked: every array leaf has a leading axis K.

    Returns:
      The similarities. `low`, `high` and `p` are NaN: leave-one-out and re-pairing need the rows. Each layer drops its
      own rows, so `n` is the fewest rows of any layer and `dropped` the most; the log says if they differ.
    """
    pairs = states.pairs
    condensed = jax.tree.map(np.asarray, _condense_layers(states))
    # Sum minus excess, in float64: together they hold more digits than float32.
    sums = jax.tree.map(lambda total, carry: np.asarray(total, np.float64) - carry, condensed.sums, condensed.carry)
    # [K] int64 each
    rows, dropped = (count @ np.array([1, 1 << COUNT_BITS], np.int64) for count in (condensed.rows, condensed.dropped))
    if len(set(rows.tolist())) > 1:
        log.info("rows that are not finite differ by layer: %d to %d rows counted", rows.min(), rows.max())
    n = np.maximum(rows, MIN_ROWS).astype(np.float64)  # fewer rows have no value anyway
    mu = sums.x / n[:, None, None]  # [K, M, D']
    h_own, mean_own, h_cross, mean_cross = (
        np.asarray(terms, np.float64).sum(-1)
        for terms in (condensed.h_own, condensed.mean_own, condensed.h_cross, condensed.mean_cross)
    )
    # A model with itself needs one set of sums, a crossed pair (p, q) the sums of both orders.
    pair_sums = {}
    for m in range(mu.shape[1]):
        pair_sums[m, m] = _PairSums(
            mu=mu[:, m],
            nu=mu[:, m],
            h=h_own[:, m],
            mean=mean_own[:, m],
            a=sums.a[:, m],
            b=sums.a[:, m],
            ab=sums.aa[:, m],
            bx=sums.own_weighted[:, m],
            ay=sums.own_weighted[:, m],
        )
    for c, (p, q) in enumerate(crossed_pairs(pairs)):
        pair_sums[p, q] = _PairSums(
            mu=mu[:, p],
            nu=mu[:, q],
            h=h_cross[:, c],
            mean=mean_cross[:, c],
            a=sums.a[:, p],
            b=sums.a[:, q],
            ab=sums.ab[:, c],
            bx=sums.left[:, c],
            ay=sums.right[:, c],
        )
    terms = {pair: _hsic_terms(n, own) for pair, own in pair_sums.items()}
    shifted = np.square(mu).sum(-1)  # [K, M]
    # [K, M], of the centred rows
    trace = sums.a - n[:, None] * shifted
    # [K, M, 1]. Mean of the raw rows in the unit of the sums: the shift plus the mean of the shifted rows, without the
    # columns that pad D' to whole blocks.
    units = np.ldexp(1.0, condensed.exponent)[..., None]
    mean = condensed.shift.astype(np.float64) / units + mu[..., : condensed.shift.shape[-1]]
    mean_square = np.square(mean).sum(-1)
    # The trace is a difference too, and below its rounding it is no variance.
    is_flat = variance_missing(trace, mean_square, n[:, None], FLOAT32_EPS)
    is_flat |= trace <= 8 * FLOAT32_EPS * n[:, None] * shifted
    return _similarities(pairs, terms, is_flat, trace, mean_square, rows, dropped)


def _similarities(
    pairs: Sequence[tuple[int, int]],
    terms: dict[tuple[int, int], _Terms],
    is_flat: np.ndarray,
    trace: np.ndarray,
    mean_square: np.ndarray,
    rows: np.ndarray,
    dropped: np.ndarray,
) -> Similarities:
    """Returns the values that are exact to `TOLERANCE`, and reasons in place of the others.

    Args:
      pairs: P, (a, b) indices of models.
      terms: of each model with itself and of each crossed pair.
      is_flat: [K, M] bool, states without variance.
      trace: [K, M].
      mean_square: [K, M].
      rows: [K] int, rows that counted.
      dropped: [K] int.
    """
    n = np.maximum(rows, MIN_ROWS).astype(np.float64)
    shape = (len(pairs), len(rows), len(ESTIMATORS))
    values = {name: np.full(shape, np.nan) for name in ("value", "low", "high", "null_mean", "p")}
    undefined = np.full(shape, "", dtype=object)
    with np.errstate(divide="ignore", invalid="ignore"):
        participation_ratio = np.stack(
            [np.where(is_flat[:, m], np.nan, trace[:, m] ** 2 / terms[m, m].h) for m in range(is_flat.shape[1])]
        )  # [M, K]
        offset = np.sqrt(mean_square * n[:, None] / np.maximum(trace, 0)).T
    participation_ratio[:, rows < MIN_ROWS] = np.nan
    for i, (a, b) in enumerate(pairs):
        # A product does not depend on the order of its pair, and is stored with the smaller index first.
        trio = (terms[min(a, b), max(a, b)], terms[a, a], terms[b, b])
        vanishing = _vanishes(trio[1]), _vanishes(trio[2])
        for e, (name, field) in enumerate(zip(ESTIMATORS, ("h", "u"), strict=True)):
            reason = undefined_reasons(name, (is_flat[:, a], is_flat[:, b]), vanishing)
            xy, xx, yy = (np.where(reason == "", getattr(t, field), np.nan) for t in trio)
            value = ratio(xy, xx, yy)
            noise = [getattr(t, f"{field}_noise") for t in trio]
            with np.errstate(divide="ignore", invalid="ignore"):
                # First-order error of xy / sqrt(xx yy), as if the errors of the three products added up.
                error = noise[0] / np.sqrt(xx * yy) + np.abs(value) / 2 * (noise[1] / xx + noise[2] / yy)
            reason[(reason == "") & ~(error <= TOLERANCE)] = "float32 sums are not exact to 1e-5 here; keep the rows"
            reason[rows < MIN_ROWS] = [
                f"{count} finite rows; at least {MIN_ROWS} are needed" for count in rows[rows < MIN_ROWS]
            ]
            undefined[i, :, e] = reason
            values["value"][i, :, e] = np.where(reason == "", value, np.nan)
            mean = null_mean(trace[:, a], trace[:, b], trio[1].h, trio[2].h, n) if name == "biased" else 0.0
            values["null_mean"][i, :, e] = np.where(reason == "", mean, np.nan)
    return Similarities(
        **values,
        undefined=undefined,
        participation_ratio=participation_ratio,
        offset=offset,
        n=int(rows.min()),
        dropped=int(dropped.max()),
        # Sums of a stream know no items: every row counts as a unit of its own.
        units=int(rows.min()),
        replicates=np.full((*undefined.shape, 0), np.nan),
        template_error=np.full(undefined.shape, np.nan),
        repairing="none",
    )


def _vanishes(own: _Terms) -> np.ndarray:
    """Tells where a debiased self-similarity is only rounding: [K] bool.

    If the rounding is large beside `h` itself, the rows may well have a value that these sums cannot resolve. Then this
    is False, and the estimated error makes the value undefined.
    """
    return (own.u <= 2 * own.u_noise) & (own.u_noise <= TOLERANCE * own.h)
