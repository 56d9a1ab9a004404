"""CKA of unlimited rows from streamed moments: constant memory in n, any batching, any order, any sharding.

Rows of M models are shifted once by fixed vectors (the means of the first batch, say); then every statistic is a plain
sum, so that batches add and streams merge. The sums are float32 with compensated (Kahan) carry-over from batch to
batch, each model in the unit of a power of two that grows with the largest entry seen. `update` is pure and may stand
in a scan over layers. What rounding leaves of a value is estimated: where that is more than `TOLERANCE`, the value is
undefined. That happens where the shift lies far from the mean, or, debiased, with far fewer rows than columns: keep the
rows there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mossa_jax.progress import log
from mossa_jax.rundir import Refusal
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
from mossa_jax.similarity.gram import EXACT, peak_exponent, power_of_two

# On a TPU three bfloat16 passes in place of six, on a GPU three of TF32; the values differ by at most about 2e-6.
FAST = lax.Precision.HIGH
TOLERANCE = 1e-5
# Rounding level of a term relative to its size. All errors of values that were measured (n 4 to 2000, D 12 to 4096,
# shifts up to 30 spreads off, isotropic to low-rank) lay below 0.55 of the level made from it, most below 0.3.
ROUNDING = FLOAT32_EPS / 2
# Symmetric products are made in upper blocks: of at most so many a side, at least so wide.
MAX_BLOCKS = 8
MIN_BLOCK = 64
MIN_STRIP = 384  # columns of a product: narrow ones cost more than the half that is left out
_BASE = 24  # bits of the lower part of a count


class Sums(NamedTuple):
    """Plain sums over shifted and scaled rows x_m with `a_m = |x_m|^2`; every leaf adds. D' is D rounded up to blocks.

    `x` [M, D'] rows; `own` [M, U, d, d] upper blocks of the sums of x_m x_m^T; `own_weighted` [M, D'] of a_m x_m;
    `a`, `aa` [M] of a_m, a_m^2; and for each of C crossed pairs (p, q) `cross` [C, D', D'] of x_p x_q^T, `left`,
    `right` [C, D'] of a_q x_p and a_p x_q, `ab` [C] of a_p a_q.
    """

    x: jax.Array
    own: jax.Array
    own_weighted: jax.Array
    a: jax.Array
    aa: jax.Array
    cross: jax.Array
    left: jax.Array
    right: jax.Array
    ab: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("shift", "exponent", "sums", "carry", "rows", "dropped"),
    meta_fields=("pairs", "fast", "mesh"),
)
@dataclass(frozen=True)
class Moments:
    """A stream's state.

    Attributes:
        shift: [M, D] float32, fixed.
        exponent: [M] int32; the sums are in units of `2**exponent`.
        sums: what was added.
        carry: what rounding has put into the sums too much.
        rows: [2] int32, rows that counted: `rows[0] + rows[1] * 2**24`, exact beyond 10^12.
        dropped: [2] int32, valid rows left out as one of the models was not finite there.
        pairs: of models, static.
        fast: matmuls in three passes, static.
        mesh: over whose `fsdp` axis the sums are spread, static; or None.
    """

    shift: jax.Array
    exponent: jax.Array
    sums: Sums
    carry: Sums
    rows: jax.Array
    dropped: jax.Array
    pairs: tuple[tuple[int, int], ...]
    fast: bool
    mesh: Mesh | None


def crossed(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The products of two different models that the pairs need, each once, in order."""
    return sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]})


