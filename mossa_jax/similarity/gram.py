"""Row sums of Gram products of all models at every layer, tile by tile on the device.

One program selects the rows that count, centres them in float32, multiplies tiles of the Gram matrices (upper half
only, never n x n) and re-pairs rows for the null. Nothing is divided and nothing is cancelled here: the host does that
in float64, from the row sums.

Shape letters: M models, K layers, n rows, n' rows padded to whole tiles, D width, C combinations of models, P pairs,
R permutations, t rows of a tile, p tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.similarity import items as item_sums
from mossa_jax.similarity import null
from mossa_jax.similarity.items import ItemRows, ItemSums
from mossa_jax.similarity.layerwise import counted_rows, replicate

Tree = TypeVar("Tree")

# Full float32 in every product. By default a TPU would round the factors to bfloat16 and a GPU to TF32.
EXACT = lax.Precision.HIGHEST
# Rows of the largest tile: 4 MiB of float32 per model.
MAX_TILE = 1024


class Centred(NamedTuple):
    """Centred rows of M states, and the size of the means that were subtracted.

    Attributes:
      rows: [M, n, D] float32, zero where a row does not count, scaled by a power of two.
      mean_square: [M] float32, the squared norm of the mean before that scaling: in the unit of `rows` it is
        `mean_square * 4**-exponent`.
      exponent: [M] int32, of that power of two.
    """

    rows: Float[Array, "M n D"]
    mean_square: Float[Array, " M"]
    exponent: Int[Array, " M"]


class Centring(NamedTuple):
    """The numbers that turn raw rows of M states into centred ones: `((x * scale) - mean - rest) * rescale`.

    Attributes:
      scale: [M] float32, powers of two.
      mean: [M, D] float32, the first part of the mean.
      rest: [M, D] float32, the second part of the mean.
      rescale: [M] float32, powers of two.
      mean_square: [M] as in `Centred`.
      exponent: [M] as in `Centred`.
    """

    scale: Float[Array, " M"]
    mean: Float[Array, "M D"]
    rest: Float[Array, "M D"]
    rescale: Float[Array, " M"]
    mean_square: Float[Array, " M"]
    exponent: Int[Array, " M"]


class GramSums(NamedTuple):
    """Sums of all layers, replicated over the devices.

    Attributes:
      kept: [n] bool, the rows that count.
      g: [K, C, n] off-diagonal row sums of the C combinations.
      r: [K, M, n] squared row norms.
      cross: [K, M, M, n] with `cross[k, a, b] = K_a r_b`.
      mean_square: [K, M] as in `Centred`.
      exponent: [K, M] as in `Centred`.
      permuted: [K, P, 2, R], `<K, P L P^T>` and `r . P s`; R = 0 without permutations. With items [K, P, 3, R]: the
        second is `a . P q`, the third the part of the first that pairs of rows of one item make.
      items: None if every row is an item of its own. Otherwise each with K in front; `g` leaves out all pairs of rows
        of one item, and `cross` is empty.
    """

    kept: Bool[Array, " n"]
    g: Float[Array, "K C n"]
    r: Float[Array, "K M n"]
    cross: Float[Array, "K M M n"]
    mean_square: Float[Array, "K M"]
    exponent: Int[Array, "K M"]
    permuted: Float[Array, "K P 2 R"]
    items: ItemSums | None


def peak_exponent(peak: Float[Array, " ..."]) -> Int[Array, " ..."]:
    """Returns the exponent of the power of two below each `peak` (float32, >= 0), at most 126; -127 for zero."""
    # Bits 23 to 30 of a float32 are its exponent plus 127. At most 126, so that 2**-exponent is a normal number too.
    return jnp.minimum((lax.bitcast_convert_type(peak, jnp.int32) >> 23) - 127, 126)


def power_of_two(exponent: Int[Array, " ..."]) -> Float[Array, " ..."]:
    """Returns exactly `2**exponent`, float32, for int32 exponents from -126 to 127."""
    # Set as bits: `exp2` may round, and a scale that is no exact power of two would round every entry.
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def centring(x: Float[Array, "M n D"], kept: Bool[Array, " n"]) -> Centring:
    """Computes the centring of every state over its kept rows, in two float32 passes.

    The second pass removes what rounding of the first mean left, which at offsets of 1000 is the whole error.

    Args:
      x: [M, n, D] states of any floating dtype.
      kept: [n] bool, rows that count.
    """
    # [1, n, 1]
    mask = kept[None, :, None]
    count = jnp.maximum(kept.sum(), 1).astype(jnp.float32)
    # [M, n, D]. Masked first, since rows that do not count may hold NaN or infinities.
    x = jnp.where(mask, x.astype(jnp.float32), 0)
    # Powers of two scale without rounding; afterwards no square overflows or vanishes.
    scale = power_of_two(-peak_exponent(jnp.max(jnp.abs(x), axis=(1, 2))))
    x = x * scale[:, None, None]
    # First pass: the mean, whose rounding is relative to the offset and not to the spread.
    mean = x.sum(1) / count  # [M, D]
    # Second pass: the mean of the differences, which is what the first pass missed.
    x = jnp.where(mask, x - mean[:, None], 0)
    rest = x.sum(1) / count  # [M, D]
    # Centred rows may be far smaller than the offset was, so they get a power of two of their own, [M].
    exponent = peak_exponent(jnp.max(jnp.abs(jnp.where(mask, x - rest[:, None], 0)), axis=(1, 2)))
    return Centring(scale, mean, rest, power_of_two(-exponent), jnp.square(mean + rest).sum(1), exponent)


def centred_rows(x: Float[Array, "M n D"], kept: Bool[Array, " n"], by: Centring) -> Float[Array, "M n D"]:
    """Returns the rows of `x` centred and scaled, float32; zero where `kept` [n] is false."""
    # Each broadcast over rows: [M, 1, 1] or [M, 1, D].
    scale, mean, rest, rescale = (
        by.scale[:, None, None],
        by.mean[:, None],
        by.rest[:, None],
        by.rescale[:, None, None],
    )
    # Subtracted one after the other: the rounded sum `mean + rest` would lose what `rest` holds.
    return jnp.where(kept[None, :, None], (x.astype(jnp.float32) * scale - mean - rest) * rescale, 0)


def centre(x: Float[Array, "M n D"], kept: Bool[Array, " n"]) -> Centred:
    """Subtracts the mean of the kept rows from every state.

    Args:
      x: [M, n, D] states of any floating dtype.
      kept: [n] bool, rows that count.
    """
    by = centring(x, kept)
    return Centred(centred_rows(x, kept, by), by.mean_square, by.exponent)


def gram_combinations(models: int, pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Returns the combinations of models whose Gram products are summed: each with itself, then those of the pairs."""
    # A pair and its reverse have the same product, so each is summed once, smaller index first.
    own = tuple((model, model) for model in range(models))
    return own + tuple(sorted({(min(pair), max(pair)) for pair in pairs} - set(own)))


