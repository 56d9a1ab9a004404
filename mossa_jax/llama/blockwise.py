"""Attention over packed rows in plain XLA: one block of queries at a time, against the few keys that it can see.

A query sees no key of its own sequence `window` or more columns back, so a block needs no key further back than that.
Besides those it needs only the prefix that all sequences share, in the first columns of the row. Only keys that the
mask would hide are skipped, so the result is that of the whole row. Where the window spans the row, every block meets
all of the row's keys. The backward pass recomputes a block's weights from
each query's normaliser (Dao et al. 2022, arXiv 2205.14135, algorithm 4), so nothing as large as the scores outlives its
block. The blocks are a loop on purpose: when they are unrolled, XLA's CPU runtime works on all of them at once and
waits for memory, which takes twice as long (docs/measurements.md).

Shape letters: B rows, S queries of a row, T keys of a row (the queries are the last S of T columns), H heads,
K key/value heads, G = H / K queries' heads per key's head, d head width, P prefix columns, N blocks, Q queries per
block, S' = N Q (S rounded up to whole blocks), C columns of keys (`_Rows`), W keys that a block meets: P + window - 1 +
Q of them, or P + T + S' - S where the window spans the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

# Segment of columns that no token sees.
_NOTHING = -2

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def product_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Returns the precision of a matrix product that is worth its number type.

    For float32 and wider that is never the platform's default, which on TPU and GPU keeps fewer bits.
    """
    return None if dtype in (jnp.bfloat16, jnp.float16) else jax.lax.Precision.HIGHEST


def soft_cap(scores: Float[Array, "*rows W"], cap: float) -> Float[Array, "*rows W"]:
    """Bends scores so that none passes `cap` (Gemma Team 2024, arXiv 2408.00118, section 2); 0: they stay."""
    return cap * jnp.tanh(scores / cap) if cap else scores


@dataclass(frozen=True)
class Spans:
    """Which keys each block of queries meets.

    Attributes:
      block: queries per block (Q).
      window: a query sees no key of its own sequence `window` or more columns back.
      prefix_columns: columns at the head of a row that may hold shared keys (segment -1) (P).
      cap: scores x become cap tanh(x / cap); 0: they stay.
    """

    block: int
    window: int
    prefix_columns: int = 0
    cap: float = 0.0

    def meets_all(self, columns: int) -> bool:
        """Whether a block meets all keys of a row of `columns`, since the keys near it would be as many or more."""
        return self.window - 1 + self.block >= columns


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def blockwise(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B T K d"],
    v: Float[Array, "B T K d"],
    segments: Int[Array, "B T"],
    spans: Spans,
) -> Float[Array, "B S H d"]:
    """Computes softmax attention over packed rows.

    Args:
      q: [B, S, H, d].
      k, v: [B, T, K, d]; K divides H. The queries are the last S of T columns.
      segments: [B, T] as in `attention.Segments`.
      spans: `spans.window` also hides the keys of the own sequence that are further back, if there are any.

    Returns:
      [B, S, H, d] in the dtype of `v`.
    """
    return _forward(q, k, v, segments, spans)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, spans: Spans
) -> tuple[jax.Array, Residuals]:
    rows = _Rows.lay_out(q, k, v, segments, spans)
    # out [N, B, K, G, Q, d], log_normaliser [N, B, K, G, Q, 1]
    _, (out, log_normaliser) = jax.lax.scan(lambda _, block: (None, rows.forward(block)), None, jnp.arange(rows.blocks))
    # One number per query is kept instead of its weights: [N, B, K, G, Q, 1] for the backward pass.
    out = rows.heads_last(out).astype(v.dtype)  # [B, S, H, d]
    return out, (q, k, v, segments, out, log_normaliser)


