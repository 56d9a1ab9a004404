"""What a stream of moments says: CKA of every pair at every layer, combined in float64 on the host.

What rounding leaves of a value is estimated: where that is more than `TOLERANCE`, the value is undefined. That happens
where the shift lies far from the mean, or, debiased, with far fewer rows than columns: keep the rows there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from mossa_jax.log import log
from mossa_jax.similarity.compare import Similarities
from mossa_jax.similarity.estimators import (
    ESTIMATORS,
    FLOAT32_EPS,
    MIN_ROWS,
    null_mean,
    ratio,
    reasons,
    variance_missing,
)
from mossa_jax.similarity.streamed.moments import COUNT_BITS, Moments, Sums, blocks, crossed, side

TOLERANCE = 1e-5
# Rounding level of a term relative to its size. All errors of values that were measured (n 4 to 2000, D 12 to 4096,
# shifts up to 30 spreads off, isotropic to low-rank) lay below 0.55 of the level made from it, most below 0.3.
ROUNDING = FLOAT32_EPS / 2


class _Condensed(NamedTuple):
    """A stream without its D x D sums; `n` rows, mu the means of the shifted rows, leading layer axis K.

    `h_own` [K, M, D'], `h_cross` [K, C, D'] and `mean_own`, `mean_cross` alike: parts, to be summed in float64, of
    `|C|^2` and of `mu^T S nu`. The others as in `Sums`, with the carry taken out.
    """

    h_own: jax.Array
    mean_own: jax.Array
    h_cross: jax.Array
    mean_cross: jax.Array
    high: Sums
    low: Sums


def _condense(state: Moments) -> _Condensed:
    """One layer's D x D sums brought down to vectors, on the device.

    Float32 is enough: an entry's rounding is of the size of the batches' own, and of random sign.
    """
    sums, carry = state.sums, state.carry
    n = state.rows[0].astype(jnp.float32) + state.rows[1].astype(jnp.float32) * 2.0**COUNT_BITS
    mean = (sums.x - carry.x) / jnp.maximum(n, 1)
    count, block = blocks(state.shift.shape[1])
    rows, columns = np.triu_indices(count)
    parts = mean.reshape(-1, count, block)
    outer = parts[:, rows, :, None] * parts[:, columns, None, :]
    twice = jnp.asarray(np.where(rows == columns, 1, 2), jnp.float32)[:, None]
    own = sums.own - carry.own
    p, q = side(state.pairs, 0), side(state.pairs, 1)
    outer_cross = mean[p][:, :, None] * mean[q][:, None, :]
    cross = sums.cross - carry.cross

    def flat(x: jax.Array) -> jax.Array:
        return (x * twice).reshape(x.shape[0], -1)

    none = jnp.zeros(())
    return _Condensed(
        h_own=flat(jnp.square(own - n * outer).sum(3)),
        mean_own=flat((own * outer).sum(3)),
        h_cross=jnp.square(cross - n * outer_cross).sum(2),
        mean_cross=(cross * outer_cross).sum(2),
        high=sums._replace(own=none, cross=none),
        low=carry._replace(own=none, cross=none),
    )


@jax.jit
def _condensed(states: Moments) -> tuple[_Condensed, Moments]:
    found = lax.map(_condense, states)
    rest = {name: getattr(states, name) for name in ("shift", "exponent", "rows", "dropped")}
    if states.mesh is not None:
        return lax.with_sharding_constraint((found, rest), NamedSharding(states.mesh, PartitionSpec()))
    return found, rest


class _Terms(NamedTuple):
    """[K] float64: `h`, `u` of a product of two models and the rounding levels of both."""

    h: np.ndarray
    u: np.ndarray
    h_noise: np.ndarray
    u_noise: np.ndarray


def _terms(n: np.ndarray, mu, nu, h, mean, a, b, ab, bx, ay) -> _Terms:
    """HSIC from the sums of shifted rows, all [K, ...] float64; see `moments.Sums` for the letters."""
    mu2, nu2 = np.square(mu).sum(-1), np.square(nu).sum(-1)
    parts = np.stack(
        [
            ab,
            -2 * (nu * ay).sum(-1),
            -2 * (mu * bx).sum(-1),
            4 * mean,
            nu2 * a,
            mu2 * b,
            -3 * n * mu2 * nu2,
        ]
    )
    traces = (a - n * mu2) * (b - n * nu2) / ((n - 1) * (n - 2))
    drift = n * np.sqrt(mu2 * nu2)
    h_noise = ROUNDING * (h + 2 * np.sqrt(h) * drift) + (ROUNDING * drift) ** 2
    inner = n / (n - 2)
    u_noise = h_noise + ROUNDING * (inner * np.abs(parts).sum(0) + traces)
    return _Terms(h, h - inner * parts.sum(0) + traces, h_noise, u_noise)


def finish(states: Moments) -> Similarities:
    """Both estimates of CKA of every pair at every layer, combined in float64.

    Args:
        states: of K streams, stacked: every array leaf with a leading axis K.

    Returns:
        The similarities. `low`, `high` and `p` are NaN: leave-one-out and re-pairing need the rows. Layers drop rows by
        themselves, so `n` is the fewest rows of any layer and `dropped` the most; a line is logged where they differ.
    """
    pairs = states.pairs
    made, rest = jax.tree.map(np.asarray, _condensed(states))
    sums = jax.tree.map(lambda high, low: np.asarray(high, np.float64) - low, made.high, made.low)
    rows, dropped = (rest[name] @ np.array([1, 1 << COUNT_BITS], np.int64) for name in ("rows", "dropped"))
    if len(set(rows.tolist())) > 1:
        log.info("rows that are not finite differ by layer: %d to %d rows counted", rows.min(), rows.max())
    n = np.maximum(rows, MIN_ROWS).astype(np.float64)  # fewer have no value anyway
    mu = sums.x / n[:, None, None]
    h_own, mean_own, h_cross, mean_cross = (
        np.asarray(part, np.float64).sum(-1) for part in (made.h_own, made.mean_own, made.h_cross, made.mean_cross)
    )
    terms = {
        (m, m): _terms(
            n, mu[:, m], mu[:, m], h_own[:, m], mean_own[:, m], sums.a[:, m], sums.a[:, m], sums.aa[:, m],
            sums.own_weighted[:, m], sums.own_weighted[:, m],
        )
        for m in range(mu.shape[1])
    }  # fmt: skip
    for c, (p, q) in enumerate(crossed(pairs)):
        terms[p, q] = _terms(
            n, mu[:, p], mu[:, q], h_cross[:, c], mean_cross[:, c], sums.a[:, p], sums.a[:, q], sums.ab[:, c],
            sums.left[:, c], sums.right[:, c],
        )  # fmt: skip
    shifted = np.square(mu).sum(-1)
    trace = sums.a - n[:, None] * shifted
    units = np.ldexp(1.0, rest["exponent"])[..., None]
    mean = rest["shift"].astype(np.float64) / units + mu[..., : rest["shift"].shape[-1]]
    mean_square = np.square(mean).sum(-1)
    # A trace is a difference too: below its rounding there is no variance to speak of.
    flat = variance_missing(trace, mean_square, n[:, None], FLOAT32_EPS)
    flat |= trace <= 8 * FLOAT32_EPS * n[:, None] * shifted
    return _similarities(pairs, terms, flat, trace, mean_square, rows, dropped)


def _similarities(
    pairs: Sequence[tuple[int, int]],
    terms: dict[tuple[int, int], _Terms],
    flat: np.ndarray,
    trace: np.ndarray,
    mean_square: np.ndarray,
    rows: np.ndarray,
    dropped: np.ndarray,
) -> Similarities:
    """The table: values where they are defined to `TOLERANCE`, else the reason."""
    n = np.maximum(rows, MIN_ROWS).astype(np.float64)
    shape = (len(pairs), len(rows), len(ESTIMATORS))
    values = {name: np.full(shape, np.nan) for name in ("value", "low", "high", "null_mean", "p")}
    undefined = np.full(shape, "", dtype=object)
    with np.errstate(divide="ignore", invalid="ignore"):
        participation = np.stack(
            [np.where(flat[:, m], np.nan, trace[:, m] ** 2 / terms[m, m].h) for m in range(flat.shape[1])]
        )
        offset = np.sqrt(mean_square * n[:, None] / np.maximum(trace, 0)).T
    participation[:, rows < MIN_ROWS] = np.nan
    for i, (a, b) in enumerate(pairs):
        trio = (terms[min(a, b), max(a, b)], terms[a, a], terms[b, b])
        # Not where rounding alone is of the size of the whole: that is said of the error below.
        vanishing = tuple((t.u <= 2 * t.u_noise) & (t.u_noise <= TOLERANCE * t.h) for t in trio[1:])
        for e, (name, kind) in enumerate(zip(ESTIMATORS, ("h", "u"), strict=True)):
            reason = reasons(name, (flat[:, a], flat[:, b]), vanishing)
            whole = [np.where(reason == "", getattr(t, kind), np.nan) for t in trio]
            value = ratio(*whole)
            noise = [getattr(t, f"{kind}_noise") for t in trio]
            with np.errstate(divide="ignore", invalid="ignore"):
                error = noise[0] / np.sqrt(whole[1] * whole[2]) + np.abs(value) / 2 * (
                    noise[1] / whole[1] + noise[2] / whole[2]
                )
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
        participation_ratio=participation,
        offset=offset,
        n=int(rows.min()),
        dropped=int(dropped.max()),
    )