def tile_pairs(tiles: int, shares: int) -> Int[np.ndarray, "p 3"]:
    """Deals the tiles of the upper half evenly to devices.

    Args:
      tiles: tiles per side of the matrix.
      shares: devices.

    Returns:
      [p, 3] int32: tile indices I <= J and weight 1, padded with weight 0 to a multiple of `shares`.
    """
    upper = [(i, j, 1) for i in range(tiles) for j in range(i, tiles)]
    upper += [(0, 0, 0)] * (-len(upper) % shares)
    # A device takes a contiguous run of the list, so the list is dealt like cards first. Padding is then
    # spread over the devices and not all in the last run.
    return np.asarray(upper, np.int32).reshape(-1, shares, 3).transpose(1, 0, 2).reshape(-1, 3)


def tile_size(n: int) -> int:
    """Returns the rows per tile: a quarter of n between 128 and `MAX_TILE`, evened out to a multiple of 8.

    Diagonal tiles are computed whole, so fewer than four tiles per side would waste much of the half that is saved.
    """
    # As few tiles as the limit allows, then rows are spread evenly over them: the last tile is not mostly padding.
    tiles = max(1, -(-n // min(max(n // 4, 128), MAX_TILE)))
    return max(8, -(-n // (8 * tiles)) * 8)


def add_tile(
    sums: Float[Array, "C n"], values: Float[Array, "C t t"], i: jax.Array, j: jax.Array, tile: int
) -> Float[Array, "C n"]:
    """Adds tile (i, j) of a symmetric matrix to its row sums: its rows and, off the diagonal, its columns.

    Args:
      sums: [C, n] float32 row sums so far.
      values: [C, t, t] the tile's entries.
      i: [] int32, the tile's row of tiles.
      j: [] int32, its column of tiles, i <= j.
      tile: t, rows per tile.
    """
    # Sums over columns [C, t] belong to rows I. By symmetry, sums over rows belong to rows J; on the diagonal these are
    # the same rows, which must not count twice.
    for start, axis, use in ((i, 2, 1.0), (j, 1, jnp.where(i == j, 0.0, 1.0))):
        old = lax.dynamic_slice_in_dim(sums, start * tile, tile, 1)
        sums = lax.dynamic_update_slice_in_dim(sums, old + use * values.sum(axis), start * tile, 1)
    return sums


def gram_row_sums(
    x: Float[Array, "M n D"],
    pairs: Int[Array, "p 3"],
    combinations: Sequence[tuple[int, int]],
    tile: int,
    slot: Int[Array, " n"] | None = None,
) -> Float[Array, "C n"]:
    """Computes `sum_{j != i} K_a[i, j] K_b[i, j]` over the given tiles, for every combination (a, b).

    Args:
      x: [M, n, D] float32 centred rows, n a multiple of `tile`.
      pairs: [p, 3] int32 tile indices I <= J and a weight (0 skips).
      combinations: which pairs of the M states.
      tile: rows per tile.
      slot: [n] int32, the item of a row; pairs of rows of one item are left out. By default every row is an item.

    Returns:
      [C, n] float32.
    """
    left = np.asarray([a for a, _ in combinations])
    right = np.asarray([b for _, b in combinations])
    # [t, t]. K_ii L_ii is left out here rather than subtracted later: in states much wider than n it outweighs the rest
    # of its row, and the difference would be rounding.
    off_diagonal = 1 - jnp.eye(tile, dtype=jnp.float32)

    # One tile after the other: nothing of size n x n exists.
    def step(g: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        i, j, weight = pair[0], pair[1], pair[2].astype(jnp.float32)
        rows = lax.dynamic_slice_in_dim(x, i * tile, tile, 1)  # [M, t, D]
        columns = lax.dynamic_slice_in_dim(x, j * tile, tile, 1)  # [M, t, D]
        gram = jnp.einsum("mid,mjd->mij", rows, columns, precision=EXACT)  # [M, t, t]
        # Weight 0 makes a tile of the padding add nothing.
        if slot is None:
            gram = gram * jnp.where(i == j, off_diagonal, 1) * weight
        else:
            # [t, 1] and [1, t]: a row shares its item with itself, so the diagonal is left out too.
            mine, theirs = (lax.dynamic_slice_in_dim(slot, at * tile, tile) for at in (i, j))
            gram = gram * (mine[:, None] != theirs[None, :]) * weight
        # [C, t, t], every Gram tile computed once and used by all its combinations
        return add_tile(g, gram[left] * gram[right], i, j, tile), None

    return lax.scan(step, jnp.zeros((len(combinations), x.shape[1]), jnp.float32), pairs)[0]


@functools.partial(jax.jit, static_argnames=("combinations", "pairs", "tile", "mesh"))
def gram_sums(
    states: Float[Array, "M K N D"],
    valid: Bool[Array, " n"],
    ranks: Int[Array, "R n"],
    *,
    combinations: tuple[tuple[int, int], ...],
    pairs: tuple[tuple[int, int], ...],
    tile: int,
    mesh: Mesh | None,
    items: ItemRows | None = None,
) -> GramSums:
    """Computes all row sums of all layers, in one program.

    Args:
      states: [M, K, N, D] floating; only the first n of N rows are looked at.
      valid: [n] bool.
      ranks: [R, n] int32, random ranks of the valid rows, one row per permutation (R may be 0).
      combinations: pairs of models whose Gram products are summed.
      pairs: pairs of models whose permutations are summed.
      tile: rows per Gram tile.
      mesh: the mesh that tiles and permutations are dealt over, or None for one device.
      items: the items of the rows. The sums hold only if all valid rows are finite; `kept` tells.
    """
    n = valid.shape[0]
    # [n], and [n'] with padding that does not count. Rows of `states` are spread over devices, so the sum over all of
    # them is sliced and not they.
    kept = counted_rows(states, jnp.pad(valid, (0, states.shape[2] - n)))[:n]
    padding = -n % tile
    kept_padded = jnp.pad(kept, (0, padding))
    shares = mesh.size if mesh else 1
    # [p, 3], a multiple of the devices
    tiles = jnp.asarray(tile_pairs(kept_padded.shape[0] // tile, shares))
    # [R', n']: permutations are dealt over the devices too; the surplus ones are cut off at the end.
    count = ranks.shape[0]
    permutations = null.permutations(jnp.pad(ranks, ((0, -count % shares), (0, padding))), kept_padded)

    if items is not None:
        items = items.padded(padding)
    axes = mesh.axis_names if mesh else ()

    def gathered(permuted: jax.Array) -> jax.Array:
        # An empty array cannot be gathered. [P, 2, R']
        return lax.all_gather(permuted, axes, axis=2, tiled=True) if mesh and count else permuted

    def added(tree: Tree) -> Tree:
        return lax.psum(tree, axes) if mesh else tree

    def by_rows(x: jax.Array, r: jax.Array, tiles: jax.Array, permutations: jax.Array) -> tuple[jax.Array, jax.Array]:
        g, permuted = (
            gram_row_sums(x, tiles, combinations, tile),
            null.permuted_products(x, r, permutations, pairs),
        )
        permuted = gathered(permuted)
        # [C, n'], every device's tiles added up
        return added(g), permuted

    def by_items(
        x: jax.Array, rows: ItemRows, tiles: jax.Array, permutations: jax.Array
    ) -> tuple[jax.Array, ItemSums, jax.Array]:
        g = gram_row_sums(x, tiles, combinations, tile, rows.slot)
        sums, within = item_sums.within_items(x, rows, combinations)  # [M, n', D], [C, n']
        q, z = (x * sums).sum(2), jnp.square(sums).sum(2)  # [M, n'] each
        share = (lax.axis_index(axes), mesh.size) if mesh else (0, 1)
        left_out = item_sums.leave_out(x, sums, rows, combinations, tile, share)
        own = jnp.where(rows.slot_size > 0, z[:, rows.first], 0)  # [M, n']
        if count:
            weights = item_sums.additive_parts(q, z, rows)
            permuted = null.permuted_products(x, weights, permutations, pairs, q)
            inside = item_sums.permuted_within(x, rows, permutations, pairs)  # [P, R]
            permuted = gathered(jnp.concatenate([permuted, inside[:, None]], 1))  # [P, 3, R']
        else:
            permuted = jnp.zeros((len(pairs), 3, 0), jnp.float32)
        g, left_out = added((g, left_out))
        return g, ItemSums(q, within, *left_out, own), permuted

    run: Callable[..., Any] = by_rows if items is None else by_items
    if mesh:
        # Every device has the layer's rows whole, and its share of tiles and permutations.
        whole, share = PartitionSpec(), PartitionSpec(axes)
        run = jax.shard_map(run, mesh=mesh, in_specs=(whole, whole, share, share), out_specs=whole, check_vma=False)

    # Layers go one by one, so that one layer's rows alone are whole on every device.
    def layer(k: jax.Array) -> tuple[Any, ...]:
        x = lax.dynamic_index_in_dim(states, k, axis=1, keepdims=False)[:, :n]  # [M, n, D]
        # Padded before it is centred: the padding is masked like any row that does not count. [M, n', D]
        x, mean_square, exponent = centre(jnp.pad(x, ((0, 0), (0, padding), (0, 0))), kept_padded)
        r = jnp.square(x).sum(2)  # [M, n']
        if items is not None:
            g, by_item, permuted = run(x, items, tiles, permutations)
            by_item = jax.tree.map(lambda a: a[:, :n], by_item)
            none = jnp.zeros((0, 0, 0), jnp.float32)
            return g[:, :n], r[:, :n], none, mean_square, exponent, permuted[:, :, :count], by_item
        # [M, n']. K 1 = 0, so K r stays the same if the mean of r is subtracted. In wide states r is nearly constant:
        # its products with x would cancel almost entirely.
        spread = jnp.where(kept_padded, r - (r.sum(1) / jnp.maximum(kept.sum(), 1))[:, None], 0)
        # K_a r_b as X_a (X_a^T r_b), in two products of order n D, without the matrix K_a.
        weighted = jnp.einsum("mid,ti->mtd", x, spread, precision=EXACT)  # [M, M, D]
        cross = jnp.einsum("mid,mtd->mti", x, weighted, precision=EXACT)  # [M, M, n']
        g, permuted = run(x, r, tiles, permutations)
        return g[:, :n], r[:, :n], cross[:, :, :n], mean_square, exponent, permuted[:, :, :count], None

    return replicate(GramSums(kept, *lax.map(layer, jnp.arange(states.shape[1]))), mesh)
