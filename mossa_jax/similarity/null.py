"""The permutation null of CKA: the rows of one side are re-paired at random, and no model runs again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Three bfloat16 passes on a TPU, whose errors of 1e-6 cannot move a p-value. XLA makes one pass of TF32 of it on a GPU,
# which moves a draw by 1e-7 to 5e-5 (docs/measurements.md): a p-value moves only if a draw is that close to the value.
PRECISE = lax.Precision.HIGH
# Among a handful of rows some draws pair every row with itself. They must tie with the value, so their products are
# exact; a run gives such tasks arrays of so many rows.
_FEW_ROWS = 128
# Few rows of wide states: gathering n^2 entries of kept Gram matrices beats the 2 n D^2 operations of X^T P Y. On a
# CPU one gathered entry was measured to cost about as much as 100 to 150 operations; above MAX_GRAM_ROWS (64 MiB per
# model) Gram matrices are never kept.
GATHER_COST = 64
MAX_GRAM_ROWS = 4096
# With fewer re-pairings than this no p-value can be 0.05 or less.
MIN_REPAIRINGS = 20


@dataclasses.dataclass(frozen=True)
class Repairing:
    """Which re-pairings of the rows the null consists of.

    Attributes:
      name: "rows", "rows within templates", "items", "items within templates"; or "none" if there are fewer than
        `MIN_REPAIRINGS`.
      rows: of every item, in the order in which they are matched: [items] arrays of row numbers.
      stratum: [items] int, items of one stratum are exchanged.
    """

    name: str
    rows: list[Int[np.ndarray, " *"]]
    stratum: Int[np.ndarray, " m"]


def repairing_of(
    valid: Bool[np.ndarray, " n"], items: np.ndarray | None = None, templates: np.ndarray | None = None
) -> Repairing:
    """Finds which re-pairings keep what is known of the rows.

    Items are exchanged whole, with items that have as many rows of the same templates. Their rows are matched in the
    order of the templates. A row with an item of its own is exchanged with such rows of its template. Rows of unknown
    template (-1) are exchanged among themselves.

    Args:
      valid: [n] bool, the rows that count.
      items: [n] ids; by default every row is an item.
      templates: [n] int, -1 where unknown; by default all are.
    """
    count = np.flatnonzero(valid)
    slots = np.arange(len(count)) if items is None else np.unique(np.asarray(items)[count], return_inverse=True)[1]
    known = np.full(len(count), -1) if templates is None else np.asarray(templates)[count]
    # Sorted by item, then by template: rows of two items are matched in this order.
    order = np.lexsort((count, known, slots.reshape(-1)))
    ends = np.flatnonzero(np.diff(slots.reshape(-1)[order])) + 1
    rows = np.split(count[order], ends) if len(count) else []
    signatures = [tuple(part) for part in np.split(known[order], ends)] if len(count) else []
    numbers: dict[tuple, int] = {}
    stratum = np.array([numbers.setdefault(signature, len(numbers)) for signature in signatures], int)
    sizes = np.bincount(stratum) if len(stratum) else np.zeros(0, int)
    name = "rows" if len(rows) == len(count) else "items"
    if len(np.unique(known)) > 1:
        name += " within templates"
    if math.prod(math.factorial(min(int(size), MIN_REPAIRINGS)) for size in sizes) < MIN_REPAIRINGS:
        name = "none"
    return Repairing(name, rows, stratum)


def draw_ranks(
    valid: Bool[np.ndarray, " n"], count: int, seed: int, repairing: Repairing | None = None
) -> Int[np.ndarray, "R n"]:
    """Draws random ranks of the valid rows, one independent permutation per row; padding does not change the draw.

    Args:
      valid: [n] bool.
      count: R, how many permutations.
      seed: of NumPy's generator.
      repairing: which re-pairings to draw from; by default all. Such a draw holds only if all valid rows are kept.

    Returns:
      [R, n] int32 with R = `count`; -1 in slots that are not valid.
    """
    ranks = np.full((count, valid.shape[0]), -1, np.int32)
    rows = int(valid.sum())
    if not count:
        return ranks
    random = np.random.default_rng(seed)
    if repairing is None or repairing.name in ("rows", "none"):
        # Drawn over the valid rows alone and then put into their slots: the same seed gives the same pairing of the
        # prompts, wherever padding lies. [R, rows]
        ordered = np.tile(np.arange(rows, dtype=np.int32), (count, 1))
        ranks[:, valid] = random.permuted(ordered, axis=1)
        return ranks
    # A row whose rank is q is paired with valid row number q.
    place = np.cumsum(valid) - 1
    for stratum in range(repairing.stratum.max(initial=-1) + 1):
        # [items of the stratum, rows of an item]
        members = np.stack([repairing.rows[item] for item in np.flatnonzero(repairing.stratum == stratum)])
        drawn = random.permuted(np.tile(np.arange(len(members)), (count, 1)), axis=1)  # [R, items]
        ranks[:, members.reshape(-1)] = place[members][drawn].reshape(count, -1)
    return ranks


def permutations(ranks: Int[Array, "R n"], kept: Bool[Array, " n"]) -> Int[Array, "R n"]:
    """Turns ranks into permutations of the kept slots; other slots stay among themselves.

    Args:
      ranks: [R, n] int32.
      kept: [n] bool.

    Returns:
      [R, n] int32: permutation p pairs slot i with slot `p[i]`.
    """
    if ranks.shape[0] == 0:
        return jnp.zeros(ranks.shape, jnp.int32)
    home = jnp.argsort(~kept, stable=True)  # [n], kept slots first
    # Rows dropped since the draw lose their ranks; the order of the others is still uniform over their permutations.
    drawn = jnp.argsort(jnp.where(kept, ranks, jnp.iinfo(jnp.int32).max), axis=1, stable=True)  # [R, n]
    # The slot at place q of `home` is paired with the slot at place q of `drawn`.
    return jnp.zeros_like(drawn).at[:, home].set(drawn).astype(jnp.int32)


def permuted_products(
    x: Float[Array, "M n D"],
    r: Float[Array, "M n"],
    permutations: Int[Array, "R n"],
    pairs: Sequence[tuple[int, int]],
    others: Float[Array, "M n"] | None = None,
) -> Float[Array, "P 2 R"]:
    """Computes `<K_a, P K_b P^T> = |X_a^T P X_b|^2` and `r_a . P r_b` for each permutation and pair.

    Both forms of the first are exact; n and D decide which one is cheaper.

    Args:
      x: [M, n, D] float32 centred rows.
      r: [M, n] their squared norms.
      permutations: [R, n] int32.
      pairs: pairs (a, b) of models.
      others: [M, n] takes the place of `r_b`; by default `r` itself.

    Returns:
      [P, 2, R] float32.
    """
    if permutations.shape[0] == 0:
        return jnp.zeros((len(pairs), 2, 0), jnp.float32)

    others = r if others is None else others
    n, width = x.shape[1:]
    precision = lax.Precision.HIGHEST if n <= _FEW_ROWS else PRECISE
    keep_grams = n <= MAX_GRAM_ROWS and GATHER_COST * n <= width**2
    grams = jnp.einsum("mid,mjd->mij", x, x, precision=precision) if keep_grams else None  # [M, n, n]

    def step(_: None, permutation: jax.Array) -> tuple[None, jax.Array]:
        values = []
        for a, b in pairs:
            if grams is not None:
                # Entry (i, j) of K_a meets entry (p_i, p_j) of K_b.
                terms = grams[a] * grams[b][permutation][:, permutation]  # [n, n]
            else:
                terms = jnp.square(jnp.einsum("id,ie->de", x[a], x[b][permutation], precision=precision))  # [D, D]
            # Two short float32 sums in place of one over all entries.
            values.append(jnp.stack([terms.sum(0).sum(), r[a] @ others[b][permutation]]))
        return None, jnp.stack(values)  # [P, 2]

    return jnp.moveaxis(lax.scan(step, None, permutations)[1], 0, 2)
