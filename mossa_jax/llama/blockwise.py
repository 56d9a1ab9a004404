"""Attention over packed rows in plain XLA: a block of queries at a time, against the few keys that it can see.

A sequence is no longer than `max_own`, so a block needs no key further back, and of the ids that all sequences share
the leading columns alone. What is skipped is what the mask would hide: the result is that of the whole row. The
backward pass recomputes a block's weights from each query's normaliser (Dao et al. 2022, arXiv 2205.14135, algorithm
4), so nothing of the size of the scores outlives its block. Blocks are a loop on purpose: written out one by one,
XLA's CPU runtime works on all of them at once and waits for memory, at twice the time (BUILD_NOTES.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

_NOTHING = -2  # segment of columns that no token sees


def exact(dtype) -> jax.lax.Precision | None:
    """Precision of a matrix product whose result should deserve its type: never the platform's default for float32,
    which on TPU and GPU means fewer bits.
    """
    return None if dtype in (jnp.bfloat16, jnp.float16) else jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Spans:
    """Which keys each block of queries meets.

    Attributes:
      size: queries in a block.
      max_own: a query sees no own key so many columns back or more.
      prefix: leading columns that may hold shared keys (segment -1).
    """

    size: int
    max_own: int
    prefix: int = 0


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def blockwise(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, spans: Spans) -> jax.Array:
    """Softmax attention of packed rows.

    Args:
      q: [B, S, H, d].
      k, v: [B, T, K, d], K divides H; the queries are the last S of T columns.
      segments: [B, T] as in `attention.Segments`.
      spans: `max_own` hides what is further back in the own sequence, if there is anything.

    Returns:
      [B, S, H, d] in the dtype of `v`.
    """
    return _forward(q, k, v, segments, spans)[0]


def _forward(q, k, v, segments, spans):
    rows = _Rows.of(q, k, v, segments, spans)
    _, (out, norm) = jax.lax.scan(lambda _, block: (None, rows.forward(block)), None, jnp.arange(rows.blocks))
    out = rows.out(out).astype(v.dtype)
    return out, (q, k, v, segments, out, norm)


def _backward(spans, saved, gradient):
    q, k, v, segments, out, norm = saved
    rows = _Rows.of(q, k, v, segments, spans)
    wide = norm.dtype
    inner = jnp.sum(gradient.astype(wide) * out.astype(wide), axis=-1, keepdims=True)
    gradient, inner = rows.heads_first(gradient), rows.heads_first(inner)
    blank = [jnp.zeros((*x.shape[:2], x.shape[3], x.shape[2]), wide) for x in (rows.k, rows.v)]

    def add(sums, block):
        by_query, *parts = rows.backward(block, norm[block], gradient, inner)
        return [rows.add(total, block, part) for total, part in zip(sums, parts, strict=True)], by_query

    (by_key, by_value), by_query = jax.lax.scan(add, blank, jnp.arange(rows.blocks))
    by_query = (rows.out(by_query) * q.shape[-1] ** -0.5).astype(q.dtype)
    return by_query, rows.keys(by_key).astype(k.dtype), rows.keys(by_value).astype(v.dtype), None


blockwise.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Rows:
    """Rows laid out so that every block looks the same: heads in front, nothing on `max_own - 1` columns before all.

    Attributes:
      q: [B, K, G, blocks * size, d], scaled; G of them share a key's head.
      k, v: [B, K, C, d]; C columns: the leading ones once more, nothing, all T, nothing.
      first: [B, blocks * size] int32, the first own key of each query, counted from the first column near block 0.
      front: [B, blocks * size] int32, how many of the leading columns each query sees.
      queries, columns: S and T.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    first: jax.Array
    front: jax.Array
    spans: Spans
    queries: int
    columns: int

    @classmethod
    def of(cls, q, k, v, segments, spans: Spans) -> _Rows:
        offset, behind = k.shape[1] - q.shape[1], -q.shape[1] % spans.size

        def laid_out(x):
            padded = jnp.pad(x, ((0, 0), (spans.max_own - 1, behind), (0, 0), (0, 0)))
            return jnp.concatenate([x[:, : spans.prefix], padded], axis=1).swapaxes(1, 2)

        segments = jnp.pad(segments, ((0, 0), (0, behind)), constant_values=_NOTHING)
        column = jnp.arange(segments.shape[1])
        begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        first = jax.lax.cummax(jnp.where(begins, column, 0), axis=1)
        # Shared keys are met in front only: their own queries too meet nothing else.
        first = jnp.where(segments == -1, column + spans.max_own, first) - offset + spans.max_own - 1
        prefix = jnp.sum(segments == -1, axis=1, keepdims=True)
        front = jnp.where(segments > 0, prefix, jnp.where(segments == -1, column + 1, 0))
        scaled = _grouped(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k.shape[2], spans.size)
        own = (first[:, offset:], front[:, offset:])
        return cls(scaled, laid_out(k), laid_out(v), *own, spans, q.shape[1], k.shape[1])

    @property
    def blocks(self) -> int:
        return self.q.shape[3] // self.spans.size

    def heads_first(self, x: jax.Array) -> jax.Array:
        """[B, S, H, *] -> [B, K, G, blocks * size, *]."""
        return _grouped(x, self.k.shape[1], self.spans.size)

    def out(self, blocks: jax.Array) -> jax.Array:
        """[blocks, B, K, G, size, d] -> [B, S, H, d]."""
        count, rows, heads, groups, size, width = blocks.shape
        x = blocks.transpose(1, 0, 4, 2, 3, 5).reshape(rows, count * size, heads * groups, width)
        return x[:, : self.queries]

    def keys(self, x: jax.Array) -> jax.Array:
        """[B, K, d, C] -> [B, T, K, d]; what the leading columns got in front is theirs as well."""
        prefix = self.spans.prefix
        own = x[..., prefix + self.spans.max_own - 1 :][..., : self.columns]
        return own.at[..., :prefix].add(x[..., :prefix]).transpose(0, 3, 1, 2)

    def _start(self, block):
        """The first of the columns near a block."""
        return self.spans.prefix + self.columns - self.queries + block * self.spans.size

    def _own(self, x: jax.Array, block) -> jax.Array:
        """A block's queries of [B, K, G, blocks * size, *]: [B, K, G * size, *]."""
        part = jax.lax.dynamic_slice_in_dim(x, block * self.spans.size, self.spans.size, axis=3)
        return part.reshape(*part.shape[:2], -1, part.shape[-1])

    def _seen(self, x: jax.Array, block, axis: int) -> jax.Array:
        """A block's columns of `x`: the leading ones, and those near it."""
        near = jax.lax.dynamic_slice_in_dim(x, self._start(block), self.spans.max_own - 1 + self.spans.size, axis)
        return jnp.concatenate([jax.lax.slice_in_dim(x, 0, self.spans.prefix, axis=axis), near], axis)

    def _hidden(self, block, dtype) -> jax.Array:
        """[B, 1, 1, size, columns]: 0 where a query sees a key, else minus infinity."""
        spans, at = self.spans, block * self.spans.size
        query, column = jnp.arange(spans.size), jnp.arange(spans.max_own - 1 + spans.size)
        first, front = (jax.lax.dynamic_slice_in_dim(x, at, spans.size, 1)[..., None] for x in (self.first, self.front))
        # Two comparisons with a number that each query has: the whole condition would quadruple the loop over scores.
        first = jnp.maximum(first - at, query[:, None])
        seen = (column >= first) & (column <= query[:, None] + spans.max_own - 1)
        seen = jnp.concatenate([jnp.arange(spans.prefix) < front, seen], axis=-1) if spans.prefix else seen
        return jnp.where(seen, 0.0, -jnp.inf).astype(dtype)[:, None, None]

    def _scores(self, block) -> jax.Array:
        """[B, K, G, size, columns]."""
        scores = _product("bkqd,bktd->bkqt", self._own(self.q, block), self._seen(self.k, block, 2))
        scores = scores.reshape(*scores.shape[:2], -1, self.spans.size, scores.shape[-1])
        return scores + self._hidden(block, scores.dtype)

    def forward(self, block) -> tuple[jax.Array, jax.Array]:
        """A block's output [B, K, G, size, d] and the logarithm of its queries' normalisers [B, K, G, size, 1]."""
        scores = self._scores(block)
        most = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - most)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _product("bkqt,bktd->bkqd", _joined(weights).astype(self.v.dtype), self._seen(self.v, block, 2))
        return out.reshape(*weights.shape[:-1], -1) / total, most + jnp.log(total)

    def backward(self, block, norm, gradient, inner) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Gradients by a block's scaled queries [B, K, G, size, d], and by its keys and values [B, K, d, columns].

        Args:
          block: its number.
          norm: of its queries, from the forward pass.
          gradient: by all outputs, [B, K, G, blocks * size, d].
          inner: its inner product with the output, [B, K, G, blocks * size, 1].
        """
        weights = _joined(jnp.exp(self._scores(block) - norm))
        gradient = self._own(gradient, block)
        by_weight = _product("bkqd,bktd->bkqt", gradient, self._seen(self.v, block, 2))
        # Each is used twice: without the barrier XLA computes it twice as well.
        weights, by_weight = jax.lax.optimization_barrier((weights, by_weight))
        by_score = (weights * (by_weight - self._own(inner, block))).astype(self.k.dtype)
        by_score = jax.lax.optimization_barrier(by_score)
        by_query = _product("bkqt,bktd->bkqd", by_score, self._seen(self.k, block, 2))
        # Columns last: with a head's width last, XLA's CPU product takes three times as long.
        by_key = _product("bkqt,bkqd->bkdt", by_score, self._own(self.q, block))
        by_value = _product("bkqt,bkqd->bkdt", weights.astype(self.v.dtype), gradient)
        return by_query.reshape(*norm.shape[:-1], -1), by_key, by_value

    def add(self, total: jax.Array, block, part: jax.Array) -> jax.Array:
        """Adds what a block's columns got to the sum over all blocks."""
        prefix, start = self.spans.prefix, self._start(block)
        old = jax.lax.dynamic_slice_in_dim(total, start, part.shape[-1] - prefix, axis=3)
        total = jax.lax.dynamic_update_slice_in_dim(total, old + part[..., prefix:], start, axis=3)
        return total.at[..., :prefix].add(part[..., :prefix]) if prefix else total


def _grouped(x: jax.Array, heads: int, size: int) -> jax.Array:
    """[B, S, H, *] -> [B, heads, G, S rounded up to a multiple of `size`, *]."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
    return x.reshape(*x.shape[:2], heads, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)


def _joined(x: jax.Array) -> jax.Array:
    """[B, K, G, size, columns] -> [B, K, G * size, columns]."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _product(names: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """In float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(names, x, y, precision=exact(x.dtype), preferred_element_type=wide)
