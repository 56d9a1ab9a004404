"""CKA of every state (model and layer) against every other: exact, biased and debiased, for about the diagonal's price.

A tile of the Gram matrices of all S states is made, `K_s = Z_s[I] Z_s[J]^T`, and contracted over its entries,
`off += K K^T` [S, S]; only tiles of the upper half, nothing of size n x n. Rows are centred as a tile is taken, so that
no centred copy of the states exists, and they stay where they are: a device gathers one tile of one state at a time.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mossa_jax.errors import Refusal
from mossa_jax.similarity import gram
from mossa_jax.similarity.estimators import ESTIMATORS, MIN_ROWS, ratio, reasons, variance_missing, whole_products

# The Gram blocks of all states at one tile: at least this many bytes, at most this share of what a device holds.
BLOCK_BYTES = 64 << 20
BLOCK_SHARE = 16
# Up to so many entries of a block are contracted row by row, which is slower and exact to the last digit.
SMALL_BLOCK = 1 << 16
# Larger ones in parts of at most so many entries of all states, which stay in a processor's cache.
PART_ENTRIES = 1 << 21


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
        dropped: valid rows left out, in all states at once, as one of them was not finite.
    """

    biased: np.ndarray
    debiased: np.ndarray
    undefined: np.ndarray
    participation_ratio: np.ndarray
    offset: np.ndarray
    n: int
    dropped: int


class Sums(NamedTuple):
    """Device results, replicated: `kept` [n] bool; `off` [S, S] off-diagonal sums; `r` [S, n] squared row norms;
    `mean_square`, `exponent` [S] as in `gram.Centred`."""

    kept: jax.Array
    off: jax.Array
    r: jax.Array
    mean_square: jax.Array
    exponent: jax.Array