def blocks(width: int) -> tuple[int, int]:
    """Blocks a side and their width; together at least `width` columns."""
    count = max(1, min(MAX_BLOCKS, width // MIN_BLOCK))
    return count, -(-width // count)


def strips(width: int) -> list[tuple[int, int]]:
    """Columns [start, stop) whose products with all from `start` on are made at once: whole blocks."""
    count, block = blocks(width)
    together = -(-MIN_STRIP // block) * block
    return [(at, min(at + together, count * block)) for at in range(0, count * block, together)]


def start(
    shift: jax.Array, pairs: Sequence[tuple[int, int]], *, fast: bool = False, mesh: Mesh | None = None
) -> Moments:
    """An empty stream; for K layers `jax.vmap(lambda s: start(s, pairs))(shifts)`.

    Args:
        shift: [M, D] vectors near the means of the models, the same for all streams that are to be merged.
        pairs: pairs (a, b) of models that are wanted.
        fast: three passes a matmul in place of full float32; adds an error of about 2e-6 on TPU and GPU.
        mesh: spreads the D x D sums over its axis `fsdp`.

    Raises:
        Refusal: code 3 for pairs that name no model.
    """
    shift = jnp.asarray(shift, jnp.float32)
    models, width = shift.shape
    pairs = tuple((int(a), int(b)) for a, b in pairs)
    if not pairs or any(not 0 <= m < models for pair in pairs for m in pair):
        raise Refusal(3, f"pairs are {list(pairs)}; give pairs of indices below {models}")
    count, block = blocks(width)
    padded, cross = count * block, len(crossed(pairs))
    shapes = Sums(
        x=(models, padded),
        own=(models, count * (count + 1) // 2, block, block),
        own_weighted=(models, padded),
        a=(models,),
        aa=(models,),
        cross=(cross, padded, padded),
        left=(cross, padded),
        right=(cross, padded),
        ab=(cross,),
    )
    empty = _spread(Sums(*(jnp.zeros(shape, jnp.float32) for shape in shapes)), mesh)
    none = jnp.zeros(2, jnp.int32)
    return Moments(shift, jnp.full(models, -126, jnp.int32), empty, empty, none, none, pairs, fast, mesh)


def _spread(sums: Sums, mesh: Mesh | None) -> Sums:
    """The D x D sums with their first column axis over `fsdp`."""
    if mesh is None:
        return sums

    def over(x: jax.Array, *axes: str | None) -> jax.Array:
        divides = x.shape[axes.index("fsdp")] % mesh.shape["fsdp"] == 0
        return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes if divides else ())))

    return sums._replace(own=over(sums.own, None, None, "fsdp"), cross=over(sums.cross, None, "fsdp"))


def _scaled(sums: Sums, by: jax.Array, pairs: Sequence[tuple[int, int]]) -> Sums:
    """The sums in other units: rows of model m times `by[m]`."""
    p, q = by[_side(pairs, 0)], by[_side(pairs, 1)]
    return Sums(
        x=sums.x * by[:, None],
        own=sums.own * jnp.square(by)[:, None, None, None],
        own_weighted=sums.own_weighted * jnp.square(by)[:, None] * by[:, None],
        a=sums.a * jnp.square(by),
        aa=sums.aa * jnp.square(by) * jnp.square(by),
        cross=sums.cross * (p * q)[:, None, None],
        left=sums.left * (q * p)[:, None] * q[:, None],
        right=sums.right * (p * q)[:, None] * p[:, None],
        ab=sums.ab * (p * q) * (p * q),
    )


def _side(pairs: Sequence[tuple[int, int]], side: int) -> np.ndarray:
    return np.asarray([pair[side] for pair in crossed(pairs)], np.int32)


def _regauged(state: Moments, exponent: jax.Array) -> Moments:
    """The same stream in larger units; what is 2**63 times smaller than the unit is nothing in float32."""
    by = power_of_two(jnp.maximum(state.exponent - exponent, -63))
    scaled = (_scaled(part, by, state.pairs) for part in (state.sums, state.carry))
    return replace(state, exponent=exponent, **dict(zip(("sums", "carry"), scaled, strict=True)))


def _kahan(state: Moments, more: Sums) -> tuple[Sums, Sums]:
    """Compensated addition, leaf by leaf: (sums, carry)."""
    term = jax.tree.map(jnp.subtract, more, state.carry)
    new = jax.tree.map(jnp.add, state.sums, term)
    # The barrier keeps the compiler from cancelling the compensation algebraically.
    moved = jax.tree.map(jnp.subtract, lax.optimization_barrier(new), state.sums)
    return _spread(new, state.mesh), _spread(jax.tree.map(jnp.subtract, moved, term), state.mesh)


def _counted(total: jax.Array, more: jax.Array) -> jax.Array:
    """A count in two parts and another one, or one number below 2**24."""
    low, high = (total[0] + more, total[1]) if more.ndim == 0 else (total[0] + more[0], total[1] + more[1])
    return jnp.stack([low & ((1 << _BASE) - 1), high + (low >> _BASE)])


@jax.jit
def update(state: Moments, x: jax.Array, valid: jax.Array) -> Moments:
    """Adds a batch.

    Args:
        state: of the stream.
        x: [M, R, D] rows of the M models, paired, of any floating dtype; R below 2**24.
        valid: [R] bool; rows that do not count, or are not finite in one of the models, add nothing.
    """
    x = x.astype(jnp.float32) - state.shift[:, None]
    kept = valid & jnp.isfinite(x).all((0, 2))
    x = jnp.where(kept[:, None], x, 0)
    exponent = jnp.maximum(state.exponent, peak_exponent(jnp.abs(x).max((1, 2))))
    state = _regauged(state, exponent)
    x = x * power_of_two(-exponent)[:, None, None]
    count, block = blocks(x.shape[2])
    x = jnp.pad(x, ((0, 0), (0, 0), (0, count * block - x.shape[2])))
    sums, carry = _kahan(state, _batch(x, state.pairs, FAST if state.fast else EXACT))
    return replace(
        state,
        sums=sums,
        carry=carry,
        rows=_counted(state.rows, kept.sum(dtype=jnp.int32)),
        dropped=_counted(state.dropped, (valid & ~kept).sum(dtype=jnp.int32)),
    )


def _batch(x: jax.Array, pairs: Sequence[tuple[int, int]], precision: lax.Precision) -> Sums:
    """The sums of one batch, [M, R, D'] float32."""
    p, q = _side(pairs, 0), _side(pairs, 1)
    a = jnp.square(x).sum(2)
    none = jnp.zeros((0, x.shape[2], x.shape[2]), jnp.float32)
    product = functools.partial(jnp.einsum, precision=precision)
    weighted = functools.partial(jnp.einsum, "mr,mri->mi", precision=EXACT)
    return Sums(
        x=x.sum(1),
        own=_own(x, product),
        own_weighted=weighted(a, x),
        a=a.sum(1),
        aa=jnp.square(a).sum(1),
        # One by one: no copies of the rows.
        cross=jnp.stack([product("ri,rj->ij", x[a], x[b]) for a, b in zip(p, q, strict=True)]) if len(p) else none,
        left=weighted(a[q], x[p]),
        right=weighted(a[p], x[q]),
        ab=(a[p] * a[q]).sum(1),
    )


def _own(x: jax.Array, product: Callable[..., jax.Array]) -> jax.Array:
    """Upper blocks of `x_m^T x_m` [M, U, d, d], some rows of blocks at a time: wide products, no copy of the rows."""
    block = blocks(x.shape[2])[1]
    parts = []
    for start, stop in strips(x.shape[2]):
        strip = product("mri,mrj->mij", x[:, :, start:stop], x[:, :, start:])
        for low in range(0, stop - start, block):
            row = strip[:, low : low + block, low:]
            parts.append(row.reshape(*row.shape[:2], -1, block).swapaxes(1, 2))
    return jnp.concatenate(parts, 1)


@jax.jit
def merge(a: Moments, b: Moments) -> Moments:
    """Joins two streams that started from the same shifts and pairs; any leading axes must be vmapped over."""
    exponent = jnp.maximum(a.exponent, b.exponent)
    a, b = _regauged(a, exponent), _regauged(b, exponent)
    sums, carry = _kahan(a, b.sums)
    return replace(
        a,
        sums=sums,
        carry=jax.tree.map(jnp.add, carry, b.carry),
        rows=_counted(a.rows, b.rows),
        dropped=_counted(a.dropped, b.dropped),
    )


class Condensed(NamedTuple):
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


def _condense(state: Moments) -> Condensed:
    """One layer's D x D sums brought down to vectors, on the device.

    Float32 is enough: an entry's rounding is of the size of the batches' own, and of random sign.
    """
    sums, carry = state.sums, state.carry
    n = state.rows[0].astype(jnp.float32) + state.rows[1].astype(jnp.float32) * 2.0**_BASE
    mean = (sums.x - carry.x) / jnp.maximum(n, 1)
    count, block = blocks(state.shift.shape[1])
    rows, columns = np.triu_indices(count)
    parts = mean.reshape(-1, count, block)
    outer = parts[:, rows, :, None] * parts[:, columns, None, :]
    twice = jnp.asarray(np.where(rows == columns, 1, 2), jnp.float32)[:, None]
    own = sums.own - carry.own
    p, q = _side(state.pairs, 0), _side(state.pairs, 1)
    outer_cross = mean[p][:, :, None] * mean[q][:, None, :]
    cross = sums.cross - carry.cross

    def flat(x: jax.Array) -> jax.Array:
        return (x * twice).reshape(x.shape[0], -1)

    none = jnp.zeros(())
    return Condensed(
        h_own=flat(jnp.square(own - n * outer).sum(3)),
        mean_own=flat((own * outer).sum(3)),
        h_cross=jnp.square(cross - n * outer_cross).sum(2),
        mean_cross=(cross * outer_cross).sum(2),
        high=sums._replace(own=none, cross=none),
        low=carry._replace(own=none, cross=none),
    )


@jax.jit
def _condensed(states: Moments) -> tuple[Condensed, Moments]:
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
    """HSIC from the sums of shifted rows, all [K, ...] float64; see the module's class `Sums` for the letters."""
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
    rows, dropped = (rest[name] @ np.array([1, 1 << _BASE], np.int64) for name in ("rows", "dropped"))
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
