"""CKA of unlimited rows from streamed moments: constant memory in n, any batching, any order, any sharding.

Rows are shifted once by fixed vectors (the means of the first batch, say), then every statistic is a plain sum, so
that shards and batches combine by addition or `psum`. The sums are float32 with compensated (Kahan) carry-over from
batch to batch. For debiased CKA of far fewer rows than columns keep the rows instead: there it is the small
difference of large terms.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mossa_jax.similarity.estimators import MIN_ROWS, UndefinedSimilarity, ratio, variance_missing

EXACT = lax.Precision.HIGHEST


class Sums(NamedTuple):
    """Plain sums over shifted rows x, y with `a = |x|^2`, `b = |y|^2`; every leaf adds.

    For (x, y), (x, x), (y, y) in this order: `products` [D_x, D_y], [D_x, D_x], [D_y, D_y] sums of outer products;
    `x` [D_x], `y` [D_y] sums of rows; `bx, ax` [D_x] and `ay, by` [D_y] norm-weighted sums of rows; `norms` [5] sums
    of a, b, ab, aa, bb; `count` [] float32 whole number of rows (exact to 16.7 million).
    """

    count: jax.Array
    x: jax.Array
    y: jax.Array
    products: tuple[jax.Array, jax.Array, jax.Array]
    bx: jax.Array
    ax: jax.Array
    ay: jax.Array
    by: jax.Array
    norms: jax.Array


class Moments(NamedTuple):
    """A stream's state: the fixed shifts, the sums, and what rounding has kept out of the sums so far."""

    shift_x: jax.Array
    shift_y: jax.Array
    sums: Sums
    carry: Sums


def start(shift_x: jax.Array, shift_y: jax.Array) -> Moments:
    """An empty stream.

    Args:
        shift_x: [D_x] vector near the mean of x, the same for all streams that are to be merged.
        shift_y: [D_y] the same for y.
    """
    shift_x, shift_y = (jnp.asarray(s, jnp.float32) for s in (shift_x, shift_y))
    x, y = jnp.zeros_like(shift_x), jnp.zeros_like(shift_y)
    products = tuple(jnp.zeros((u.size, v.size), jnp.float32) for u, v in ((x, y), (x, x), (y, y)))
    empty = Sums(jnp.zeros(()), x, y, products, x, x, y, y, jnp.zeros(5))
    return Moments(shift_x, shift_y, empty, empty)


def _add(total: Sums, carry: Sums, more: Sums) -> tuple[Sums, Sums]:
    """Kahan addition, leaf by leaf."""
    term = jax.tree.map(jnp.subtract, more, carry)
    new = jax.tree.map(jnp.add, total, term)
    # The barrier keeps the compiler from cancelling the compensation algebraically.
    moved = jax.tree.map(jnp.subtract, lax.optimization_barrier(new), total)
    return new, jax.tree.map(jnp.subtract, moved, term)


@jax.jit
def update(state: Moments, x: jax.Array, y: jax.Array, valid: jax.Array) -> Moments:
    """Adds a batch.

    Args:
        state: of the stream.
        x: [B, D_x] rows of any floating dtype.
        y: [B, D_y] rows paired with x.
        valid: [B] bool; rows that do not count, or are not finite on either side, add nothing.
    """
    kept = valid & jnp.isfinite(x).all(1) & jnp.isfinite(y).all(1)
    x = jnp.where(kept[:, None], x.astype(jnp.float32) - state.shift_x, 0)
    y = jnp.where(kept[:, None], y.astype(jnp.float32) - state.shift_y, 0)
    a, b = jnp.square(x).sum(1), jnp.square(y).sum(1)
    dot = functools.partial(jnp.matmul, precision=EXACT)
    batch = Sums(
        count=kept.sum().astype(jnp.float32),
        x=x.sum(0),
        y=y.sum(0),
        products=(dot(x.T, y), dot(x.T, x), dot(y.T, y)),
        bx=dot(b, x),
        ax=dot(a, x),
        ay=dot(a, y),
        by=dot(b, y),
        norms=jnp.stack([a.sum(), b.sum(), dot(a, b), dot(a, a), dot(b, b)]),
    )
    return state._replace(**dict(zip(("sums", "carry"), _add(state.sums, state.carry, batch), strict=True)))


@jax.jit
def merge(a: Moments, b: Moments) -> Moments:
    """Joins two streams that started from the same shifts."""
    sums, carry = _add(a.sums, a.carry, b.sums)
    return a._replace(sums=sums, carry=jax.tree.map(jnp.add, carry, b.carry))


class Result(NamedTuple):
    """Both estimates and what they rest on: `n` rows, participation ratios and relative offsets of x and y."""

    biased: float
    debiased: float
    n: int
    participation_ratio: tuple[float, float]
    offset: tuple[float, float]


def _terms(n: int, mu: np.ndarray, nu: np.ndarray, s: np.ndarray, a: float, b: float, ab: float, bx, ay):
    """`h`, `r . s` of centred rows from the sums of shifted ones."""
    mu2, nu2 = mu @ mu, nu @ nu
    h = np.square(s - n * np.outer(mu, nu)).sum()
    rs = ab - 2 * nu @ ay - 2 * mu @ bx + 4 * mu @ s @ nu + nu2 * a + mu2 * b - 3 * n * mu2 * nu2
    return h, rs


def finish(state: Moments) -> Result:
    """Both estimates of CKA, combined in float64.

    Raises:
        UndefinedSimilarity: fewer than 4 rows, a side without variance, or debiased self-similarity not positive.
    """
    s = jax.tree.map(lambda t, c: np.asarray(t, np.float64) - np.asarray(c, np.float64), state.sums, state.carry)
    n = round(float(s.count))
    if n < MIN_ROWS:
        raise UndefinedSimilarity(f"{n} finite rows; at least {MIN_ROWS} are needed")
    mu, nu = s.x / n, s.y / n
    a, b, ab, aa, bb = s.norms
    terms = (
        _terms(n, mu, nu, s.products[0], a, b, ab, s.bx, s.ay),
        _terms(n, mu, mu, s.products[1], a, a, aa, s.ax, s.ax),
        _terms(n, nu, nu, s.products[2], b, b, bb, s.by, s.by),
    )
    traces = a - n * mu @ mu, b - n * nu @ nu
    offsets = []
    for name, trace, shift, mean in (("x", traces[0], state.shift_x, mu), ("y", traces[1], state.shift_y, nu)):
        square = np.square(np.asarray(shift, np.float64) + mean).sum()
        if variance_missing(trace, square, n, float(np.finfo(np.float32).eps)):
            raise UndefinedSimilarity(f"no variance in {name}: all rows are the same")
        offsets.append(float(np.sqrt(square * n / trace)))
    h = np.array([t[0] for t in terms])
    pairs = np.array([traces[0] * traces[1], traces[0] ** 2, traces[1] ** 2])
    u = h - n / (n - 2) * np.array([t[1] for t in terms]) + pairs / ((n - 1) * (n - 2))
    if (u[1:] <= 1e-6 * h[1:]).any():
        raise UndefinedSimilarity("debiased self-similarity is not positive")
    return Result(float(ratio(*h)), float(ratio(*u)), n, tuple((pairs / h)[1:].tolist()), tuple(offsets))
