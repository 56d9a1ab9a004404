"""Row sums of Gram products of all models at every layer, tile by tile on the device.

One program: rows that count, centring in float32, tiles of the Gram matrices (upper half only, never n x n),
permutations. Nothing is divided and nothing is cancelled here; the float64 host does that from the row sums.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mossa_jax.similarity import null

EXACT = lax.Precision.HIGHEST
MAX_TILE = 1024


class Centred(NamedTuple):
    """Centred rows of M states and what was taken out of them.

    `rows` [M, n, D] float32, zero where a row does not count, scaled by a power of two; `mean_square` [M] the
    squared norm of the mean before that last scaling, whose exponent is `exponent` [M] int32: in the unit of
    `rows` it is `mean_square * 4**-exponent`.
    """

    rows: jax.Array
    mean_square: jax.Array
    exponent: jax.Array


class Sums(NamedTuple):
    """Device results of all layers, replicated; K layers first, n row slots last.

    `kept` [n] bool; `g` [K, C, n] off-diagonal row sums of the C combinations; `r` [K, M, n] squared row norms;
    `cross` [K, M, M, n] with `cross[k, a, b] = K_a r_b`; `mean_square`, `exponent` [K, M]; `permuted` [K, P, 2, R]
    (`<K, P L P^T>` and `r . P s`, R = 0 without permutations).
    """

    kept: jax.Array
    g: jax.Array
    r: jax.Array
    cross: jax.Array
    mean_square: jax.Array
    exponent: jax.Array
    permuted: jax.Array


class Centring(NamedTuple):
    """What turns raw rows of M states into centred ones: `((x * scale) - mean - rest) * rescale`.

    `scale`, `rescale` [M] powers of two; `mean`, `rest` [M, D] float32, the mean in two parts; `mean_square` [M],
    `exponent` [M] as in `Centred`.
    """

    scale: jax.Array
    mean: jax.Array
    rest: jax.Array
    rescale: jax.Array
    mean_square: jax.Array
    exponent: jax.Array


def peak_exponent(peak: jax.Array) -> jax.Array:
    """Exponent of the power of two below each `peak` (float32, not negative), at most 126; -127 for zero."""
    return jnp.minimum((lax.bitcast_convert_type(peak, jnp.int32) >> 23) - 127, 126)


def power_of_two(exponent: jax.Array) -> jax.Array:
    """Exactly `2**exponent`, float32, for int32 exponents from -126 to 127."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def centring(x: jax.Array, kept: jax.Array) -> Centring:
    """The centring of every state over its kept rows, in two float32 passes.

    The second pass removes what rounding of the first mean left, which at offsets of 1000 is the whole error.

    Args:
        x: [M, n, D] states of any floating dtype.
        kept: [n] bool, rows that count.
    """
    mask = kept[None, :, None]
    count = jnp.maximum(kept.sum(), 1).astype(jnp.float32)
    x = jnp.where(mask, x.astype(jnp.float32), 0)
    scale = power_of_two(-peak_exponent(jnp.max(jnp.abs(x), axis=(1, 2))))
    x = x * scale[:, None, None]
    mean = x.sum(1) / count
    x = jnp.where(mask, x - mean[:, None], 0)
    rest = x.sum(1) / count
    exponent = peak_exponent(jnp.max(jnp.abs(jnp.where(mask, x - rest[:, None], 0)), axis=(1, 2)))
    return Centring(scale, mean, rest, power_of_two(-exponent), jnp.square(mean + rest).sum(1), exponent)


def centred_rows(x: jax.Array, kept: jax.Array, by: Centring) -> jax.Array:
    """[M, n, D] float32 rows of `x` centred and scaled; zero where `kept` [n] is false."""
    scale, mean, rest, rescale = (
        by.scale[:, None, None],
        by.mean[:, None],
        by.rest[:, None],
        by.rescale[:, None, None],
    )
    return jnp.where(kept[None, :, None], (x.astype(jnp.float32) * scale - mean - rest) * rescale, 0)


def centre(x: jax.Array, kept: jax.Array) -> Centred:
    """Takes the mean of the kept rows out of every state.

    Args:
        x: [M, n, D] states of any floating dtype.
        kept: [n] bool, rows that count.
    """
    by = centring(x, kept)
    return Centred(centred_rows(x, kept, by), by.mean_square, by.exponent)


