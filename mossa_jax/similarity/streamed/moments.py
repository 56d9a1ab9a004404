"""CKA of any number of rows from streamed moments: constant memory in n, any batching, any order, any sharding.

Rows of M models are shifted by fixed vectors (the first batch's means: `with_shift`). Then every statistic is a plain
sum, so batches add and streams merge. The sums are float32 with a compensated (Kahan) carry from batch to batch, each
model in units of a power of two that grows with the largest entry seen. `update` is pure and may be called in a scan
over layers. The values are computed by `values.similarities_of`.

Shape letters: M models, R rows of a batch, D width, D' = D rounded up to whole blocks, U upper blocks, d their width,
C crossed pairs.
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
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.similarity.checks import check_pairs
from mossa_jax.similarity.gram import EXACT, peak_exponent, power_of_two
from mossa_jax.similarity.kahan import add_compensated

# On a TPU three bfloat16 passes in place of six: values differ by at most about 2e-6. On a GPU XLA makes one pass of
# TF32 of it: by at most 6e-7 for rows like a normal distribution, and by 5e-5 for rows with heavy tails (emulated:
# docs/measurements.md).
FAST = lax.Precision.HIGH
# Symmetric products are stored in upper blocks, at most this many per side and at least this wide: with eight per side
# 36 of 64 blocks are kept.
MAX_BLOCKS = 8
MIN_BLOCK = 64
# The least columns of a product. Narrower ones would leave out more of the mirrored half, but lose more speed than that
# saves.
MIN_STRIP = 384
# Bits of the lower part of a count. The parts are int32, and batches of fewer than 2^24 rows cannot overflow the lower.
COUNT_BITS = 24


class MomentSums(NamedTuple):
    """Plain sums over shifted and scaled rows x_m, with `a_m = |x_m|^2`; every leaf adds.

    Attributes:
      x: [M, D'] sum of rows.
      own: [M, U, d, d] upper blocks of the sum of x_m x_m^T.
      own_weighted: [M, D'] sum of a_m x_m.
      a: [M] sum of a_m.
      aa: [M] sum of a_m^2.
      cross: [C, D', D'] sum of x_p x_q^T, for each crossed pair (p, q).
      left: [C, D'] sum of a_q x_p.
      right: [C, D'] sum of a_p x_q.
      ab: [C] sum of a_p a_q.
    """

    x: Float[Array, "M D"]
    own: Float[Array, "M U d d"]
    own_weighted: Float[Array, "M D"]
    a: Float[Array, " M"]
    aa: Float[Array, " M"]
    cross: Float[Array, "C D D"]
    left: Float[Array, "C D"]
    right: Float[Array, "C D"]
    ab: Float[Array, " C"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("shift", "exponent", "sums", "carry", "rows", "dropped"),
    meta_fields=("pairs", "fast", "mesh"),
)
@dataclass(frozen=True)
class Moments:
    """The state of a stream.

    Attributes:
      shift: [M, D] float32, subtracted from every row; fixed once a row has counted.
      exponent: [M] int32; the sums are in units of `2**exponent`.
      sums: of all batches.
      carry: the excess that rounding has put into the sums.
      rows: [2] int32, rows that counted: `rows[0] + rows[1] * 2**24`, exact beyond 10^12.
      dropped: [2] int32, valid rows left out because one of the models was not finite there.
      pairs: of models, static.
      fast: whether matmuls take `FAST`, static.
      mesh: the mesh that the D x D sums are spread over, static; or None.
    """

    shift: Float[Array, "M D"]
    exponent: Int[Array, " M"]
    sums: MomentSums
    carry: MomentSums
    rows: Int[Array, " 2"]
    dropped: Int[Array, " 2"]
    pairs: tuple[tuple[int, int], ...]
    fast: bool
    mesh: Mesh | None


def crossed_pairs(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the products of two different models that the pairs need, each once, in order."""
    return sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]})


def crossed_side(pairs: Sequence[tuple[int, int]], side: int) -> Int[np.ndarray, " C"]:
    """Returns the first (0) or the second (1) model of each of `crossed_pairs`, int32."""
    return np.asarray([pair[side] for pair in crossed_pairs(pairs)], np.int32)


def blocks(width: int) -> tuple[int, int]:
    """Returns the blocks per side and their width; together they have at least `width` columns."""
    # As many blocks as are wide enough; the last one may hold padding.
    count = max(1, min(MAX_BLOCKS, width // MIN_BLOCK))
    return count, -(-width // count)


def strips(width: int) -> list[tuple[int, int]]:
    """Returns columns [start, stop) whose products with all from `start` on are computed at once: whole blocks."""
    count, block = blocks(width)
    # Whole blocks, at least MIN_STRIP columns.
    together = -(-MIN_STRIP // block) * block
    return [(at, min(at + together, count * block)) for at in range(0, count * block, together)]


def start_stream(
    shift: Float[Array, "M D"], pairs: Sequence[tuple[int, int]], *, fast: bool = False, mesh: Mesh | None = None
) -> Moments:
    """Returns an empty stream; for K layers use `jax.vmap(lambda s: start_stream(s, pairs))(shifts)`.

    Args:
      shift: [M, D] vectors near the means of the models, the same for all streams that are to be merged.
      pairs: (a, b) indices of the models to compare.
      fast: fewer passes per matmul than full float32 takes; adds an error of about 2e-6 on TPU, and up to 5e-5 on
        GPU, where one pass of TF32 is left.
      mesh: spreads the D x D sums over its axes `fsdp` and `tensor`.

    Raises:
      Refusal: 3 for pairs that name no model.
    """
    # [M, D]
    shift = jnp.asarray(shift, jnp.float32)
    models, width = shift.shape
    pairs = tuple((int(a), int(b)) for a, b in pairs)
    check_pairs(pairs, models)
    count, block = blocks(width)
    padded, cross = count * block, len(crossed_pairs(pairs))

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.float32)

    empty = MomentSums(
        x=zeros(models, padded),
        own=zeros(models, count * (count + 1) // 2, block, block),
        own_weighted=zeros(models, padded),
        a=zeros(models),
        aa=zeros(models),
        cross=zeros(cross, padded, padded),
        left=zeros(cross, padded),
        right=zeros(cross, padded),
        ab=zeros(cross),
    )
    none = jnp.zeros(2, jnp.int32)
    # The smallest unit that `power_of_two` can express; the first batch raises it to its own.
    return placed(Moments(shift, jnp.full(models, -126, jnp.int32), empty, empty, none, none, pairs, fast, mesh))


def _spread(sums: MomentSums, mesh: Mesh | None) -> MomentSums:
    """Spreads the D x D sums by their first column axis over the devices it divides over; keeps the others whole."""
    if mesh is None:
        return sums

    def over(x: jax.Array, spread: bool = False) -> jax.Array:
        # Axis -2 holds the columns of the left factor, which the products deal over `tensor` too. They go to as many
        # devices as divide their number.
        spec: list[tuple[str, ...] | None] = [None] * x.ndim
        for axes in (("tensor", "fsdp"), ("fsdp",), ("tensor",)):
            devices = math.prod(mesh.shape[name] for name in axes)
            if spread and devices > 1 and x.shape[-2] % devices == 0:
                spec[-2] = axes
                break
        return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return MomentSums(*map(over, sums))._replace(own=over(sums.own, True), cross=over(sums.cross, True))


def placed(state: Moments) -> Moments:
    """Puts a state, of one layer or of several stacked, where `start_stream` puts it.

    A program that takes the state that it returned is then compiled once.
    """
    if state.mesh is None:
        return state
    # Small leaves are whole on every device.
    whole = NamedSharding(state.mesh, PartitionSpec())
    small = {name: getattr(state, name) for name in ("shift", "exponent", "rows", "dropped")}
    small = lax.with_sharding_constraint(small, whole)
    return replace(state, sums=_spread(state.sums, state.mesh), carry=_spread(state.carry, state.mesh), **small)


def _place_rows(x: Float[Array, "M R ..."], mesh: Mesh | None, by_column: bool = False) -> Float[Array, "M R ..."]:
    """Spreads rows over `fsdp`; `by_column` spreads the last axis over `tensor`, for a part of a product per device."""
    if mesh is None or mesh.size == 1 or x.shape[1] % mesh.shape["fsdp"]:
        return x
    # [M, R, ...]: rows over `fsdp`, so a product over rows is a partial sum per device.
    spec: list[str | None] = [None, "fsdp"] + [None] * (x.ndim - 2)
    if by_column and x.shape[-1] % mesh.shape["tensor"] == 0:
        spec[-1] = "tensor"
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def _scaled(sums: MomentSums, by: Float[Array, " M"], pairs: Sequence[tuple[int, int]]) -> MomentSums:
    """Returns the sums in other units: rows of model m times `by[m]`."""
    # [C] each. `by` is at least 2^-63, so its square is a normal float32; higher powers are applied one after the
    # other, since they need not be.
    p, q = by[crossed_side(pairs, 0)], by[crossed_side(pairs, 1)]
    return MomentSums(
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


def _in_units(state: Moments, exponent: Int[Array, " M"]) -> Moments:
    """Returns the stream in larger units.

    The ratio of the units is limited to 2^-63, whose square is still a normal float32. Sums that should shrink by more
    are negligible in the new unit as they are.
    """
    by = power_of_two(jnp.maximum(state.exponent - exponent, -63))
    sums, carry = _scaled(state.sums, by, state.pairs), _scaled(state.carry, by, state.pairs)
    return replace(state, exponent=exponent, sums=sums, carry=carry)


def _add_sums(state: Moments, more: MomentSums) -> tuple[MomentSums, MomentSums]:
    """Adds `more` to the sums; returns sums and carry, spread over the mesh."""
    sums, carry = add_compensated(state.sums, state.carry, more)
    return _spread(sums, state.mesh), _spread(carry, state.mesh)


def _add_count(total: Int[Array, " 2"], more: Int[Array, " ..."]) -> Int[Array, " 2"]:
    """Adds to a count in two parts another one [2], or one number [] below 2**24."""
    # Parts are added one by one, and what the lower part has above 24 bits moves to the higher.
    low, high = (total[0] + more, total[1]) if more.ndim == 0 else (total[0] + more[0], total[1] + more[1])
    return jnp.stack([low & ((1 << COUNT_BITS) - 1), high + (low >> COUNT_BITS)])


def with_shift(state: Moments, x: Float[Array, "M R D"], valid: Bool[Array, " R"]) -> Moments:
    """Sets the shift to the mean of these rows if no row has counted yet; arguments as in `update`.

    Streams that are merged must have the same shift, so this is only for a stream that takes all rows itself.
    """

    def mean() -> jax.Array:
        # [R], then a plain float32 mean [M, D]: any vector near the mean will do.
        kept = valid & jnp.isfinite(x).all((0, 2))
        total = jnp.where(kept[:, None], x.astype(jnp.float32), 0).sum(axis=1)
        return total / jnp.maximum(kept.sum(), 1)

    return replace(state, shift=lax.cond((state.rows == 0).all(), mean, lambda: state.shift))


@jax.jit
def update(state: Moments, x: Float[Array, "M R D"], valid: Bool[Array, " R"]) -> Moments:
    """Adds a batch to a stream.

    Args:
      state: the stream so far.
      x: [M, R, D] rows of the M models, paired, of any floating dtype; R below 2**24.
      valid: [R] bool; rows that are not valid, or not finite in one of the models, add nothing.
    """
    # [M, R, D]. Shifted before anything is squared, which is what keeps digits under a large offset.
    x = x.astype(jnp.float32) - state.shift[:, None]
    kept = valid & jnp.isfinite(x).all((0, 2))
    x = jnp.where(kept[:, None], x, 0)
    # [M]. The unit only grows, so sums from before are scaled down and never overflow.
    exponent = jnp.maximum(state.exponent, peak_exponent(jnp.abs(x).max((1, 2))))
    state = _in_units(state, exponent)
    x = x * power_of_two(-exponent)[:, None, None]
    count, block = blocks(x.shape[2])
    # [M, R, D'], padded with columns of zeros to whole blocks
    x = _place_rows(jnp.pad(x, ((0, 0), (0, 0), (0, count * block - x.shape[2]))), state.mesh)
    sums, carry = _add_sums(state, _batch_sums(x, state.pairs, FAST if state.fast else EXACT, state.mesh))
    return replace(
        state,
        sums=sums,
        carry=carry,
        rows=_add_count(state.rows, kept.sum(dtype=jnp.int32)),
        dropped=_add_count(state.dropped, (valid & ~kept).sum(dtype=jnp.int32)),
    )


def _batch_sums(
    x: Float[Array, "M R D"], pairs: Sequence[tuple[int, int]], precision: lax.Precision, mesh: Mesh | None = None
) -> MomentSums:
    """Computes the sums of one batch [M, R, D'] float32."""
    p, q = crossed_side(pairs, 0), crossed_side(pairs, 1)
    a = jnp.square(x).sum(2)  # [M, R]
    none = jnp.zeros((0, x.shape[2], x.shape[2]), jnp.float32)
    product = functools.partial(jnp.einsum, precision=precision)
    # Matrix-vector products cost little, so they are exact even where `fast` products are asked for.
    weighted = functools.partial(jnp.einsum, "mr,mri->mi", precision=EXACT)
    # The left factor by columns over `tensor`, the right one whole there: each device gets its part of the product.
    dealt = _place_rows(x, mesh, by_column=True)
    return MomentSums(
        x=x.sum(1),
        own=_own_blocks(x, product, mesh),
        own_weighted=weighted(a, x),
        a=a.sum(1),
        aa=jnp.square(a).sum(1),
        # [D', D'] one by one: a batched product would copy the rows of both sides.
        cross=jnp.stack([product("ri,rj->ij", dealt[a], x[b]) for a, b in zip(p, q, strict=True)]) if len(p) else none,
        left=weighted(a[q], x[p]),
        right=weighted(a[p], x[q]),
        ab=(a[p] * a[q]).sum(1),
    )


def _own_blocks(
    x: Float[Array, "M R D"], product: Callable[..., jax.Array], mesh: Mesh | None
) -> Float[Array, "M U d d"]:
    """Computes the upper blocks of `x_m^T x_m`, several rows of blocks at once: wide products, no copy of the rows."""
    count, block = blocks(x.shape[2])
    # [M, R, count, d]. The columns of every block are dealt over `tensor`, so each device has a part of every strip. If
    # the whole width were dealt, a strip would lie on a few devices and would have to be sent to the others.
    dealt = _place_rows(x.reshape(*x.shape[:2], count, block), mesh, by_column=True)
    upper = []
    for start, stop in strips(x.shape[2]):
        left = dealt[:, :, start // block : stop // block].reshape(*x.shape[:2], stop - start)
        strip = product("mri,mrj->mij", left, x[:, :, start:])  # [M, stop - start, D' - start]
        for low in range(0, stop - start, block):
            row = strip[:, low : low + block, low:]  # one row of blocks, from the diagonal on
            upper.append(row.reshape(*row.shape[:2], -1, block).swapaxes(1, 2))
    return jnp.concatenate(upper, 1)


@jax.jit
def merge(a: Moments, b: Moments) -> Moments:
    """Joins two streams that started from the same shifts and pairs; any leading axes must be vmapped over."""
    exponent = jnp.maximum(a.exponent, b.exponent)
    a, b = _in_units(a, exponent), _in_units(b, exponent)
    sums, carry = _add_sums(a, b.sums)
    return replace(
        a,
        sums=sums,
        # The excess of the sums of `b` is now part of the total too.
        carry=jax.tree.map(jnp.add, carry, b.carry),
        rows=_add_count(a.rows, b.rows),
        dropped=_add_count(a.dropped, b.dropped),
    )