def _backward(spans: Spans, residuals: Residuals, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segments, out, log_normaliser = residuals
    rows = _Rows.lay_out(q, k, v, segments, spans)
    return rows.all_gradients(q, k, v, out, log_normaliser, gradient)


def gradients(
    spans: Spans, kept: Residuals, gradient: Float[Array, "B S H d"]
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """Computes the gradients of `blockwise` where another body has computed its output.

    Args:
      spans: as in `blockwise`.
      kept: q, k, v and segments as in `blockwise`; its output; and, [B, S, H], the logarithm of the sum of the
        exponentials of each query's scores.
      gradient: by the output.

    Returns:
      By q, k, v and, None, by segments.
    """
    q, k, v, segments, out, log_normaliser = kept
    rows = _Rows.lay_out(q, k, v, segments, spans)
    flat = rows.heads_first(log_normaliser[..., None])  # [B, K, G, S', 1]
    # Queries that only fill up a block have no weights.
    empty = jnp.arange(flat.shape[3]) >= rows.queries
    flat = jnp.where(empty[:, None], jnp.inf, flat)
    # [B, K, G, N, Q, 1] -> [N, B, K, G, Q, 1]
    blocks = jnp.moveaxis(flat.reshape(*flat.shape[:3], rows.blocks, spans.block, 1), 3, 0)
    return rows.all_gradients(q, k, v, out, blocks, gradient)


blockwise.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Rows:
    """Rows laid out so that every block looks the same: heads first, and empty columns around the keys.

    The C columns of keys are: the P prefix columns once more, `window - 1` empty ones, all T columns, and empty ones
    up to a whole block. Where the window spans the row there are none in front.

    Attributes:
      q: [B, K, G, S', d], scaled.
      k, v: [B, K, C, d].
      first: [B, S'] int32, the first key of each query's own sequence, counted from the first of the columns that are
        near block 0.
      front: [B, S'] int32, how many of the prefix columns each query sees.
      spans: as in `blockwise`.
      queries, columns: S and T.
    """

    q: Float[Array, "B K G S d"]
    k: Float[Array, "B K C d"]
    v: Float[Array, "B K C d"]
    first: Int[Array, "B S"]
    front: Int[Array, "B S"]
    spans: Spans
    queries: int
    columns: int

    @classmethod
    def lay_out(cls, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, spans: Spans) -> _Rows:
        """Lays out the arguments of `blockwise`."""
        columns = k.shape[1]
        # Columns before the first query, and queries that fill up the last block.
        offset, behind = columns - q.shape[1], -q.shape[1] % spans.block
        # Empty columns before and behind the keys. Queries that fill up a block see those behind, so that every query
        # sees something.
        is_whole = spans.meets_all(columns)
        around = (0 if is_whole else spans.window - 1, behind)

        def keys_first(x: jax.Array) -> jax.Array:
            """[B, T, K, d] -> [B, K, C, d]."""
            # With `window - 1` columns in front, the first block has as many near columns as all others:
            # one shape for the loop.
            padded = jnp.pad(x, ((0, 0), around, (0, 0), (0, 0)))
            return jnp.concatenate([x[:, : spans.prefix_columns], padded], axis=1).swapaxes(1, 2)

        segments = jnp.pad(segments, ((0, 0), (0, behind)), constant_values=_NOTHING)  # [B, T + behind]
        column = jnp.arange(segments.shape[1])
        # [B, T + behind]: whether a segment begins in this column. The running maximum of such columns is
        # each token's own beginning.
        begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        first = jax.lax.cummax(jnp.where(begins, column, 0), axis=1)  # [B, T + behind]
        # Shared keys are met in front only. Their own queries, too, meet nothing else.
        first = jnp.where(segments == -1, column + columns + spans.window, first)
        first = first if is_whole else first - offset + spans.window - 1
        # A query sees the whole prefix, a prefix token sees it up to itself, and padding sees none of it.
        prefix_length = jnp.sum(segments == -1, axis=1, keepdims=True)  # [B, 1]
        front = jnp.where(segments > 0, prefix_length, jnp.where(segments == -1, column + 1, 0))
        # Scaled once here, instead of the scores in every block.
        scaled = _group_heads(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k.shape[2], spans.block)
        first, front = first[:, offset:], front[:, offset:]  # [B, S']
        return cls(scaled, keys_first(k), keys_first(v), first, front, spans, queries=q.shape[1], columns=columns)

    @property
    def blocks(self) -> int:
        """Returns N, the number of blocks."""
        return self.q.shape[3] // self.spans.block

    def heads_first(self, x: Float[Array, "B S H w"]) -> Float[Array, "B K G S w"]:
        """[B, S, H, w] -> [B, K, G, S', w]."""
        return _group_heads(x, self.k.shape[1], self.spans.block)

    def heads_last(self, blocks: Float[Array, "N B K G Q d"]) -> Float[Array, "B S H d"]:
        """[N, B, K, G, Q, d] -> [B, S, H, d]."""
        count, rows, heads, groups, size, width = blocks.shape
        # [N, B, K, G, Q, d] -> [B, N, Q, K, G, d] -> [B, S', H, d], and then without the empty queries.
        x = blocks.transpose(1, 0, 4, 2, 3, 5).reshape(rows, count * size, heads * groups, width)
        return x[:, : self.queries]

    def keys(self, x: Float[Array, "B K d C"]) -> Float[Array, "B T K d"]:
        """[B, K, d, C] -> [B, T, K, d]: adds what the prefix received as the copy in front to the prefix itself."""
        prefix = self.spans.prefix_columns
        before = 0 if self._is_whole else self.spans.window - 1
        own = x[..., prefix + before :][..., : self.columns]  # [B, K, d, T]
        return own.at[..., :prefix].add(x[..., :prefix]).transpose(0, 3, 1, 2)

    @property
    def _is_whole(self) -> bool:
        """Whether every block meets all of the row's keys."""
        return self.spans.meets_all(self.columns)

    @property
    def _near(self) -> int:
        """Returns W - P, the columns near a block."""
        behind = -self.queries % self.spans.block
        return self.columns + behind if self._is_whole else self.spans.window - 1 + self.spans.block

    def _near_start(self, block: Int[Array, ""]) -> Int[Array, ""]:
        """Returns the first of the C columns that are near a block, behind the copied prefix."""
        prefix = self.spans.prefix_columns
        if self._is_whole:
            return jnp.full_like(block, prefix)
        return prefix + self.columns - self.queries + block * self.spans.block

    def _queries_of(self, x: Float[Array, "B K G S w"], block: Int[Array, ""]) -> Float[Array, "B K GQ w"]:
        """Returns a block's part of [B, K, G, S', w]: [B, K, G * Q, w]."""
        # The queries of a group are one matrix: one product per key/value head.
        part = jax.lax.dynamic_slice_in_dim(x, block * self.spans.block, self.spans.block, axis=3)
        return part.reshape(*part.shape[:2], -1, part.shape[-1])

    def _keys_of(self, x: Float[Array, "B K C d"], block: Int[Array, ""]) -> Float[Array, "B K W d"]:
        """Returns the keys or values that a block meets, [B, K, W, d]: the prefix, and the columns near the block."""
        near = jax.lax.dynamic_slice_in_dim(x, self._near_start(block), self._near, axis=2)
        return jnp.concatenate([jax.lax.slice_in_dim(x, 0, self.spans.prefix_columns, axis=2), near], axis=2)

    def _mask(self, block: Int[Array, ""], dtype: DTypeLike) -> Float[Array, "B 1 1 Q W"]:
        """[B, 1, 1, Q, W]: 0 where a query sees a key, else minus infinity."""
        spans, start = self.spans, block * self.spans.block
        query, column = jnp.arange(spans.block), jnp.arange(self._near)
        # Two of [B, Q, 1]
        first, front = (
            jax.lax.dynamic_slice_in_dim(x, start, spans.block, 1)[..., None] for x in (self.first, self.front)
        )
        # Two comparisons with one number per query: the whole condition would quadruple the loop over scores.
        if self._is_whole:
            last = self.columns - self.queries + start + query[:, None]
            first = jnp.maximum(first, last - spans.window + 1)
        else:
            first = jnp.maximum(first - start, query[:, None])
            last = query[:, None] + spans.window - 1
        seen = (column >= first) & (column <= last)  # [B, Q, W - P]
        if spans.prefix_columns:
            seen = jnp.concatenate([jnp.arange(spans.prefix_columns) < front, seen], axis=-1)  # [B, Q, W]
        return jnp.where(seen, 0.0, -jnp.inf).astype(dtype)[:, None, None]

    def _scores(self, block: Int[Array, ""]) -> Float[Array, "B K G Q W"]:
        """Returns a block's scores; minus infinity where a query does not see a key."""
        scores = _product("bkqd,bktd->bkqt", self._queries_of(self.q, block), self._keys_of(self.k, block))
        scores = soft_cap(scores, self.spans.cap)
        # [B, K, G * Q, W] -> [B, K, G, Q, W], to which the mask [B, 1, 1, Q, W] is added for all heads.
        scores = scores.reshape(*scores.shape[:2], -1, self.spans.block, scores.shape[-1])
        return scores + self._mask(block, scores.dtype)

    def forward(self, block: Int[Array, ""]) -> tuple[Float[Array, "B K G Q d"], Float[Array, "B K G Q 1"]]:
        """Computes a block's output [B, K, G, Q, d] and the logarithm of its normalisers [B, K, G, Q, 1]."""
        scores = self._scores(block)
        # [B, K, G, Q, 1]. Finite: every query sees itself, and queries that only fill a block see one another.
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)  # [B, K, G, Q, W]
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights_flat = _flatten_groups(weights).astype(self.v.dtype)  # [B, K, G * Q, W]
        out = _product("bkqt,bktd->bkqd", weights_flat, self._keys_of(self.v, block))
        # Divided behind the product: d numbers per query instead of W.
        return out.reshape(*weights.shape[:-1], -1) / total, largest + jnp.log(total)

    def backward(
        self,
        block: Int[Array, ""],
        log_normaliser: Float[Array, "B K G Q 1"],
        gradient: Float[Array, "B K G S d"],
        inner: Float[Array, "B K G S 1"],
    ) -> tuple[Float[Array, "B K G Q d"], Float[Array, "B K d W"], Float[Array, "B K d W"]]:
        """Computes the gradients by a block's scaled queries, and by the keys and values that it meets.

        Args:
          block: its number.
          log_normaliser: of its queries, from the forward pass.
          gradient: by all outputs, [B, K, G, S', d].
          inner: the inner product of `gradient` with the outputs, [B, K, G, S', 1].

        Returns:
          by the queries [B, K, G, Q, d]; by the keys and by the values, each [B, K, d, W].
        """
        scores = self._scores(block)
        weights = _flatten_groups(jnp.exp(scores - log_normaliser))  # [B, K, G * Q, W]
        gradient = self._queries_of(gradient, block)  # [B, K, G * Q, d]
        # [B, K, G * Q, W].
        by_weight = _product("bkqd,bktd->bkqt", gradient, self._keys_of(self.v, block))
        # Each is used twice: without the barrier XLA computes it twice as well.
        weights, by_weight = jax.lax.optimization_barrier((weights, by_weight))
        # The gradient of softmax: weights times (gradient by weights minus their weighted mean).
        by_score = weights * (by_weight - self._queries_of(inner, block))
        if self.spans.cap:
            # The slope of cap tanh(x / cap) at a capped score y is 1 - (y / cap)^2; hidden keys have weight 0.
            capped = jnp.where(jnp.isfinite(scores), scores, 0.0)
            by_score = by_score * (1 - jnp.square(_flatten_groups(capped) / self.spans.cap))
        by_score = by_score.astype(self.k.dtype)
        # This, too, is used twice: for the queries and for the keys.
        by_score = jax.lax.optimization_barrier(by_score)
        by_query = _product("bkqt,bktd->bkqd", by_score, self._keys_of(self.k, block))
        # Columns last: with the head width last, XLA's CPU product takes three times as long.
        by_key = _product("bkqt,bkqd->bkdt", by_score, self._queries_of(self.q, block))
        by_value = _product("bkqt,bkqd->bkdt", weights.astype(self.v.dtype), gradient)
        return by_query.reshape(*log_normaliser.shape[:-1], -1), by_key, by_value

    def all_gradients(
        self,
        q: Float[Array, "B S H d"],
        k: Float[Array, "B T K d"],
        v: Float[Array, "B T K d"],
        out: Float[Array, "B S H d"],
        log_normaliser: Float[Array, "N B K G Q 1"],
        gradient: Float[Array, "B S H d"],
    ) -> tuple[jax.Array, jax.Array, jax.Array, None]:
        """Computes the gradients by queries, keys and values, block after block, in the shapes and dtypes of these."""
        wide = log_normaliser.dtype
        # Softmax takes this number off each gradient by a weight: the sum over d of gradient times
        # output (D in algorithm 4).
        # [B, S, H, 1]
        inner = jnp.sum(gradient.astype(wide) * out.astype(wide), axis=-1, keepdims=True)
        # [B, K, G, S', d] and [B, K, G, S', 1]
        gradient, inner = self.heads_first(gradient), self.heads_first(inner)
        # Two of [B, K, d, C]
        zeros = [jnp.zeros((*x.shape[:2], x.shape[3], x.shape[2]), wide) for x in (self.k, self.v)]

        # Blocks share keys, so gradients by keys and values are summed over blocks in the carry, in float32. Gradients
        # by queries are stacked, one block after another.
        def add_block(sums: list[jax.Array], block: jax.Array) -> tuple[list[jax.Array], jax.Array]:
            by_query, *by_keys = self.backward(block, log_normaliser[block], gradient, inner)
            return [self.add(total, block, part) for total, part in zip(sums, by_keys, strict=True)], by_query

        (by_key, by_value), by_query = jax.lax.scan(add_block, zeros, jnp.arange(self.blocks))
        # [B, S, H, d]. The queries were scaled by d^-0.5 before the scores, and so is their gradient.
        by_query = (self.heads_last(by_query) * q.shape[-1] ** -0.5).astype(q.dtype)
        return by_query, self.keys(by_key).astype(k.dtype), self.keys(by_value).astype(v.dtype), None

    def add(
        self, total: Float[Array, "B K d C"], block: Int[Array, ""], part: Float[Array, "B K d W"]
    ) -> Float[Array, "B K d C"]:
        """Adds the gradient of the columns that a block meets to the sum over all blocks."""
        prefix, start = self.spans.prefix_columns, self._near_start(block)
        # The near columns of neighbouring blocks overlap, so parts are added and not written.
        old = jax.lax.dynamic_slice_in_dim(total, start, part.shape[-1] - prefix, axis=3)
        total = jax.lax.dynamic_update_slice_in_dim(total, old + part[..., prefix:], start, axis=3)
        return total.at[..., :prefix].add(part[..., :prefix]) if prefix else total


def _group_heads(x: Float[Array, "B S H w"], kv_heads: int, block: int) -> Float[Array, "B K G S w"]:
    """[B, S, H, w] -> [B, K, G, S', w]; S' is S rounded up to a multiple of `block`."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
    return x.reshape(*x.shape[:2], kv_heads, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)


def _flatten_groups(x: Float[Array, "B K G Q W"]) -> Float[Array, "B K GQ W"]:
    """[B, K, G, Q, W] -> [B, K, G * Q, W]."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _product(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies by the einsum `letters`, accumulating in float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(letters, x, y, precision=product_precision(x.dtype), preferred_element_type=wide)
