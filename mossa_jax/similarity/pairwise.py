"""Exact linear CKA of two arrays of any widths: the function for one's own data."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.similarity import gram
from mossa_jax.similarity.checks import check_labels, mesh_of
from mossa_jax.similarity.estimators import (
    ESTIMATORS,
    MIN_ROWS,
    Items,
    UndefinedSimilarity,
    item_debiased,
    ratio,
    variance_missing,
    whole_products,
)
from mossa_jax.similarity.intake import real_array
from mossa_jax.similarity.items import ItemRows, item_rows, within_items
from mossa_jax.similarity.layerwise import replicate

# Below this many rows per column the upper Gram tiles (about 2.5 n^2 D operations) cost less than X^T Y and the upper
# strips of X^T X and Y^T Y (4.5 n D^2). They also keep the diagonal out of the sums, where debiasing loses digits.
GRAM_ROWS_PER_COLUMN = 1.8
# More strips leave out more of the mirrored half of X^T X, but their products are narrower. On a CPU four were faster
# than one, two and eight.
OWN_STRIPS = 4


class PairSums(NamedTuple):
    """Sums over the rows of two arrays x and y, replicated over the devices.

    Attributes:
      off: [3, *] terms of the HSIC of (x, y), (x, x) and (y, y), to be summed. Computed by Gram tiles they leave out
        the diagonal, by features they include it.
      r: [n'] squared row norms of x, followed by zeros.
      s: [n'] the same of y.
      mean_square: [2] as in `gram.Centred`.
      exponent: [2] as in `gram.Centred`.
      finite: [] bool.
      q: [2, n'] of x and y, as in `items.ItemSums`; None if every row is an item. Then `off` leaves out the pairs of
        rows of one item by Gram tiles, and includes them by features.
      within: [3, n'] as in `items.ItemSums`, or None.
    """

    off: Float[Array, "3 *"]
    r: Float[Array, " n"]
    s: Float[Array, " n"]
    mean_square: Float[Array, " 2"]
    exponent: Int[Array, " 2"]
    finite: Bool[Array, ""]
    q: Float[Array, "2 n"] | None
    within: Float[Array, "3 n"] | None


def _squares(x: Float[Array, "n Dx"], y: Float[Array, "n Dy"]) -> Float[Array, " Dx"]:
    """Returns the row sums of `(x^T y)^2`, float32."""
    # [Dx, Dy]. Its sum is that of K_ij L_ij over all i and j, the diagonal included.
    return jnp.square(jnp.matmul(x.T, y, precision=gram.EXACT)).sum(1)


def _own_squares(x: Float[Array, "n D"]) -> Float[Array, " ..."]:
    """Returns terms of `|x^T x|^2`, to be summed, from strips of the upper half of the product."""
    # Strips narrower than 128 columns are not worth a product of their own.
    width = -(-x.shape[1] // OWN_STRIPS) if x.shape[1] >= 128 * OWN_STRIPS else x.shape[1]
    terms = []
    for start in range(0, x.shape[1], width):
        strip = x[:, start : start + width]
        # [width, D - start]
        square = jnp.square(jnp.matmul(strip.T, x[:, start:], precision=gram.EXACT))
        # Entries to the right of the diagonal block also count for their mirror images below it.
        terms.append(square.sum(1) + square[:, strip.shape[1] :].sum(1))
    return jnp.concatenate(terms)


@functools.partial(jax.jit, static_argnames=("use_gram", "mesh"))
def _pair_sums(
    x: Float[Array, "n Dx"],
    y: Float[Array, "n Dy"],
    items: ItemRows | None = None,
    *,
    use_gram: bool,
    mesh: Mesh | None,
) -> PairSums:
    """Computes all sums that need the rows, by Gram tiles or by features."""
    n = x.shape[0]
    tile = gram.tile_size(n)
    # [n'], n rounded up to whole tiles; all rows count but the padding.
    kept = jnp.arange(n + (-n % tile if use_gram else 0)) < n
    # One batched product takes both sides, so the narrower one gets columns of zeros, which add nothing to K.
    width = max(x.shape[1], y.shape[1])

    def centred(a: jax.Array) -> gram.Centred:
        columns = width - a.shape[1] if use_gram or items is not None else 0
        return gram.centre(jnp.pad(a, ((0, kept.shape[0] - n), (0, columns)))[None], kept)

    # Rows of each [1, n', D]: a state of one model, for the functions of `gram`.
    a, b = centred(x), centred(y)
    # [n', Dx], [n', Dy]
    x0, y0 = a.rows[0], b.rows[0]
    q = within = None
    if items is not None:
        items = items.padded(kept.shape[0] - n)
        both = jnp.concatenate([a.rows, b.rows])  # [2, n', D]
        totals, within = within_items(both, items, ((0, 1), (0, 0), (1, 1)))
        q = (both * totals).sum(2)
    if use_gram:
        rows = jnp.concatenate([a.rows, b.rows])  # [2, n', D]
        tiles = jnp.asarray(gram.tile_pairs(kept.shape[0] // tile, 1))
        # [3, n'], without the diagonal
        off = gram.gram_row_sums(rows, tiles, ((0, 1), (0, 0), (1, 1)), tile, None if items is None else items.slot)
    else:
        # Several float32 terms per product rather than one number: the host adds them in float64.
        terms = [_squares(x0, y0), _own_squares(x0), _own_squares(y0)]
        # [3, *], the shorter lists padded with zeros
        longest = max(t.shape[0] for t in terms)
        off = jnp.stack([jnp.pad(t, (0, longest - t.shape[0])) for t in terms])
    sums = PairSums(
        off=off,
        r=jnp.square(x0).sum(1),
        s=jnp.square(y0).sum(1),
        mean_square=jnp.concatenate([a.mean_square, b.mean_square]),
        exponent=jnp.concatenate([a.exponent, b.exponent]),
        finite=jnp.isfinite(x).all() & jnp.isfinite(y).all(),
        q=q,
        within=within,
    )
    return replicate(sums, mesh)


def _prepare(x: np.ndarray | jax.Array, name: str) -> tuple[np.ndarray | jax.Array, float]:
    """Returns the rows as the device takes them, and the machine epsilon that decides if their spread is rounding.

    Args:
      x: [n, D] real numbers.
      name: of the array, for messages.

    Raises:
      UndefinedSimilarity: float64 or integer rows without variance.
      Refusal: 3 for a shape or dtype that does not fit, and for float64 rows that are not finite.
    """
    x = real_array(x, name)
    if x.ndim != 2:
        raise Refusal(BAD_INPUT, f"{name} has shape {list(x.shape)}; give a two-dimensional array [rows, width]")
    if x.shape[0] < MIN_ROWS or x.shape[1] == 0:
        raise Refusal(BAD_INPUT, f"{name} has shape {list(x.shape)}; give at least {MIN_ROWS} rows and one column")
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype != np.float64:
        # Float32 and narrower numbers lose nothing on the way to the device, which centres them itself.
        return x, float(jnp.finfo(x.dtype).eps)
    # Float64 has digits that the device's float32 would cut off. Under a large offset these digits are the data, so
    # such rows are centred here.
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).any(1).sum())
        raise Refusal(BAD_INPUT, f"{name} has {bad} rows that are not finite; leave them out")
    peak = np.abs(x).max()
    # A power of two scales exactly; afterwards no square overflows.
    x = np.ldexp(x, -np.frexp(peak)[1])
    mean = x.mean(0)
    x = x - mean
    eps = float(np.finfo(np.float64).eps)
    # The device never sees this mean, so the test for variance is here.
    if variance_missing(np.square(x).sum(), np.square(mean).sum(), len(x), eps):
        raise UndefinedSimilarity(f"no variance in {name}: all rows are the same")
    # Scaled again, since the spread may be far smaller than the offset was: no entry leaves the range of float32.
    return np.ldexp(x, -np.frexp(np.abs(x).max())[1]).astype(np.float32), eps


def cka(
    x: np.ndarray | jax.Array,
    y: np.ndarray | jax.Array,
    estimator: str = "debiased",
    *,
    items: np.ndarray | Sequence | None = None,
) -> float:
    """Computes exact linear CKA of two sets of paired rows; signed, never clamped.

    Args:
      x: [n, D_x] real array, n >= 4: of NumPy or JAX, a CPU tensor of torch, or a table of numbers. float16, bfloat16,
        float32 and float64 are taken as they are; integers, truth values and long doubles become float64.
      y: [n, D_y] real array; D_y may differ.
      estimator: `"debiased"` (about 0 for independent data at any width) or `"biased"` (Kornblith et al. 2019, the
        one of the MOSSA paper; near 1 for independent data once D is much larger than n).
      items: [n] ids: rows with the same one are related, as questions on one passage are. The debiased value then
        rests on pairs of rows of different items alone. By default every row is an item of its own.

    Returns:
      The value, within 1e-6 of float64.

    Raises:
      UndefinedSimilarity: a side has no variance, its debiased self-similarity is not positive, or one item has half
        of the rows or more.
      Refusal: 2 for an unknown estimator; 3 for different n, fewer than 4 rows or items, rows that are not finite or
        have masked cells, or arrays that are not two-dimensional or hold no real numbers.

    Example:
      >>> import mossa_jax as mossa, numpy as np
      >>> x = np.random.default_rng(0).normal(size=(100, 16))
      >>> mossa.cka(x, 3 * x[:, ::-1] + 7)  # neither order, scale nor offset of the columns matters
      1.0
    """
    if estimator not in ESTIMATORS:
        raise Refusal(BAD_CONFIG, f"estimator is {estimator!r}; give one of {', '.join(ESTIMATORS)}")
    (x, eps_x), (y, eps_y) = _prepare(x, "x"), _prepare(y, "y")
    n = x.shape[0]
    if y.shape[0] != n:
        raise Refusal(
            BAD_INPUT, f"x has {n} rows and y has {y.shape[0]}; rows are paired, give the same examples in order"
        )
    check_labels(items, None, n)
    rows_of_items = None
    if items is not None and len(np.unique(np.asarray(items))) < n:
        rows_of_items = item_rows(np.asarray(items), np.ones(n, bool))
        if rows_of_items.items < MIN_ROWS:
            raise Refusal(BAD_INPUT, f"items name {rows_of_items.items} items; give at least {MIN_ROWS}")
    use_gram = n < GRAM_ROWS_PER_COLUMN * max(x.shape[1], y.shape[1])
    # If either array is spread over a mesh, the sums are replicated over it so that every process can read them.
    meshes = [mesh_of(a) for a in (x, y) if isinstance(a, jax.Array)]
    mesh = next((m for m in meshes if m), None)
    sums = jax.tree.map(np.asarray, _pair_sums(x, y, rows_of_items, use_gram=use_gram, mesh=mesh))
    if not sums.finite:
        raise Refusal(BAD_INPUT, "x or y has rows that are not finite; leave them out of both")
    r, s = sums.r.astype(np.float64), sums.s.astype(np.float64)
    # [2], in the unit of the centred rows; powers of two are exact.
    mean_square = sums.mean_square.astype(np.float64) * 4.0 ** -sums.exponent.astype(np.float64)
    for name, rows, square, eps in (("x", r, mean_square[0], eps_x), ("y", s, mean_square[1], eps_y)):
        if variance_missing(rows.sum(), square, n, eps):
            raise UndefinedSimilarity(f"no variance in {name}: all rows are the same")
    # [3] each, of (x, y), (x, x), (y, y): the parts of HSIC.
    off = sums.off.astype(np.float64).sum(1)
    diagonal = np.array([(a * b).sum() for a, b in ((r, s), (r, r), (s, s))])
    traces = np.array([a.sum() * b.sum() for a, b in ((r, s), (r, r), (s, s))])
    if rows_of_items is not None:
        return _by_items(sums, rows_of_items, off, estimator, use_gram)
    if not use_gram:
        # Sums by features include the diagonal, which is subtracted here in float64.
        off = off - diagonal
    biased, debiased, noise = whole_products(off, diagonal, traces, n)
    return _ratio(estimator, biased, debiased, noise)


def _by_items(sums: Any, rows: ItemRows, off: np.ndarray, estimator: str, use_gram: bool) -> float:
    """Returns the value if rows share items; `off` [3] as in `PairSums`, summed."""
    assert sums.q is not None and sums.within is not None
    n = len(rows.slot)
    items = Items(np.asarray(rows.slot), np.asarray(rows.slot_size)[: int(rows.items)].astype(np.int64))
    q, within = sums.q[:, :n].astype(np.float64), sums.within.astype(np.float64).sum(1)
    if not use_gram:
        off = off - within
    if estimator == "debiased" and items.too_large:
        raise UndefinedSimilarity("one item has half of the rows or more")
    sides = (q[[0, 0, 1]], q[[1, 0, 1]])  # of (x, y), (x, x), (y, y)
    return _ratio(estimator, off + within, *item_debiased(off, sides, items))


def _ratio(estimator: str, biased: np.ndarray, debiased: np.ndarray, noise: np.ndarray) -> float:
    """Returns the value from the products of (x, y), (x, x) and (y, y), each [3]."""
    if estimator == "biased":
        return float(ratio(*biased))
    for i, name in ((1, "x"), (2, "y")):
        if debiased[i] <= noise[i]:
            raise UndefinedSimilarity(f"debiased self-similarity is not positive in {name}: its rows are equidistant")
    return float(ratio(*debiased))
