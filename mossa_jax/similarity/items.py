"""Rows that belong to items: one passage with five questions, one row in ten wordings.

Rows of one item are related, so pairs of them are left out of the debiased sums (a block diagonal in place of the
diagonal), and the jackknife leaves out whole items. With `W` the pairs of rows of different items, `n_g` rows of item
g, `q_i = x_i . s_g(i)` with `s_g` the sum of the centred rows of item g, and `q_g = |s_g|^2`, the debiased product is
`<P K, L>` over W, where P takes out the best additive part `a_i + a_j`:

    u = sum_W K L - 2 (F + G - B B' / c)
    F = sum_i q_i q'_i / (n - n_g)     G = sum_g q_g q'_g / ((n - n_g) (n - 2 n_g))
    B = sum_g q_g / (n - 2 n_g)        c = 1 + sum_g n_g / (n - 2 n_g)

With one row per item this is the unbiased HSIC. Without item h, `q_i` becomes `q_i + x_i . s_h`, `n` becomes
`n - n_h`, and h is left out of the sums.

Shape letters: M models, n' rows with padding, D width, C combinations, P pairs, R permutations, t items of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

EXACT = lax.Precision.HIGHEST


class ItemRows(NamedTuple):
    """Which rows belong together; arrays of rows may be followed by padding, which belongs to no item.

    Attributes:
      slot: [n] int32, the item of a row, from 0; -1 for rows that do not count.
      size: [n] int32, rows of the row's own item; 0 for rows that do not count.
      following: [n] int32, the next row of the same item, after the last one the first; itself for other rows.
      first: [n] int32, a row of each item, in the order of the slots, followed by 0.
      slot_size: [n] int32, rows of each item, followed by 0.
      items: [] int32, the number of items.
      depth: [] int32, rows of the largest item.
    """

    slot: Int[Array, " n"]
    size: Int[Array, " n"]
    following: Int[Array, " n"]
    first: Int[Array, " n"]
    slot_size: Int[Array, " n"]
    items: Int[Array, ""]
    depth: Int[Array, ""]

    def padded(self, padding: int) -> ItemRows:
        """Returns the same with `padding` rows behind it that belong to no item."""
        n = self.slot.shape[0]
        return ItemRows(
            jnp.pad(self.slot, (0, padding), constant_values=-1),
            jnp.pad(self.size, (0, padding)),
            jnp.concatenate([self.following, jnp.arange(n, n + padding, dtype=jnp.int32)]),
            jnp.pad(self.first, (0, padding)),
            jnp.pad(self.slot_size, (0, padding)),
            self.items,
            self.depth,
        )


class ItemSums(NamedTuple):
    """Sums of one layer that rows of items need beside their Gram products.

    Attributes:
      q: [M, n'] `x_i . s_g(i)`.
      within: [C, n'] row sums of `K_a K_b` over the row's own item, its diagonal included.
      f: [C, n'] F without each item, in the order of the slots.
      g: [C, n'] G without each item.
      b: [M, n'] B without each item.
      t: [C, n'] `sum_i (x_i . s_h) (y_i . t_h)` over the rows of other items.
      own: [M, n'] `|s_h|^2`.
    """

    q: Float[Array, "M n"]
    within: Float[Array, "C n"]
    f: Float[Array, "C n"]
    g: Float[Array, "C n"]
    b: Float[Array, "M n"]
    t: Float[Array, "C n"]
    own: Float[Array, "M n"]


def item_rows(items: np.ndarray, kept: Bool[np.ndarray, " n"], order: np.ndarray | None = None) -> ItemRows:
    """Finds the rows of every item.

    Args:
      items: [n] ids of any dtype that sorts.
      kept: [n] bool, the rows that count.
      order: [n] the order of an item's rows in `following`; by default that of the rows.

    Returns:
      NumPy arrays; slots are in the order of the sorted ids.
    """
    n = len(kept)
    rows = np.flatnonzero(kept)
    _, slots, sizes = np.unique(np.asarray(items)[rows], return_inverse=True, return_counts=True)
    slots = slots.reshape(-1)
    slot, size, following = np.full(n, -1, np.int32), np.zeros(n, np.int32), np.arange(n, dtype=np.int32)
    first, slot_size = np.zeros(n, np.int32), np.zeros(n, np.int32)
    slot[rows], size[rows], slot_size[: len(sizes)] = slots, sizes[slots], sizes
    sorted_rows = rows[np.lexsort((rows if order is None else np.asarray(order)[rows], slots))]
    starts = np.cumsum(sizes) - sizes
    first[: len(sizes)] = sorted_rows[starts]
    # The row behind each in the sorted list; the last of an item is followed by its first.
    after = np.arange(1, len(rows) + 1)
    after[starts + sizes - 1] = starts
    following[sorted_rows] = sorted_rows[after]
    counts = np.int32(len(sizes)), np.int32(sizes.max(initial=0))
    parts: Any = (slot, size, following, first, slot_size, *counts)
    return ItemRows(*parts)


def within_items(
    x: Float[Array, "M n D"], rows: ItemRows, combinations: Sequence[tuple[int, int]]
) -> tuple[Float[Array, "M n D"], Float[Array, "C n"]]:
    """Sums over the rows of a row's own item, itself included.

    Args:
      x: [M, n, D] float32 centred rows.
      rows: of the items.
      combinations: (a, b) models whose Gram products are summed.

    Returns:
      The sum of the rows [M, n, D], and the row sums of `K_a K_b` [C, n].
    """

    # As many steps as the largest item has rows: the number is no shape, so tasks share the program.
    def step(d: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        at, total, products = carry
        others = jnp.where((d < rows.size)[None, :, None], x[:, at], 0)  # [M, n, D]
        gram = (x * others).sum(2)  # [M, n]
        products = products + jnp.stack([gram[a] * gram[b] for a, b in combinations])
        return rows.following[at], total + others, products

    empty = jnp.zeros((len(combinations), x.shape[1]), jnp.float32)
    start = (jnp.arange(x.shape[1], dtype=jnp.int32), jnp.zeros_like(x), empty)
    return lax.fori_loop(0, rows.depth, step, start)[1:]


def additive_parts(q: Float[Array, "M n"], z: Float[Array, "M n"], rows: ItemRows) -> Float[Array, "M n"]:
    """Returns a_i up to its sign, so that `sum_i a_i q'_i = F + G - B B' / c`.

    Args:
      q: [M, n] `x_i . s_g(i)`.
      z: [M, n] `|s_g(i)|^2`.
      rows: of the items.
    """
    n = (rows.size > 0).sum()
    one, two = _inverse(n - rows.size, rows.size > 0), _inverse(n - 2 * rows.size, rows.size > 0)  # [n] each
    # A sum over items of n_g / (n - 2 n_g) is one over rows of 1 / (n - 2 n_g).
    mean = (q * two).sum(1) / (1 + two.sum())  # [M]
    return q * one + z * one * two - mean[:, None] * two


def _inverse(value: Int[Array, " ..."], counts: Bool[Array, " ..."]) -> Float[Array, " ..."]:
    """Returns 1 / value, float32; zero where it does not count, or where an item has half of the rows or more."""
    counts = counts & (value > 0)
    return jnp.where(counts, 1 / jnp.where(counts, value, 1).astype(jnp.float32), 0)


def leave_out(
    x: Float[Array, "M n D"],
    sums: Float[Array, "M n D"],
    rows: ItemRows,
    combinations: Sequence[tuple[int, int]],
    tile: int,
    share: tuple[jax.Array | int, int] = (0, 1),
) -> tuple[Float[Array, "C n"], Float[Array, "C n"], Float[Array, "M n"], Float[Array, "C n"]]:
    """Computes what the sample without each item needs, as many items at a time as a tile has rows.

    Args:
      x: [M, n, D] float32 centred rows.
      sums: [M, n, D] the sum of each row's item.
      rows: of the items.
      combinations: (a, b) models.
      tile: items per step; divides n.
      share: this device's number and the number of devices: each takes every so many-th tile.

    Returns:
      `f`, `g`, `b` and `t` of `ItemSums`; of the other devices' items they are zero.
    """
    models, n, _ = x.shape
    total = (rows.size > 0).sum()
    # [M, n', D], by slots; zero behind the last item.
    by_slot = jnp.where((rows.slot_size > 0)[None, :, None], sums[:, rows.first], 0)
    q, own = (x * sums).sum(2), jnp.square(by_slot).sum(2)  # [M, n'] by rows and by slots
    slots = jnp.arange(n, dtype=jnp.int32)
    first, devices = share

    def step(turn: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        start = (first + turn * devices) * tile
        left_out = start + jnp.arange(tile, dtype=jnp.int32)  # [t]
        rest = total - lax.dynamic_slice_in_dim(rows.slot_size, start, tile)  # [t]
        items = lax.dynamic_slice_in_dim(by_slot, start, tile, 1)  # [M, t, D]
        reach = jnp.einsum("mid,mtd->mit", x, items, precision=EXACT)  # [M, n', t]
        between = jnp.einsum("mgd,mtd->mgt", by_slot, items, precision=EXACT)  # [M, n', t]
        other = rows.slot[:, None] != left_out  # [n', t]
        by_row = _inverse(rest - rows.size[:, None], other & (rows.size > 0)[:, None])  # [n', t]
        counts = (slots[:, None] != left_out) & (rows.slot_size > 0)[:, None]
        one = _inverse(rest - rows.slot_size[:, None], counts)  # [n', t]
        two = _inverse(rest - 2 * rows.slot_size[:, None], counts)  # [n', t]
        r, z = q[:, :, None] + reach, own[:, :, None] + between  # [M, n', t] each
        parts = (
            jnp.stack([(by_row * r[a] * r[b]).sum(0) for a, b in combinations]),
            jnp.stack([(one * two * z[a] * z[b]).sum(0) for a, b in combinations]),
            jnp.stack([(two * z[a]).sum(0) for a in range(models)]),
            jnp.stack([jnp.where(other, reach[a] * reach[b], 0).sum(0) for a, b in combinations]),
        )
        return tuple(lax.dynamic_update_slice_in_dim(c, p, start, 1) for c, p in zip(carry, parts, strict=True))

    kinds = (len(combinations), len(combinations), models, len(combinations))
    empty = tuple(jnp.zeros((count, n), jnp.float32) for count in kinds)
    tiles = (rows.items + tile - 1) // tile
    # Tiles behind the last item are never computed: the work follows the number of items, and the shapes do not.
    return lax.fori_loop(0, jnp.maximum(tiles - first + devices - 1, 0) // devices, step, empty)


def permuted_within(
    x: Float[Array, "M n D"], rows: ItemRows, permutations: Int[Array, "R n"], pairs: Sequence[tuple[int, int]]
) -> Float[Array, "P R"]:
    """Computes the part of `<K_a, P K_b P^T>` that pairs of rows of one item make, themselves included.

    Whole items are exchanged and their rows are matched in order, so the row behind i is paired with the one behind
    its partner.

    Args:
      x: [M, n, D] float32 centred rows.
      rows: of the items.
      permutations: [R, n] int32.
      pairs: (a, b) models.
    """

    def step(d: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        at, total = carry
        gram = jnp.where(d < rows.size, (x * x[:, at]).sum(2), 0)  # [M, n]
        terms = [(gram[a] * gram[b][permutations]).sum(1) for a, b in pairs]  # each [R]
        return rows.following[at], total + jnp.stack(terms)

    empty = jnp.zeros((len(pairs), permutations.shape[0]), jnp.float32)
    return lax.fori_loop(0, rows.depth, step, (jnp.arange(x.shape[1], dtype=jnp.int32), empty))[1]