def combinations(models: int, pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Whose Gram products are summed for pairs of so many models: each model's own, then those of different ones."""
    own = tuple((model, model) for model in range(models))
    return own + tuple(sorted({(min(pair), max(pair)) for pair in pairs} - set(own)))


def tile_pairs(tiles: int, shares: int) -> np.ndarray:
    """Tile indices I <= J with weight 1, dealt evenly: [pairs, 3] int32, padded by weight 0 to `shares`."""
    upper = [(i, j, 1) for i in range(tiles) for j in range(i, tiles)]
    upper += [(0, 0, 0)] * (-len(upper) % shares)
    # A device takes a contiguous run of the list, so deal the long list like cards first.
    return np.asarray(upper, np.int32).reshape(-1, shares, 3).transpose(1, 0, 2).reshape(-1, 3)


def tile_size(n: int) -> int:
    """Rows per tile: a quarter of the rows within 128 and `MAX_TILE`, then evened out to multiples of 8.

    Diagonal tiles are computed whole, so fewer than four tiles a side would waste much of the half that is saved.
    """
    tiles = max(1, -(-n // min(max(n // 4, 128), MAX_TILE)))
    return max(8, -(-n // (8 * tiles)) * 8)


def gram_row_sums(x: jax.Array, pairs: jax.Array, combinations: Sequence[tuple[int, int]], tile: int) -> jax.Array:
    """`sum_{j != i} K_a[i, j] K_b[i, j]` over the given tiles, for every combination (a, b).

    Args:
        x: [M, n, D] float32 centred rows, n a multiple of `tile`.
        pairs: [p, 3] int32 tile indices I <= J and a weight (0 skips).
        combinations: which pairs of the M states.
        tile: rows per tile.

    Returns:
        [C, n] float32.
    """
    left = np.asarray([a for a, _ in combinations])
    right = np.asarray([b for _, b in combinations])
    off_diagonal = 1 - jnp.eye(tile, dtype=jnp.float32)

    def step(g: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        i, j, weight = pair[0], pair[1], pair[2].astype(jnp.float32)
        rows = lax.dynamic_slice_in_dim(x, i * tile, tile, 1)
        columns = lax.dynamic_slice_in_dim(x, j * tile, tile, 1)
        gram = jnp.einsum("mid,mjd->mij", rows, columns, precision=EXACT)
        gram = gram * jnp.where(i == j, off_diagonal, 1) * weight
        product = gram[left] * gram[right]
        for start, axis, use in ((i, 2, 1.0), (j, 1, jnp.where(i == j, 0.0, 1.0))):
            old = lax.dynamic_slice_in_dim(g, start * tile, tile, 1)
            g = lax.dynamic_update_slice_in_dim(g, old + use * product.sum(axis), start * tile, 1)
        return g, None

    return lax.scan(step, jnp.zeros((len(combinations), x.shape[1]), jnp.float32), pairs)[0]


@functools.partial(jax.jit, static_argnames=("combinations", "pairs", "tile", "mesh"))
def sums(
    states: jax.Array,
    valid: jax.Array,
    ranks: jax.Array,
    *,
    combinations: tuple[tuple[int, int], ...],
    pairs: tuple[tuple[int, int], ...],
    tile: int,
    mesh: Mesh | None,
) -> Sums:
    """All row sums of all layers, in one program.

    Args:
        states: [M, K, n, D] floating.
        valid: [n] bool.
        ranks: [R, n] int32, random ranks of the valid rows, one line per permutation (R may be 0).
        combinations: pairs of models whose Gram products are summed.
        pairs: pairs of models whose permutations are summed.
        tile: rows per Gram tile.
        mesh: the mesh over which tiles and permutations are dealt, or None for one device.
    """
    kept = valid & jnp.isfinite(states).all((0, 1, 3))
    padding = -states.shape[2] % tile
    kept_padded = jnp.pad(kept, (0, padding))
    shares = mesh.size if mesh else 1
    tiles = jnp.asarray(tile_pairs(kept_padded.shape[0] // tile, shares))
    # Permutations are dealt over the devices too; the surplus lines are cut off at the end.
    count = ranks.shape[0]
    permutations = null.permutations(jnp.pad(ranks, ((0, -count % shares), (0, padding))), kept_padded)

    def products(x: jax.Array, r: jax.Array, tiles: jax.Array, permutations: jax.Array):
        return gram_row_sums(x, tiles, combinations, tile), null.permuted_products(x, r, permutations, pairs)

    def dealt(x: jax.Array, r: jax.Array, tiles: jax.Array, permutations: jax.Array):
        g, permuted = products(x, r, tiles, permutations)
        if count:  # an empty array cannot be gathered
            permuted = lax.all_gather(permuted, mesh.axis_names, axis=2, tiled=True)
        return lax.psum(g, mesh.axis_names), permuted

    if mesh:
        whole, share = PartitionSpec(), PartitionSpec(mesh.axis_names)
        run = jax.shard_map(
            dealt, mesh=mesh, in_specs=(whole, whole, share, share), out_specs=(whole, whole), check_vma=False
        )
    else:
        run = products

    def layer(k: jax.Array) -> tuple[jax.Array, ...]:
        x = lax.dynamic_index_in_dim(states, k, axis=1, keepdims=False)
        x, mean_square, exponent = centre(jnp.pad(x, ((0, 0), (0, padding), (0, 0))), kept_padded)
        r = jnp.square(x).sum(2)
        # K 1 = 0, so the mean of r may be taken out: in wide states r is nearly constant.
        spread = jnp.where(kept_padded, r - (r.sum(1) / jnp.maximum(kept.sum(), 1))[:, None], 0)
        weighted = jnp.einsum("mid,ti->mtd", x, spread, precision=EXACT)
        cross = jnp.einsum("mid,mtd->mti", x, weighted, precision=EXACT)
        g, permuted = run(x, r, tiles, permutations)
        n = states.shape[2]
        return g[:, :n], r[:, :n], cross[:, :, :n], mean_square, exponent, permuted[:, :, :count]

    result = Sums(kept, *lax.map(layer, jnp.arange(states.shape[1])))
    if mesh:
        result = lax.with_sharding_constraint(result, NamedSharding(mesh, PartitionSpec()))
    return result