def tile_rows(states: int, rows: int, width: int, devices: int) -> int:
    """Rows of a gathered tile: as `gram.tile_size`, within the bytes that the blocks of all states may take."""
    room = math.isqrt(_block_bytes(states, rows, width, devices) // (4 * states)) // 16 * 16
    return max(8, min(gram.tile_size(rows), room))


def _block_bytes(states: int, rows: int, width: int, devices: int) -> int:
    return max(BLOCK_BYTES, 4 * states * width * -(-rows // devices) // BLOCK_SHARE)


def _add(total: tuple[jax.Array, jax.Array], more: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kahan addition: (sum, what rounding has put into it too much)."""
    value, excess = total
    term = more - excess
    new = value + term
    # The barrier keeps the compiler from cancelling the compensation algebraically.
    return new, (lax.optimization_barrier(new) - value) - term


def _contract(blocks: jax.Array) -> jax.Array:
    """`<K_s, K_t>` of Gram blocks [S, I, J] -> [S, S] float32."""
    states, rows, columns = blocks.shape
    if rows * columns <= SMALL_BLOCK:  # in one go a backend may add up all entries one after the other
        return jnp.einsum("sij,tij->ist", blocks, blocks, precision=gram.EXACT).sum(0)
    part = rows
    while part % 2 == 0 and states * part * columns > PART_ENTRIES:
        part //= 2

    def step(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        # With entries first the CPU's product needs no transposed copy of its own making.
        entries = lax.dynamic_slice_in_dim(blocks, start, part, 1).reshape(states, -1).T
        return total + jnp.einsum("ks,kt->st", entries, entries, precision=gram.EXACT), None

    return lax.scan(step, jnp.zeros((states, states), jnp.float32), jnp.arange(0, rows, part))[0]


def off_diagonal_sums(x: jax.Array, kept: jax.Array, by: gram.Centring, tile: int, mesh: Mesh | None) -> jax.Array:
    """`sum_{i != j} K_s[i, j] K_t[i, j]` for all pairs of states, from this device's rows.

    Every device cuts its rows into as many chunks; chunk c of all devices together is tile c. A device multiplies its
    rows of earlier chunks with the tile (these products count twice), and its own chunk c, without the diagonal.

    Args:
        x: [S, m, D] this device's raw rows.
        kept: [m] bool.
        by: centring of all rows, leading axis S.
        tile: rows of a tile.
        mesh: over whose axes the rows are spread (this is one device's part), or None for one device.

    Returns:
        [S, S] float32, of all devices.
    """
    states, m, width = x.shape
    axes, devices = (mesh.axis_names, mesh.size) if mesh else ((), 1)
    chunk = min(-(-tile // devices), m)
    room = _block_bytes(states, m * devices, width, devices) // (4 * states * chunk * devices)
    slab = max(chunk, min(room, gram.MAX_TILE, m)) if mesh else chunk
    product = functools.partial(jnp.matmul, precision=gram.EXACT)

    def rows(s: jax.Array, start: jax.Array, size: int, end: jax.Array) -> jax.Array:
        """[size, D] centred rows from `start`, zero from `end` on; a window that would pass m starts earlier."""
        first = jnp.minimum(start, m - size)
        at = first + jnp.arange(size)
        counted = lax.dynamic_slice_in_dim(kept, first, size) & (at >= start) & (at < end)
        raw = lax.dynamic_slice(x, (s, first, 0), (1, size, width))
        return gram.centred_rows(raw, counted, jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, s, 1), by))[0]

    def gathered(s: jax.Array, c: jax.Array) -> jax.Array:
        """[tile, D] centred rows of tile c."""
        own = rows(s, c * chunk, chunk, m)
        return lax.all_gather(own, axes, tiled=True) if mesh else own

    def with_itself(c: jax.Array) -> jax.Array:
        """This device's chunk of tile c with the tile, without the diagonal."""
        if mesh or chunk % 2 or chunk**2 <= SMALL_BLOCK:
            place = lax.axis_index(axes) * chunk if mesh else 0
            diagonal = place + jnp.arange(chunk)[:, None] == jnp.arange(chunk * devices)

            def whole(s: jax.Array) -> jax.Array:
                return jnp.where(diagonal, 0, product(rows(s, c * chunk, chunk, m), gathered(s, c).T))

            return _contract(lax.map(whole, jnp.arange(states)))

        def halves(s: jax.Array) -> tuple[jax.Array, jax.Array]:
            first, second = jnp.split(gathered(s, c), 2)
            own = jnp.stack([product(first, first.T), product(second, second.T)])
            own = own * (1 - jnp.eye(chunk // 2, dtype=jnp.float32))
            return own.reshape(chunk, chunk // 2), product(first, second.T)

        own, across = lax.map(halves, jnp.arange(states))
        return _contract(own) + 2 * _contract(across)

    def step(total: tuple[jax.Array, jax.Array], c: jax.Array):
        def earlier(b: jax.Array, total: tuple[jax.Array, jax.Array]):
            def one(s: jax.Array) -> jax.Array:
                return product(rows(s, b * slab, slab, c * chunk), gathered(s, c).T)

            return _add(total, 2 * _contract(lax.map(one, jnp.arange(states))))

        return lax.fori_loop(0, (c * chunk + slab - 1) // slab, earlier, _add(total, with_itself(c))), None

    zero = jnp.zeros((states, states), jnp.float32)
    value, excess = lax.scan(step, (zero, zero), jnp.arange(-(-m // chunk)))[0]
    return lax.psum(value - excess, axes) if mesh else value - excess


@functools.partial(jax.jit, static_argnames=("tile", "mesh"))
def sums(states: jax.Array, valid: jax.Array, *, tile: int, mesh: Mesh | None) -> Sums:
    """Everything of the matrix that needs the rows, in one program.

    Args:
        states: [..., n, D] floating; the leading axes together are the S states.
        valid: [n] bool.
        tile: rows of a tile.
        mesh: the mesh over whose axes the rows are spread, or None for one device.
    """
    n = states.shape[-2]
    states = states.reshape(-1, *states.shape[-2:])

    def finite(kept: jax.Array, s: jax.Array) -> tuple[jax.Array, None]:
        return kept & jnp.isfinite(lax.dynamic_index_in_dim(states, s, keepdims=False)).all(1), None

    kept = lax.scan(finite, jnp.asarray(valid), jnp.arange(states.shape[0]))[0]
    if mesh and n % mesh.size:  # the rows are spread anew, which costs a copy
        states = jnp.pad(states, ((0, 0), (0, -n % mesh.size), (0, 0)))
        kept = jnp.pad(kept, (0, -n % mesh.size))

    def one(s: jax.Array) -> tuple[gram.Centring, jax.Array]:
        x = lax.dynamic_index_in_dim(states, s, 0)
        by = gram.centring(x, kept)
        r = jnp.square(gram.centred_rows(x, kept, by)).sum(2)
        return jax.tree.map(lambda a: a[0], by), r[0]

    by, r = lax.map(one, jnp.arange(states.shape[0]))
    if mesh:
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
    result = Sums(kept[:n], off, r[:, :n], by.mean_square, by.exponent)
    return lax.with_sharding_constraint(result, NamedSharding(mesh, PartitionSpec())) if mesh else result


def cka_matrix(states: jax.Array, valid: np.ndarray | jax.Array) -> Matrix:
    """Exact linear CKA of every state against every other.

    On a mesh the rows stay spread: beside its own a device holds one gathered tile of one state and the tile's Gram
    blocks (`BLOCK_BYTES` or a sixteenth of its own rows, whichever is more). Where n is no multiple of the number of
    devices, the rows are copied once to be padded.

    Args:
        states: [M, K, n, D] or [S, n, D] floating; if sharded by `NamedSharding`, the work is dealt over its mesh.
        valid: [n] bool, rows that are no padding; on the host or replicated.

    Raises:
        Refusal: code 3, arguments that do not fit.
    """
    if not isinstance(states, jax.Array):
        states = jnp.asarray(states)
    if states.ndim not in (3, 4) or not jnp.issubdtype(states.dtype, jnp.floating):
        raise Refusal(
            3, f"states are {states.dtype}{list(states.shape)}; give floating [models, layers, rows, width] or 3-d"
        )
    valid = np.asarray(valid)
    rows, width = states.shape[-2:]
    if valid.shape != states.shape[-2:-1] or valid.dtype != bool:
        raise Refusal(3, f"valid is {valid.dtype}{list(valid.shape)}; give one bool for each of {rows} rows")
    mesh = states.sharding.mesh if isinstance(states.sharding, NamedSharding) else None
    mesh = mesh if mesh is not None and mesh.size > 1 else None
    eps = float(jnp.finfo(states.dtype).eps)
    tile = tile_rows(math.prod(states.shape[:-2]), rows, width, mesh.size if mesh else 1)
    found = Sums(*(np.asarray(a) for a in sums(states, valid, tile=tile, mesh=mesh)))
    return _combine(found, int(valid.sum()), eps)


def _combine(found: Sums, valid_rows: int, eps: float) -> Matrix:
    """Both estimates from the device's sums, in float64; `eps` of the stored states."""
    n = int(found.kept.sum())
    count = found.r.shape[0]
    r = found.r[:, found.kept].astype(np.float64)
    trace = r.sum(1)
    mean_square = found.mean_square.astype(np.float64) * 4.0 ** -found.exponent.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.sqrt(mean_square * n / trace)
    values = {name: np.full((count, count), np.nan) for name in ESTIMATORS}
    undefined = np.full((count, count, len(ESTIMATORS)), f"{n} finite rows; at least {MIN_ROWS} are needed", object)
    participation = np.full(count, np.nan)
    if n >= MIN_ROWS:
        off = found.off.astype(np.float64)
        off = (off + off.T) / 2
        biased, debiased, noise = whole_products(off, r @ r.T, np.outer(trace, trace), n)
        flat = variance_missing(trace, mean_square, n, eps)
        vanishing = np.diag(debiased) <= np.diag(noise)
        with np.errstate(divide="ignore", invalid="ignore"):
            participation = np.where(flat, np.nan, trace**2 / np.diag(biased))
        for e, (name, own) in enumerate(zip(ESTIMATORS, (biased, debiased), strict=True)):
            undefined[..., e] = reasons(name, (flat[:, None], flat), (vanishing[:, None], vanishing))
            value = ratio(own, np.diag(own)[:, None], np.diag(own))
            values[name] = np.where(undefined[..., e] == "", value, np.nan)
    return Matrix(
        **values,
        undefined=undefined,
        participation_ratio=participation,
        offset=offset,
        n=n,
        dropped=valid_rows - n,
    )
