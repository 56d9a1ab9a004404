"""Measures on pairwise distances: by tiles of the n x n matrix, which never exists as a whole.

Distances come from Gram tiles of centred rows, `d_ij^2 = K_ii + K_jj - 2 K_ij`, with the diagonal taken from the same
products. Rows that are equal to the bit are then at distance exactly 0, and equally far from every other row, so ties
in the data stay ties.

Shape letters: M models, n rows (a multiple of the tile), D width, C combinations of models, T tiles of the upper half,
t rows of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.similarity.gram import EXACT, add_tile, tile_pairs

# A float32 is read as four digits of 8 bits, so one pass needs 256 counts.
_DIGIT_BITS = 8
_DIGITS = 1 << _DIGIT_BITS


class Rows(NamedTuple):
    """Rows that distances are computed from.

    Attributes:
      x: [M, n, D] float32 centred rows, n a multiple of the tile.
      norms: [M, n] float32, their squared norms.
      kept: [n] bool, rows that count.
    """

    x: Float[Array, "M n D"]
    norms: Float[Array, "M n"]
    kept: Bool[Array, " n"]


def _gram(x: Float[Array, "M n D"], i: jax.Array, j: jax.Array, tile: int) -> Float[Array, "M t t"]:
    """Returns the inner products of the rows of tile i with those of tile j."""
    # [M, t, D] each
    rows = lax.dynamic_slice_in_dim(x, i * tile, tile, 1)
    columns = lax.dynamic_slice_in_dim(x, j * tile, tile, 1)
    return jnp.einsum("mid,mjd->mij", rows, columns, precision=EXACT)


def tiled_rows(x: Float[Array, "M n D"], kept: Bool[Array, " n"], tile: int) -> Rows:
    """Returns rows with their squared norms, from the diagonals of the Gram tiles."""

    # From the products and not from the squares of the rows: another order of summation could differ in the last bit,
    # and a row would not be at distance 0 from its copy.
    def tile_norms(i: jax.Array) -> jax.Array:
        return jnp.diagonal(_gram(x, i, i, tile), axis1=1, axis2=2)  # [M, t]

    norms = lax.map(tile_norms, jnp.arange(x.shape[1] // tile))  # [n / t, M, t]
    return Rows(x, jnp.moveaxis(norms, 0, 1).reshape(x.shape[:2]), kept)


def _squared(
    gram: Float[Array, "M p q"], row_norms: Float[Array, "M p"], column_norms: Float[Array, "M q"]
) -> Float[Array, "M p q"]:
    """Returns the squared distances of a Gram tile; rounding below 0 becomes 0."""
    return jnp.maximum(row_norms[:, :, None] + column_norms[:, None, :] - 2 * gram, 0)


def _tile_distances(rows: Rows, i: jax.Array, j: jax.Array, tile: int) -> Float[Array, "M t t"]:
    """Returns the squared distances of the rows of tile i from those of tile j."""
    # [M, t] each
    norms_i, norms_j = (lax.dynamic_slice_in_dim(rows.norms, t * tile, tile, 1) for t in (i, j))
    return _squared(_gram(rows.x, i, j, tile), norms_i, norms_j)


def _tile_kept(rows: Rows, i: jax.Array, j: jax.Array, tile: int) -> Bool[Array, "t t"]:
    """Returns which pairs of a tile have two rows that count."""
    # [t] each
    left, right = (lax.dynamic_slice_in_dim(rows.kept, t * tile, tile, 0) for t in (i, j))
    return left[:, None] & right[None, :]


def _tile_above(rows: Rows, i: jax.Array, j: jax.Array, tile: int) -> Bool[Array, "t t"]:
    """Returns which pairs of a tile count and stand above the diagonal, so that each pair of rows counts once."""
    index = jnp.arange(tile)
    return _tile_kept(rows, i, j, tile) & (i * tile + index[:, None] < j * tile + index[None, :])


def _upper_tiles(rows: Rows, tile: int) -> Int[Array, "T 2"]:
    """Returns the indices I <= J of the tiles of the upper half."""
    return jnp.asarray(tile_pairs(rows.x.shape[1] // tile, 1)[:, :2])


def _distance_count(rows: Rows) -> Int[Array, ""]:
    """Returns n (n - 1) / 2 of the rows that count, int32."""
    # [] int32
    count = rows.kept.sum()
    # Halved before it is multiplied: n (n - 1) may pass 2^31.
    return jnp.where(count % 2 == 0, count // 2 * (count - 1), (count - 1) // 2 * count)


def median_distance(rows: Rows, tile: int) -> Float[Array, " M"]:
    """Computes the median of the n (n - 1) / 2 distances of each state, exactly, without storing them.

    This is a radix selection. Non-negative floats have the order of their bits, so each of four passes over the tiles
    counts the next eight bits of those distances that share the leading bits of the middle one. Two middle distances
    are followed and their mean is returned, as in NumPy.

    Args:
      rows: of M models.
      tile: t, rows of a tile.

    Returns:
      [M] float32, in the unit of `rows.x`.
    """
    models = rows.x.shape[0]
    total = _distance_count(rows)
    # Ranks of the two middle distances, [M, 2]; the same if their number is odd.
    middle = jnp.broadcast_to(jnp.stack([(total - 1) // 2, total // 2]), (models, 2)).astype(jnp.int32)
    tiles = _upper_tiles(rows, tile)
    bins = 2 * models * _DIGITS
    # [M, 2, 1, 1]: one flat histogram holds 256 bins for each model and middle rank.
    first_bin = jnp.arange(0, bins, _DIGITS, dtype=jnp.int32).reshape(models, 2, 1, 1)

    def next_digit(carry: tuple[jax.Array, jax.Array], shift: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        # [M, 2] each: the leading bits of the middle ones, and their ranks among the distances that share these bits.
        prefix, rank = carry

        def count_tile(counts: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
            i, j = pair[0], pair[1]
            # [M, 1, t, t] int32. Squared distances: the root keeps the order, and two roots are enough at the end.
            bits = lax.bitcast_convert_type(_tile_distances(rows, i, j, tile), jnp.int32)[:, None] >> shift
            # [M, 2, t, t]
            has_prefix = _tile_above(rows, i, j, tile) & (bits >> _DIGIT_BITS == prefix[:, :, None, None])
            # Pairs that do not count get a bin past the end, and `drop` leaves them out.
            bin_of = jnp.where(has_prefix, first_bin + bits % _DIGITS, bins)
            return counts.at[bin_of.ravel()].add(1, mode="drop"), None

        counts = lax.scan(count_tile, jnp.zeros(bins, jnp.int32), tiles)[0].reshape(models, 2, _DIGITS)
        # [M, 2, 256]. The digit is the first one up to which more distances are counted than the rank.
        upto = jnp.cumsum(counts, axis=-1)
        digit = (upto <= rank[..., None]).sum(-1)
        # [M, 2]: distances with a smaller digit no longer count towards the rank.
        below = jnp.where(digit > 0, jnp.take_along_axis(upto, jnp.maximum(digit - 1, 0)[..., None], -1)[..., 0], 0)
        return (prefix << _DIGIT_BITS | digit.astype(jnp.int32), rank - below), None

    start = jnp.zeros((models, 2), jnp.int32), middle
    bits = lax.scan(next_digit, start, jnp.arange(32 - _DIGIT_BITS, -1, -_DIGIT_BITS, dtype=jnp.int32))[0][0]
    return jnp.sqrt(lax.bitcast_convert_type(bits, jnp.float32)).mean(1)


class KernelSums(NamedTuple):
    """Row sums of Gaussian kernels.

    Attributes:
      product: [C, n], of the products of two kernels.
      single: [M, n], of each kernel.
      median: [M], the median distances that set the widths.
    """

    product: Float[Array, "C n"]
    single: Float[Array, "M n"]
    median: Float[Array, " M"]


def rbf_sums(rows: Rows, fraction: float, combinations: Sequence[tuple[int, int]], tile: int) -> KernelSums:
    """Computes row sums of the kernels `exp(-d^2 / (2 sigma^2)) - c`, sigma = `fraction` times the median distance.

    `c = exp(-1 / (2 fraction^2))` is the kernel at the median distance. Centring removes any constant, so it may be
    subtracted beforehand. In wide states all distances are nearly equal, and only their small differences matter.

    Args:
      rows: of M models.
      fraction: of the median distance of each model.
      combinations: (a, b) indices of the models whose kernels are multiplied.
      tile: t, rows of a tile.
    """
    median = median_distance(rows, tile)
    # The exponent d^2 / (2 sigma^2) at the median distance, t0 below.
    at_median = jnp.float32(0.5 / fraction**2)
    # [M, 1, 1]. A median of zero is reported by the caller; here it must not divide.
    square = jnp.where(median > 0, median, 1)[:, None, None] ** 2
    left, right = (np.asarray(side) for side in zip(*combinations, strict=True))

    def step(sums: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        i, j = pair[0], pair[1]
        # [M, t, t]. The kernel is exp(-(t + t0)) - exp(-t0), computed as its larger term times expm1 of -|t|: nothing
        # overflows, and near the median no digits cancel.
        t = (_tile_distances(rows, i, j, tile) - square) / square * at_median
        kernel = jnp.sign(t) * jnp.exp(-(at_median + jnp.minimum(t, 0))) * jnp.expm1(-jnp.abs(t))
        kernel = jnp.where(_tile_kept(rows, i, j, tile), kernel, 0)
        values = jnp.concatenate([kernel[left] * kernel[right], kernel])  # [C + M, t, t]
        # Row sums over both triangles, the diagonal included: centring needs it.
        return add_tile(sums, values, i, j, tile), None

    sums = jnp.zeros((len(combinations) + len(median), rows.x.shape[1]), jnp.float32)
    sums = lax.scan(step, sums, _upper_tiles(rows, tile))[0]
    return KernelSums(sums[: len(combinations)], sums[len(combinations) :], median)


class Neighbourhoods(NamedTuple):
    """How far the k nearest neighbours of each row reach, and the extremes of its state.

    Attributes:
      radius: [M, n], the squared distance of the k-th neighbour.
      share: [M, n], the part of a place that each row at exactly that distance gets; 1 without ties.
      nearest: [M], the smallest squared distance of two rows.
      farthest: [M], the largest one.
    """

    radius: Float[Array, "M n"]
    share: Float[Array, "M n"]
    nearest: Float[Array, " M"]
    farthest: Float[Array, " M"]


class _Strip(NamedTuple):
    """The rows of one tile against all rows: Gram matrix [M, t, n], squared distances [M, t, n] and which count [t, n].

    A row is no neighbour of its own, so it does not count against itself.
    """

    gram: Float[Array, "M t n"]
    squared: Float[Array, "M t n"]
    counts: Bool[Array, "t n"]


def _strip(rows: Rows, i: jax.Array, tile: int) -> _Strip:
    """Computes the distances of the rows of tile i from all rows."""
    models, n = rows.norms.shape

    def one_tile(j: jax.Array) -> jax.Array:
        # The tile below the diagonal is the one above it turned over, so that both rows of a pair see the same bits.
        gram = _gram(rows.x, jnp.minimum(i, j), jnp.maximum(i, j), tile)
        return jnp.where(j < i, jnp.swapaxes(gram, 1, 2), gram)

    gram = lax.map(one_tile, jnp.arange(n // tile)).transpose(1, 2, 0, 3).reshape(models, tile, n)
    squared = _squared(gram, lax.dynamic_slice_in_dim(rows.norms, i * tile, tile, 1), rows.norms)
    own = i * tile + jnp.arange(tile)  # [t]
    counts = rows.kept[own][:, None] & rows.kept & (jnp.arange(n) != own[:, None])
    return _Strip(gram, squared, counts)


def neighbourhoods(rows: Rows, neighbours: int, tile: int) -> Neighbourhoods:
    """Finds the distance of each row's k-th neighbour, strip by strip of tiles.

    Args:
      rows: of M models.
      neighbours: k, at most n.
      tile: t, rows of a strip.
    """

    def one_strip(i: jax.Array) -> tuple[jax.Array, ...]:
        strip = _strip(rows, i, tile)
        squared = jnp.where(strip.counts, strip.squared, jnp.inf)  # [M, t, n]

        # One distance after the other, from the smallest on: for few neighbours that is cheaper than a sort.
        def next_distance(_: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            # [M, t] each: the distance, the rows below it and those at it
            last, closer, tied = carry
            beyond = jnp.where(squared > last[..., None], squared, jnp.inf).min(-1)
            count = ((squared == beyond[..., None]) & strip.counts).sum(-1)
            grows = closer + tied < neighbours
            further = beyond, closer + tied, count
            return tuple(jnp.where(grows, new, old) for new, old in zip(further, carry, strict=True))

        none = jnp.zeros(squared.shape[:2], jnp.int32)
        last, closer, tied = lax.fori_loop(0, neighbours, next_distance, (none - 1.0, none, none))
        # The places that closer rows leave, dealt evenly to the tied ones.
        share = (neighbours - closer) / jnp.maximum(tied, 1)
        farthest = jnp.where(strip.counts, strip.squared, 0).max((-2, -1))
        return last, share, squared.min((-2, -1)), farthest

    # [n / t, M, t] twice, then [n / t, M] twice
    radius, share, nearest, farthest = lax.map(one_strip, jnp.arange(rows.x.shape[1] // tile))
    radius, share = (jnp.moveaxis(a, 0, 1).reshape(rows.norms.shape) for a in (radius, share))
    return Neighbourhoods(radius, share, nearest.min(0), farthest.max(0))


def _membership(strip: _Strip, radius: Float[Array, "M ..."], share: Float[Array, "M ..."]) -> Float[Array, "M t n"]:
    """Returns 1 for rows within the radius, the share for those at it, and 0 for all others."""
    member = (strip.squared < radius) + (strip.squared == radius) * share
    return jnp.where(strip.counts, member, 0)


class NeighbourSums(NamedTuple):
    """Row sums over neighbours.

    Attributes:
      shared: [C, n], of the products of two memberships.
      local: [C, n], of the products of the two Gram matrices at these.
    """

    shared: Float[Array, "C n"]
    local: Float[Array, "C n"]


def neighbour_sums(
    rows: Rows, near: Neighbourhoods, combinations: Sequence[tuple[int, int]], tile: int
) -> NeighbourSums:
    """Sums over the k nearest neighbours that pairs of states share for each row, strip by strip of tiles.

    Membership is 1 for a neighbour and 0 for any other row; rows tied for the last places share them equally.

    Args:
      rows: of M models.
      near: their neighbourhoods.
      combinations: (a, b) indices of the models whose memberships are multiplied.
      tile: t, rows of a strip.
    """
    left, right = (np.asarray(side) for side in zip(*combinations, strict=True))

    def one_strip(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        strip = _strip(rows, i, tile)
        # [M, t, 1] each
        radius, share = (lax.dynamic_slice_in_dim(a, i * tile, tile, 1)[..., None] for a in (near.radius, near.share))
        member = _membership(strip, radius, share)  # [M, t, n]
        # [M, t, n], the masked Gram matrix of CKNNA
        masked = member * strip.gram
        return (member[left] * member[right]).sum(-1), (masked[left] * masked[right]).sum(-1)

    # [n / t, C, t] twice
    shared, local = lax.map(one_strip, jnp.arange(rows.x.shape[1] // tile))
    return NeighbourSums(*(_joined(a) for a in (shared, local)))


def _joined(strips: Float[Array, "s C t"]) -> Float[Array, "C n"]:
    """Joins row sums of strips."""
    return jnp.moveaxis(strips, 0, 1).reshape(strips.shape[1], -1)


class ReleasedSums(NamedTuple):
    """Row and column sums of kernels masked by the neighbours that both states of a combination have in common.

    Attributes:
      mutual: [C, n], of the products of the two masked kernels, one of them transposed.
      rows_a: [C, n], row sums of the first masked kernel.
      columns_a: [C, n], its column sums.
      rows_b: [C, n], row sums of the second one.
      columns_b: [C, n], its column sums.
    """

    mutual: Float[Array, "C n"]
    rows_a: Float[Array, "C n"]
    columns_a: Float[Array, "C n"]
    rows_b: Float[Array, "C n"]
    columns_b: Float[Array, "C n"]


def released_sums(
    rows: Rows,
    squares: Float[Array, "M n"],
    unit: Float[Array, " M"],
    near: Neighbourhoods,
    combinations: Sequence[tuple[int, int]],
    tile: int,
) -> ReleasedSums:
    """Sums what the released form of CKNNA needs, strip by strip of tiles.

    Its kernels are inner products of rows that are not centred, `K_ij = (|x_i|^2 + |x_j|^2 - d_ij^2) / 2`. They are
    computed from the distances of the centred rows, which have the digits that a large mean would cost.

    Args:
      rows: of M models.
      squares: [M, n] squared norms of the rows before centring.
      unit: [M], what a squared distance of 1 is in the unit of `squares`.
      near: their neighbourhoods.
      combinations: (a, b) indices of the models whose kernels are multiplied.
      tile: t, rows of a strip.
    """
    left, right = (np.asarray(side) for side in zip(*combinations, strict=True))

    def one_strip(i: jax.Array) -> tuple[jax.Array, ...]:
        strip = _strip(rows, i, tile)

        def own(a: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(a, i * tile, tile, 1)[..., None]  # [M, t, 1]

        kernel = (own(squares) + squares[:, None] - strip.squared * unit[:, None, None]) / 2  # [M, t, n]
        # [M, t, n] each: whether j is a neighbour of i, and whether i is one of j
        here = _membership(strip, own(near.radius), own(near.share))
        there = _membership(strip, near.radius[:, None], near.share[:, None])
        # [C, t, n] each: in common to both states
        both, back = here[left] * here[right], there[left] * there[right]
        first, second = kernel[left], kernel[right]
        return (
            (both * back * first * second).sum(-1),
            (both * first).sum(-1),
            (back * first).sum(-1),
            (both * second).sum(-1),
            (back * second).sum(-1),
        )

    return ReleasedSums(*(_joined(a) for a in lax.map(one_strip, jnp.arange(rows.x.shape[1] // tile))))


class RankProducts(NamedTuple):
    """Products of ranks.

    Attributes:
      product: [C, T, t], of two states' centred ranks.
      nearest: [M] as in `Neighbourhoods`.
      farthest: [M] as in `Neighbourhoods`.
    """

    product: Float[Array, "C T t"]
    nearest: Float[Array, " M"]
    farthest: Float[Array, " M"]


def rank_products(rows: Rows, combinations: Sequence[tuple[int, int]], tile: int) -> RankProducts:
    """Computes products of the centred ranks of two states' distances, summed over rows of tiles.

    Ties get their mean rank, and ranks are divided by the number of distances. Memory: 4 bytes for each of the
    n (n - 1) / 2 distances (and the other halves of diagonal tiles) of each of the M states, and about 20 bytes more
    while one is sorted: 1.8 GB with 10,000 rows and 3 models.

    Args:
      rows: of M models.
      combinations: (a, b) indices of the models whose ranks are multiplied.
      tile: t, rows of a tile.
    """
    tiles = _upper_tiles(rows, tile)
    total = _distance_count(rows)

    # One state at a time, since the sort needs several arrays of all distances.
    def ranks(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        own = tiled_rows(x[None], rows.kept, tile)

        def distances(pair: jax.Array) -> jax.Array:
            squared = _tile_distances(own, pair[0], pair[1], tile)[0]
            # Each pair of rows once; the others sort last.
            return jnp.where(_tile_above(own, pair[0], pair[1], tile), squared, jnp.inf)

        squared = lax.map(distances, tiles)  # [T, t, t]
        # [T t t], all distances in order, and the places that they came from
        index = lax.iota(jnp.int32, squared.size)
        ordered, order = lax.sort((squared.ravel(), index), num_keys=1)
        # [T t t]: the first and the last index of each run of ties, spread over the run by running extremes.
        new = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
        first = lax.cummax(jnp.where(new, index, 0))
        last = lax.cummin(jnp.where(jnp.roll(new, -1).at[-1].set(True), index, squared.size), reverse=True)
        # A mean rank is (first + last) / 2, and the mean of all ranks is (total - 1) / 2. Twice their difference is a
        # whole number, exact in int32 until it is divided; the factor 2 cancels in the correlation.
        centred = jnp.where(jnp.isfinite(ordered), first + last - (total - 1), 0) / total.astype(jnp.float32)
        # Back to the places that they came from, so that the ranks of two states can be multiplied entry by entry.
        placed = jnp.zeros(squared.size, jnp.float32).at[order].set(centred, unique_indices=True)
        return placed.reshape(squared.shape), ordered[0], ordered[total - 1]

    all_ranks, nearest, farthest = lax.map(ranks, rows.x)  # [M, T, t, t], [M], [M]
    # [C, T, t]: summed over columns in float32 and over the rest by the host in float64.
    products = jnp.stack([(all_ranks[a] * all_ranks[b]).sum(-1) for a, b in combinations])
    return RankProducts(products, nearest, farthest)
