"""CKA of unlimited rows from streamed moments: constant memory in n, any batching, any order, any sharding.

Rows of M models are shifted by fixed vectors (the first batch's means: `with_shift`); then every statistic is a plain
sum, so that batches add and streams merge. The sums are float32 with compensated (Kahan) carry-over from batch to
batch, each model in the unit of a power of two that grows with the largest entry seen. `update` is pure and may stand
in a scan over layers. The values come from `moments_values`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mossa_jax.errors import Refusal
from mossa_jax.similarity.gram import EXACT, peak_exponent, power_of_two

# On a TPU three bfloat16 passes in place of six, on a GPU three of TF32; the values differ by at most about 2e-6.
FAST = lax.Precision.HIGH
# Symmetric products are made in upper blocks: of at most so many a side, at least so wide.
MAX_BLOCKS = 8
MIN_BLOCK = 64
MIN_STRIP = 384  # columns of a product: narrow ones cost more than the half that is left out
COUNT_BITS = 24  # bits of the lower part of a count


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
        mesh: over which the D x D sums are spread, static; or None.
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
        mesh: spreads the D x D sums over its axes `fsdp` and `tensor`.

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
    empty = Sums(*(jnp.zeros(shape, jnp.float32) for shape in shapes))
    none = jnp.zeros(2, jnp.int32)
    return placed(Moments(shift, jnp.full(models, -126, jnp.int32), empty, empty, none, none, pairs, fast, mesh))


def _spread(sums: Sums, mesh: Mesh | None) -> Sums:
    """The D x D sums with their first column axis over as many devices as it divides over; the others whole on each."""
    if mesh is None:
        return sums

    def over(x: jax.Array, spread: bool = False) -> jax.Array:
        spec: list = [None] * x.ndim
        for axes in (("tensor", "fsdp"), ("fsdp",), ("tensor",)):
            devices = math.prod(mesh.shape[name] for name in axes)
            if spread and devices > 1 and x.shape[-2] % devices == 0:
                spec[-2] = axes
                break
        return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return Sums(*map(over, sums))._replace(own=over(sums.own, True), cross=over(sums.cross, True))


def placed(state: Moments) -> Moments:
    """The state, of one layer or of several stacked, where `start` puts it.

    A program that takes the state that it gave is then compiled once.
    """
    if state.mesh is None:
        return state
    whole = NamedSharding(state.mesh, PartitionSpec())
    rest = {name: getattr(state, name) for name in ("shift", "exponent", "rows", "dropped")}
    rest = lax.with_sharding_constraint(rest, whole)
    return replace(state, sums=_spread(state.sums, state.mesh), carry=_spread(state.carry, state.mesh), **rest)


def _rows(x: jax.Array, mesh: Mesh | None, dealt: bool = False) -> jax.Array:
    """Rows [M, R, ...] over `fsdp`; `dealt`: the last axis over `tensor`, for a part of a product a device."""
    if mesh is None or mesh.size == 1 or x.shape[1] % mesh.shape["fsdp"]:
        return x
    spec = [None, "fsdp"] + [None] * (x.ndim - 2)
    if dealt and x.shape[-1] % mesh.shape["tensor"] == 0:
        spec[-1] = "tensor"
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def _scaled(sums: Sums, by: jax.Array, pairs: Sequence[tuple[int, int]]) -> Sums:
    """The sums in other units: rows of model m times `by[m]`."""
    p, q = by[side(pairs, 0)], by[side(pairs, 1)]
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


def side(pairs: Sequence[tuple[int, int]], which: int) -> np.ndarray:
    """[C] int32: the first (0) or the second (1) model of each of `crossed`."""
    return np.asarray([pair[which] for pair in crossed(pairs)], np.int32)


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
    return jnp.stack([low & ((1 << COUNT_BITS) - 1), high + (low >> COUNT_BITS)])


def with_shift(state: Moments, x: jax.Array, valid: jax.Array) -> Moments:
    """The stream with the mean of these rows for its shift, where none has counted yet; arguments as of `update`.

    What is merged later must have the same shift: only for a stream that takes all rows itself.
    """

    def mean() -> jax.Array:
        kept = valid & jnp.isfinite(x).all((0, 2))
        total = jnp.where(kept[:, None], x.astype(jnp.float32), 0).sum(axis=1)
        return total / jnp.maximum(kept.sum(), 1)

    return replace(state, shift=lax.cond((state.rows == 0).all(), mean, lambda: state.shift))


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
    x = _rows(jnp.pad(x, ((0, 0), (0, 0), (0, count * block - x.shape[2]))), state.mesh)
    sums, carry = _kahan(state, _batch(x, state.pairs, FAST if state.fast else EXACT, state.mesh))
    return replace(
        state,
        sums=sums,
        carry=carry,
        rows=_counted(state.rows, kept.sum(dtype=jnp.int32)),
        dropped=_counted(state.dropped, (valid & ~kept).sum(dtype=jnp.int32)),
    )


def _batch(x: jax.Array, pairs: Sequence[tuple[int, int]], precision: lax.Precision, mesh: Mesh | None = None) -> Sums:
    """The sums of one batch, [M, R, D'] float32."""
    p, q = side(pairs, 0), side(pairs, 1)
    a = jnp.square(x).sum(2)
    none = jnp.zeros((0, x.shape[2], x.shape[2]), jnp.float32)
    product = functools.partial(jnp.einsum, precision=precision)
    weighted = functools.partial(jnp.einsum, "mr,mri->mi", precision=EXACT)
    dealt = _rows(x, mesh, True)
    return Sums(
        x=x.sum(1),
        own=_own(x, product, mesh),
        own_weighted=weighted(a, x),
        a=a.sum(1),
        aa=jnp.square(a).sum(1),
        # One by one: no copies of the rows.
        cross=jnp.stack([product("ri,rj->ij", dealt[a], x[b]) for a, b in zip(p, q, strict=True)]) if len(p) else none,
        left=weighted(a[q], x[p]),
        right=weighted(a[p], x[q]),
        ab=(a[p] * a[q]).sum(1),
    )


def _own(x: jax.Array, product: Callable[..., jax.Array], mesh: Mesh | None) -> jax.Array:
    """Upper blocks of `x_m^T x_m` [M, U, d, d], some rows of blocks at a time: wide products, no copy of the rows."""
    count, block = blocks(x.shape[2])
    # By blocks, since a device has a part of each: strips of columns that are dealt would have to travel.
    dealt = _rows(x.reshape(*x.shape[:2], count, block), mesh, True)
    parts = []
    for start, stop in strips(x.shape[2]):
        left = dealt[:, :, start // block : stop // block].reshape(*x.shape[:2], stop - start)
        strip = product("mri,mrj->mij", left, x[:, :, start:])
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
