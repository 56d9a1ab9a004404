"""Exact CKA, biased and debiased, of every state (model and layer) against every other.

A tile of the Gram matrices of all S states is computed, `K_s = Z_s[I] Z_s[J]^T`, and contracted over its entries,
`off += K K^T` [S, S]. This costs little more than the Gram matrices that same-layer CKA needs. Only tiles of the upper
half are computed, and nothing has size n x n. Rows are centred when a tile is read, so no centred copy of the states
exists. They stay where they are: a device gathers one tile of one state at a time.

Shape letters: S states, n rows, m rows of one device, D width, I and J rows of a tile, c rows of a device's chunk of a
tile.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.similarity import gram
from mossa_jax.similarity.checks import check_labels, check_states, mesh_of
from mossa_jax.similarity.estimators import (
    ESTIMATORS,
    MIN_ROWS,
    Items,
    item_debiased,
    ratio,
    undefined_reasons,
    variance_missing,
    whole_products,
)
from mossa_jax.similarity.items import ItemRows, item_rows
from mossa_jax.similarity.kahan import add_compensated
from mossa_jax.similarity.layerwise import replicate

# The Gram blocks of all states at one tile may take this many bytes, or one part in this many of the device's own rows,
# whichever is more.
BLOCK_BYTES = 64 << 20
BLOCK_SHARE = 16
# Blocks with at most this many entries are contracted row by row: slower, but with short float32 sums.
SMALL_BLOCK = 1 << 16
# Larger ones are contracted in slices of at most this many entries of all states: 8 MiB, which fit a processor's cache.
SLICE_ENTRIES = 1 << 21


@dataclasses.dataclass(frozen=True)
class Matrix:
    """CKA of S states with one another; from states [M, K, n, D], state `m * K + k` is layer k of model m.

    Attributes:
      biased: [S, S] float64, symmetric, 1 on the diagonal; NaN exactly where `undefined` is not empty.
      debiased: [S, S] the same, signed, never clamped.
      undefined: [S, S, 2] the reason in words, or ""; last axis in the order of `ESTIMATORS`.
      participation_ratio: [S] `(tr C)^2 / tr C^2` of the covariance; NaN for a state without variance.
      offset: [S] norm of the mean row over the root mean square norm of the centred rows.
      n: rows that counted.
      dropped: valid rows left out, in all states at once, because one of them was not finite.
    """

    biased: Float[np.ndarray, "S S"]
    debiased: Float[np.ndarray, "S S"]
    undefined: np.ndarray
    participation_ratio: Float[np.ndarray, " S"]
    offset: Float[np.ndarray, " S"]
    n: int
    dropped: int


class MatrixSums(NamedTuple):
    """Sums over the rows, replicated over the devices.

    Attributes:
      kept: [n] bool, the rows that count.
      off: [S, S] off-diagonal sums.
      r: [S, n] squared row norms.
      mean_square: [S] as in `gram.Centred`.
      exponent: [S] as in `gram.Centred`.
      q: [S, n] as in `items.ItemSums`; None if every row is an item.
      within: [S, S] sums over the pairs of rows of one item, a row with itself included; or None.
    """

    kept: Bool[Array, " n"]
    off: Float[Array, "S S"]
    r: Float[Array, "S n"]
    mean_square: Float[Array, " S"]
    exponent: Int[Array, " S"]
    q: Float[Array, "S n"] | None = None
    within: Float[Array, "S S"] | None = None


def tile_rows(states: int, rows: int, width: int, devices: int) -> int:
    """Returns the rows of a gathered tile: those of `gram.tile_size`, or fewer if the blocks of all states must fit."""
    # S blocks of t x t float32 have to fit. A multiple of 16, so that the halves of a tile are multiples of 8.
    room = math.isqrt(_block_bytes(states, rows, width, devices) // (4 * states)) // 16 * 16
    return max(8, min(gram.tile_size(rows), room))


def _block_bytes(states: int, rows: int, width: int, devices: int) -> int:
    """Returns the bytes that the Gram blocks of all states may take on a device."""
    return max(BLOCK_BYTES, 4 * states * width * -(-rows // devices) // BLOCK_SHARE)


def _contract(blocks: Float[Array, "S I J"]) -> Float[Array, "S S"]:
    """Returns `<K_s, K_t>` of the Gram blocks of all pairs of states, float32."""
    states, rows, columns = blocks.shape
    if rows * columns <= SMALL_BLOCK:
        # [I, S, S], then summed over I. In a single product a backend may add all entries one after the other, which
        # gathers rounding.
        return jnp.einsum("sij,tij->ist", blocks, blocks, precision=gram.EXACT).sum(0)
    # Halved while that leaves whole rows, so that the slices cover the block without a remainder.
    slice_rows = rows
    while slice_rows % 2 == 0 and states * slice_rows * columns > SLICE_ENTRIES:
        slice_rows //= 2

    def step(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        # [entries, S]: with entries first, the product on a CPU needs no transposed copy.
        entries = lax.dynamic_slice_in_dim(blocks, start, slice_rows, 1).reshape(states, -1).T
        return total + jnp.einsum("ks,kt->st", entries, entries, precision=gram.EXACT), None

    return lax.scan(step, jnp.zeros((states, states), jnp.float32), jnp.arange(0, rows, slice_rows))[0]


def off_diagonal_sums(
    x: Float[Array, "S m D"], kept: Bool[Array, " m"], by: gram.Centring, tile: int, mesh: Mesh | None
) -> Float[Array, "S S"]:
    """Computes `sum_{i != j} K_s[i, j] K_t[i, j]` for all pairs of states, from this device's rows.

    Every device cuts its rows into the same number of chunks. Chunk b of all devices together is tile b. A device
    multiplies its rows of earlier chunks with the tile, and these products count twice. It also multiplies its own
    chunk of the tile with the tile, without the diagonal.

    Args:
      x: [S, m, D] this device's raw rows.
      kept: [m] bool.
      by: centring of all rows, leading axis S.
      tile: rows of a tile.
      mesh: the mesh that the rows are spread over (this is one device's share), or None for one device.

    Returns:
      [S, S] float32, over all devices.
    """
    states, m, width = x.shape
    axes, devices = (mesh.axis_names, mesh.size) if mesh else ((), 1)
    # c: every device has the same share of a tile, rounded up.
    chunk = min(-(-tile // devices), m)
    # Rows of a [rows, tile] block whose S copies fit. On a mesh every block gathers its tile anew, so blocks are as
    # tall as that allows. On one device nothing is gathered, and blocks are square.
    room = _block_bytes(states, m * devices, width, devices) // (4 * states * chunk * devices)
    slab = max(chunk, min(room, gram.MAX_TILE, m)) if mesh else chunk
    product = functools.partial(jnp.matmul, precision=gram.EXACT)

    def rows(s: jax.Array, start: jax.Array, size: int, end: jax.Array | int) -> jax.Array:
        """Returns [size, D] centred rows from `start`, zero from `end` on; a window that passes m starts earlier."""
        # A slice cannot pass the end. Rows before `start` that it then contains are masked, so that none counts twice.
        first = jnp.minimum(start, m - size)
        at = first + jnp.arange(size)
        counted = lax.dynamic_slice_in_dim(kept, first, size) & (at >= start) & (at < end)
        # [1, size, D], not centred
        raw = lax.dynamic_slice(x, (s, first, 0), (1, size, width))
        return gram.centred_rows(raw, counted, jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, s, 1), by))[0]

    def gathered(s: jax.Array, b: jax.Array) -> jax.Array:
        """Returns the [tile, D] centred rows of tile b."""
        # [c, D]
        own = rows(s, b * chunk, chunk, m)
        return lax.all_gather(own, axes, tiled=True) if mesh else own

    def with_itself(b: jax.Array) -> jax.Array:
        """Contracts this device's chunk of tile b with the tile, without the diagonal: [S, S]."""
        # Over all devices these [c, tile] products make up both halves of the tile, so they count once.
        if mesh or chunk % 2 or chunk**2 <= SMALL_BLOCK:
            # The device's own chunk begins at this column of the gathered tile.
            first = lax.axis_index(axes) * chunk if mesh else 0
            diagonal = first + jnp.arange(chunk)[:, None] == jnp.arange(chunk * devices)  # [c, tile]

            def whole(s: jax.Array) -> jax.Array:
                return jnp.where(diagonal, 0, product(rows(s, b * chunk, chunk, m), gathered(s, b).T))

            return _contract(lax.map(whole, jnp.arange(states)))

        # On one device the block is symmetric: two quarters on the diagonal, and one of the others, which counts twice.
        def halves(s: jax.Array) -> tuple[jax.Array, jax.Array]:
            # [tile / 2, D] each
            first, second = jnp.split(gathered(s, b), 2)
            own = jnp.stack([product(first, first.T), product(second, second.T)])
            own = own * (1 - jnp.eye(chunk // 2, dtype=jnp.float32))
            # [tile, tile / 2] and [tile / 2, tile / 2]
            return own.reshape(chunk, chunk // 2), product(first, second.T)

        own, across = lax.map(halves, jnp.arange(states))
        return _contract(own) + 2 * _contract(across)

    def step(total: tuple[jax.Array, jax.Array], b: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        def earlier(at: jax.Array, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            def block(s: jax.Array) -> jax.Array:
                return product(rows(s, at * slab, slab, b * chunk), gathered(s, b).T)  # [slab, tile]

            # Twice, for the mirrored entries below the diagonal.
            return add_compensated(*total, 2 * _contract(lax.map(block, jnp.arange(states))))

        # The number of blocks grows as n^2. Compensated, their sum has the rounding of one addition.
        total = add_compensated(*total, with_itself(b))
        return lax.fori_loop(0, (b * chunk + slab - 1) // slab, earlier, total), None

    zero = jnp.zeros((states, states), jnp.float32)
    # [S, S] each: the sum, and the excess that rounding has put into it.
    value, carry = lax.scan(step, (zero, zero), jnp.arange(-(-m // chunk)))[0]
    return lax.psum(value - carry, axes) if mesh else value - carry


@functools.partial(jax.jit, static_argnames=("tile", "mesh"))
def matrix_sums(
    states: Float[Array, "... n D"],
    valid: Bool[Array, " n"],
    *,
    tile: int,
    mesh: Mesh | None,
    items: ItemRows | None = None,
) -> MatrixSums:
    """Computes everything of the matrix that needs the rows, in one program.

    Args:
      states: [..., n, D] floating; the leading axes together are the S states.
      valid: [n] bool.
      tile: rows of a tile.
      mesh: the mesh that the rows are spread over, or None for one device.
      items: which rows belong together; None if none do.
    """
    n = states.shape[-2]
    states = states.reshape(-1, *states.shape[-2:])  # [S, n, D]

    # State by state: a row counts if it is finite in all of them.
    def finite(kept: jax.Array, s: jax.Array) -> tuple[jax.Array, None]:
        return kept & jnp.isfinite(lax.dynamic_index_in_dim(states, s, keepdims=False)).all(1), None

    kept = lax.scan(finite, jnp.asarray(valid), jnp.arange(states.shape[0]))[0]
    # Devices need equal shares of the rows. Padding spreads them anew, which costs a copy.
    if mesh and n % mesh.size:
        states = jnp.pad(states, ((0, 0), (0, -n % mesh.size), (0, 0)))
        kept = jnp.pad(kept, (0, -n % mesh.size))

    def one_state(s: jax.Array) -> tuple[gram.Centring, jax.Array]:
        x = lax.dynamic_index_in_dim(states, s, 0)  # [1, n, D]
        by = gram.centring(x, kept)
        # [1, n]; the centred rows themselves are not kept.
        r = jnp.square(gram.centred_rows(x, kept, by)).sum(2)
        return jax.tree.map(lambda a: a[0], by), r[0]

    # Leading axis S on every array of the centring; r is [S, n].
    by, r = lax.map(one_state, jnp.arange(states.shape[0]))
    if mesh:
        # States and `kept` are spread by rows over all axes of the mesh; the centring is whole on every device.
        whole, spread = PartitionSpec(), PartitionSpec(mesh.axis_names)
        run = jax.shard_map(
            functools.partial(off_diagonal_sums, tile=tile, mesh=mesh),
            mesh=mesh,
            in_specs=(PartitionSpec(None, mesh.axis_names), spread, whole),
            out_specs=whole,
            check_vma=False,
        )
        off = run(states, kept, by)
    else:
        off = off_diagonal_sums(states, kept, by, tile, None)
    q = within = None
    if items is not None:
        q, within = _within_items(states, kept, by, items.padded(states.shape[1] - n))
        q = q[:, :n]
    return replicate(MatrixSums(kept[:n], off, r[:, :n], by.mean_square, by.exponent, q, within), mesh)


def _within_items(
    states: Float[Array, "S n D"], kept: Bool[Array, " n"], by: gram.Centring, items: ItemRows
) -> tuple[Float[Array, "S n"], Float[Array, "S S"]]:
    """Returns `q` and `within` of `MatrixSums`."""
    count, n, _ = states.shape

    # As many steps as the largest item has rows: the number is no shape, so tasks share the program.
    def step(d: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        at, q, within = carry

        def of_state(s: jax.Array) -> jax.Array:
            x = lax.dynamic_index_in_dim(states, s, 0)  # [1, n, D]
            rows = gram.centred_rows(x, kept, jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, s, 1), by))[0]
            # [n]: each row with the d-th behind it in its item.
            return jnp.where(d < items.size, (rows * rows[at]).sum(1), 0)

        products = lax.map(of_state, jnp.arange(count))  # [S, n]
        return items.following[at], q + products, within + jnp.matmul(products, products.T, precision=gram.EXACT)

    zeros = (jnp.zeros((count, n), jnp.float32), jnp.zeros((count, count), jnp.float32))
    _, q, within = lax.fori_loop(0, items.depth, step, (jnp.arange(n, dtype=jnp.int32), *zeros))
    return q, within


def cka_matrix(
    states: Float[Array, "... n D"],
    valid: np.ndarray | jax.Array,
    *,
    items: np.ndarray | Sequence | None = None,
) -> Matrix:
    """Computes exact linear CKA of every state against every other.

    On a mesh the rows stay spread: beside its own rows a device holds one gathered tile of one state and the tile's
    Gram blocks (`BLOCK_BYTES` or a sixteenth of its own rows, whichever is more). If n is no multiple of the number of
    devices, the rows are copied once to be padded.

    Args:
      states: [M, K, n, D] or [S, n, D] floating; if sharded by `NamedSharding`, the work is dealt over its mesh.
      valid: [n] bool, rows that are no padding; on the host or replicated.
      items: [n] ids: rows with the same one are related, and pairs of them are left out of the debiased values, as in
        `compare_states`. By default every row is an item of its own.

    Returns:
      The values of all pairs of states.

    Raises:
      Refusal: 3 for arguments that do not fit.
    """
    if not isinstance(states, jax.Array):
        states = jnp.asarray(states)
    valid = np.asarray(valid)
    check_states(states, valid, may_be_flat=True)
    mesh = mesh_of(states)
    rows, width = states.shape[-2:]
    tile = tile_rows(math.prod(states.shape[:-2]), rows, width, mesh.size if mesh else 1)
    check_labels(items, None, rows)
    if items is not None and len(np.unique(np.asarray(items)[valid])) == valid.sum():
        # Every row is its own item: the program without items has the same values, and may be compiled already.
        items = None
    related = None if items is None else item_rows(np.asarray(items), valid)
    sums = jax.tree.map(np.asarray, matrix_sums(states, valid, tile=tile, mesh=mesh, items=related))
    return _combine(sums, valid, float(jnp.finfo(states.dtype).eps), items)


def _items_of(items: np.ndarray | Sequence, kept: Bool[np.ndarray, " n"]) -> Items:
    """Returns the items of the rows that count."""
    _, slot, sizes = np.unique(np.asarray(items)[kept], return_inverse=True, return_counts=True)
    return Items(slot.reshape(-1), sizes)


def _item_debiased(sums: MatrixSums, off: Float[np.ndarray, "S S"], items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Returns the debiased products of rows that belong to items, and their rounding, each [S, S]."""
    assert sums.q is not None and sums.within is not None
    q = np.asarray(sums.q)[:, np.asarray(sums.kept)].astype(np.float64)  # [S, n]
    within = np.asarray(sums.within, np.float64)
    # One state against all others at a time: [S, S, n] would be large.
    products = [item_debiased(off[s] - within[s], (np.broadcast_to(q[s], q.shape), q), items) for s in range(len(q))]
    values, noise = (np.stack(part) for part in zip(*products, strict=True))
    return (values + values.T) / 2, noise


def _combine(
    sums: MatrixSums, valid: Bool[np.ndarray, " n"], eps: float, items: np.ndarray | Sequence | None
) -> Matrix:
    """Combines the sums of the devices in float64; `eps` is the machine epsilon of the stored states."""
    kept = np.asarray(sums.kept)
    related = None if items is None else _items_of(items, kept)
    n = int(kept.sum())
    r = np.asarray(sums.r)[:, kept].astype(np.float64)  # [S, n]
    count = r.shape[0]
    trace = r.sum(1)  # [S]
    mean_square = np.asarray(sums.mean_square, np.float64) * 4.0 ** -np.asarray(sums.exponent, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        # [S] each, in the unit of the centred rows, so the ratio has none.
        offset = np.sqrt(mean_square * n / trace)
    values = {name: np.full((count, count), np.nan) for name in ESTIMATORS}
    units, what = (n, "finite rows") if related is None else (len(related.sizes), "items")
    undefined = np.full((count, count, len(ESTIMATORS)), f"{units} {what}; at least {MIN_ROWS} are needed", object)
    participation_ratio = np.full(count, np.nan)
    if units >= MIN_ROWS:
        off = np.asarray(sums.off, np.float64)  # [S, S]
        # The two triangles are equal up to rounding; this makes the values exactly symmetric.
        off = (off + off.T) / 2
        # Diagonals r_s . r_t and products of traces, for all pairs of states at once.
        diagonal = r @ r.T
        biased, debiased, noise = whole_products(off, diagonal, np.outer(trace, trace), n)  # each [S, S]
        if related is not None:
            debiased, noise = _item_debiased(sums, off + diagonal, related)
        is_flat = variance_missing(trace, mean_square, n, eps)
        # [S] bool each
        vanishing = np.diag(debiased) <= np.diag(noise)
        with np.errstate(divide="ignore", invalid="ignore"):
            participation_ratio = np.where(is_flat, np.nan, trace**2 / np.diag(biased))
        for e, (name, products) in enumerate(zip(ESTIMATORS, (biased, debiased), strict=True)):
            undefined[..., e] = undefined_reasons(name, (is_flat[:, None], is_flat), (vanishing[:, None], vanishing))
            if name == "debiased" and related is not None and related.too_large:
                undefined[..., e][undefined[..., e] == ""] = "one item has half of the rows or more"
            value = ratio(products, np.diag(products)[:, None], np.diag(products))
            values[name] = np.where(undefined[..., e] == "", value, np.nan)
    return Matrix(
        **values,
        undefined=undefined,
        participation_ratio=participation_ratio,
        offset=offset,
        n=n,
        dropped=int(valid.sum()) - n,
    )
