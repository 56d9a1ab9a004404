"""The one door to attention: a function whose body is chosen by platform and precision.

| body | where | packed rows |
|---|---|---|
| `xla` | everywhere; always for float32 and float64, and for decoding | mask by blocks of queries |
| `splash` | TPU, bfloat16 | segment ids inside the kernel, no mask in memory |
| `cudnn` | GPU, bfloat16 and float16; not for capped scores | the kernel takes a dense mask [B, 1, S, T] |

The environment variable MOSSA_ATTENTION=xla (or splash, cudnn) overrides the choice. A kernel works in the matrix
unit's narrow precision, so float32, whose point is exactness, never goes there by itself.

Shape letters: B rows, S queries of a row, T keys of a row, C keys that all rows share, P query columns, H heads,
K key/value heads, G = H / K, d head width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.blockwise import Spans, blockwise, product_precision, soft_cap
from mossa_jax.llama.cudnn import cudnn, takes_heads
from mossa_jax.llama.splash import splash

# Queries per block.
_BLOCK = 128
# On CPU: queries per block where a block meets near keys only, and the most blocks of whole rows.
_CPU_BLOCK, _BLOCKS = 64, 8
_NARROW = (jnp.bfloat16, jnp.float16)
BODIES = ("xla", "splash", "cudnn")
_KERNELS = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}

unusable: set[str] = set()
"""Kernels that `kernel_check` has found not to work on this machine; `xla` takes their place."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Segments:
    """All queries of packed rows: each sees the keys of its own segment up to itself, and the shared prefix.

    Attributes:
      segments: [B, T] int32: 1, 2, ... per packed sequence, 0 on padding (which sees padding only). The tokens of a
        sequence are adjacent. Within the first `prefix_columns`, -1 marks keys that every sequence behind them sees.
      mesh: the devices that rows are spread over; None for one device.
      prefix_columns: columns at the head of a row that may be -1. Columns are then not positions, so this is only for
        architectures with `model.can_share_prefix`. There may be fewer queries than keys: they are the last ones.
      max_own: no sequence has more tokens of its own than this; 0: not known.
    """

    segments: Int[Array, "B T"]
    mesh: jax.sharding.Mesh | None = field(default=None, metadata={"static": True})
    prefix_columns: int = field(default=0, metadata={"static": True})
    max_own: int = field(default=0, metadata={"static": True})

    def mask(self, start: int = 0, stop: int | None = None, window: int = 0) -> Bool[Array, "B Q T"]:
        """Returns which keys up to `stop` the queries start..stop see, without a prefix.

        Args:
          start, stop: columns of the queries; `stop` defaults to the end of the row.
          window: as in `attention`.

        Returns:
          [B, stop - start, stop] bool.
        """
        # Columns stand for positions: within a segment both rise by one, so distances are the same.
        stop = self.segments.shape[1] if stop is None else stop
        distance = jnp.arange(start, stop)[:, None] - jnp.arange(stop)[None, :]
        near = (distance >= 0) & (distance < window) if window else distance >= 0
        # [Q, T] by column and [B, Q, T] by segment.
        return near & (self.segments[:, start:stop, None] == self.segments[:, None, :stop])

    def at_columns(self, columns: Int[Array, "B P"]) -> QueryColumns:
        """Returns what the queries at `columns` [B, P] see."""
        return QueryColumns(self.segments, columns)

    def lengths(self) -> Int[Array, "B T"]:
        """Returns the length of the sequence that each token belongs to: [B, T] int32."""
        # [B, T, T]. All columns of the own segment, so every token of a sequence has the whole length.
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return jnp.sum(same, axis=-1, dtype=jnp.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QueryColumns:
    """Some queries of packed rows.

    Attributes:
      segments: [B, T] as in `Segments`.
      columns: [B, P] int32, the queries' columns among the keys.
    """

    segments: Int[Array, "B T"]
    columns: Int[Array, "B P"]

    def mask(self, window: int = 0) -> Bool[Array, "B P T"]:
        """Returns which keys each query sees: [B, P, T] bool; `window` as in `attention`."""
        distance = self.columns[..., None] - jnp.arange(self.segments.shape[1])
        # Keys from the own column back, [B, P, T].
        near = (distance >= 0) & (distance < window) if window else distance >= 0
        own = jnp.take_along_axis(self.segments, self.columns, axis=1)[..., None]  # [B, P, 1]
        keys = self.segments[:, None, :]  # [B, 1, T]
        # The own segment, or the shared prefix; padding (0) does not see the prefix.
        return near & ((own == keys) | ((keys == -1) & (own != 0)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodingQuery:
    """One query per row against a cache of keys.

    Attributes:
      key_positions: [B, T] int32, the position of the key in each cache slot; -1 for an empty slot.
      position: [B, 1] int32, the query's own position.
    """

    key_positions: Int[Array, "B T"]
    position: Int[Array, "B 1"]

    def mask(self, window: int = 0) -> Bool[Array, "B 1 T"]:
        """Returns which slots the query sees: [B, 1, T] bool; `window` as in `attention`."""
        # [B, T], by position and not by slot: a row's prompt and its new tokens have a gap between their slots.
        distance = self.position - self.key_positions
        seen = (self.key_positions >= 0) & (distance >= 0)
        return (seen & (distance < window) if window else seen)[:, None, :]

    def lengths(self) -> Int[Array, "B 1"]:
        """Returns the length of the sequence that ends in the query: [B, 1] int32."""
        return self.position + 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BranchColumns:
    """Queries that continue sequences which were read before, several continuations of each side by side.

    The keys are those of the sequences, and behind them the queries' own.

    Attributes:
      key_owners: [B, T] int32, the sequence of each key that was read before, 1, 2, ...; -1 for keys that all sequences
        share, 0 for keys that nobody sees.
      key_positions: [B, T] int32, their positions.
      owners: [B, Q] int32, the sequence that each query continues; 0 on padding.
      branches: [B, Q] int32, the number of its continuation, from 1; 0 on padding (which sees padding only).
      positions: [B, Q] int32, the queries' positions.
    """

    key_owners: Int[Array, "B T"]
    key_positions: Int[Array, "B T"]
    owners: Int[Array, "B Q"]
    branches: Int[Array, "B Q"]
    positions: Int[Array, "B Q"]

    def mask(self, window: int = 0) -> Bool[Array, "B Q T+Q"]:
        """Returns which keys each query sees; `window` as in `attention`."""
        owners, columns = self.owners[..., None], jnp.arange(self.owners.shape[1])  # [B, Q, 1] and [Q]
        shared = (self.key_owners == -1)[:, None] & (owners > 0)
        read = shared | ((self.key_owners[:, None] == owners) & (owners > 0))  # [B, Q, T]
        own = (self.branches[..., None] == self.branches[:, None]) & (columns[:, None] >= columns)  # [B, Q, Q]
        seen = jnp.concatenate([read, own], axis=-1)
        if not window:
            return seen
        positions = jnp.concatenate([self.key_positions, self.positions], axis=1)  # [B, T + Q]
        return seen & (self.positions[..., None] - positions[:, None] < window)

    def lengths(self) -> Int[Array, "B Q"]:
        """Returns the length of the sequence that ends in each query: [B, Q] int32."""
        return self.positions + 1


Visible = Segments | QueryColumns | DecodingQuery | BranchColumns
"""Which keys a query sees."""


def attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B T K d"],
    v: Float[Array, "B T K d"],
    visible: Visible,
    window: int = 0,
    cap: float = 0.0,
    shared: tuple[Float[Array, "C K d"], Float[Array, "C K d"]] | None = None,
) -> Float[Array, "B S H d"]:
    """Computes softmax attention with grouped heads; scores are inner products times d^-0.5.

    Args:
      q: [B, S, H, d].
      k, v: [B, T, K, d]; K divides H.
      visible: which keys a query sees.
      window: a query sees at most this many of them, the nearest, itself included; 0: all.
      cap: scores x become cap tanh(x / cap); 0: they stay.
      shared: keys and values that all rows have in common, as the first columns of `visible`; not for `Segments`.

    Returns:
      [B, S, H, d] in the dtype of `v`; the softmax is computed in float32 or wider.

    Raises:
      Refusal: 2 for an unknown MOSSA_ATTENTION, or one that cannot cap scores.
    """
    # Few queries: their scores [B, H, P, T] are small, and no blocks are needed.
    if isinstance(visible, DecodingQuery | QueryColumns | BranchColumns):
        return _masked_attention(q, k, v, visible.mask(window), cap, shared)
    assert shared is None, "rows have their shared keys in front of their own"
    mesh = visible.mesh
    tensor = mesh.shape["tensor"] if mesh is not None else 1
    # With fewer key/value heads than devices on the tensor axis, each device gets a copy of the head that it needs.
    if k.shape[2] % tensor:
        k, v = (jnp.repeat(x, tensor // k.shape[2], axis=2) for x in (k, v))
    # No query sees a key this many columns back: the window hides it, or no sequence is that long.
    near = min(filter(None, (window, visible.max_own)), default=0)
    spans = Spans(_BLOCK, near or k.shape[1], visible.prefix_columns, cap)
    match choose_body(mesh, q.dtype, q.shape[-1], cap):
        case "splash":
            return splash(q, k, v, visible.segments, mesh, spans)
        case "cudnn":
            return cudnn(q, k, v, visible.segments, mesh, window)
    if mesh is None or mesh.devices.flat[0].platform == "cpu":
        return _attention_on_cpu(q, k, v, visible, window, near, cap)
    return blockwise(q, k, v, visible.segments, spans)


def choose_body(mesh: jax.sharding.Mesh | None, dtype: DTypeLike, head_dim: int, cap: float = 0.0) -> str:
    """Returns the body, one of `BODIES`, for heads of this dtype and width on a mesh; `cap` as in `attention`.

    Raises:
      Refusal: 2 for an unknown MOSSA_ATTENTION, or one that cannot cap scores.
    """
    if override := os.environ.get("MOSSA_ATTENTION"):
        if override not in BODIES:
            raise Refusal(BAD_CONFIG, f"MOSSA_ATTENTION={override} is unknown; choose one of {', '.join(BODIES)}")
        if cap and override == "cudnn":
            raise Refusal(
                BAD_CONFIG, f"MOSSA_ATTENTION=cudnn cannot cap scores, as this model does at {cap:g}; use xla"
            )
        return override
    # Without a mesh the platform is not known. Kernels multiply in a narrow precision, which is not for float32.
    if mesh is None or dtype not in _NARROW:
        return "xla"
    body = _KERNELS.get(mesh.devices.flat[0].platform, "xla")
    return "xla" if body in unusable or (body == "cudnn" and (cap or not takes_heads(head_dim))) else body


def _attention_on_cpu(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B T K d"],
    v: Float[Array, "B T K d"],
    visible: Segments,
    window: int,
    near: int,
    cap: float,
) -> Float[Array, "B S H d"]:
    """Attends block by block, in the order that suits a cache; `near` as `Spans.window`, 0: not known."""
    # Block by block only where it saves something: near keys are fewer than the row's, or a prefix stands apart.
    if visible.prefix_columns or 0 < near < q.shape[1] - _CPU_BLOCK:
        spans = Spans(_CPU_BLOCK, near or k.shape[1], visible.prefix_columns, cap)
        # A loop over rows would take rows that are spread over devices one by one.
        if visible.mesh is not None and visible.mesh.shape["fsdp"] > 1:
            return blockwise(q, k, v, visible.segments, spans)

        # Row by row, so that the scores of a block stay in the cache.
        def attend_row(row: tuple[jax.Array, ...]) -> jax.Array:
            q, k, v, segments = (x[None] for x in row)
            return blockwise(q, k, v, segments, spans)[0]

        return jax.lax.map(attend_row, (q, k, v, visible.segments))
    # Causal: a block of queries needs no key behind it. This saves nearly half the work, and memory for the scores. The
    # blocks are written out, and not a loop as on other platforms: here that takes no longer to compile.
    outputs, size = [], max(_BLOCK, -(-q.shape[1] // _BLOCKS))
    for start in range(0, q.shape[1], size):
        stop = min(start + size, q.shape[1])
        mask = visible.mask(start, stop, window)  # [B, stop - start, stop]
        outputs.append(_masked_attention(q[:, start:stop], k[:, :stop], v[:, :stop], mask, cap))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _masked_attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B T K d"],
    v: Float[Array, "B T K d"],
    mask: Bool[Array, "B S C+T"],
    cap: float,
    shared: tuple[Float[Array, "C K d"], Float[Array, "C K d"]] | None = None,
) -> Float[Array, "B S H d"]:
    """Attends to all keys at once; `cap` and `shared` as in `attention`.

    Heads come before positions, and the queries of a group form one matrix; the mask is added instead of selected by;
    the weights are normalised after the second product. Together this is three times as fast on CPU as the textbook's
    order (docs/measurements.md). Shared keys are multiplied by the queries of all rows, and never copied to each
    (Juravsky et al. 2024, "Hydragen", arXiv 2402.05099; here with one softmax over both parts).
    """
    rows, length, heads, width = q.shape
    # G query heads share one key/value head.
    groups = heads // k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # [B, S, H, d] -> [B, K, G * S, d]
    q = q.reshape(rows, length, -1, groups, width).transpose(0, 2, 3, 1, 4).reshape(rows, -1, groups * length, width)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, T, d]
    # Additive and in float32: every query sees itself, so no row of scores is minus infinity throughout.
    hidden = jnp.tile(jnp.where(mask, 0.0, -jnp.inf).astype(wide), (1, groups, 1))[:, None]  # [B, 1, G * S, C + T]
    product = partial(jnp.einsum, precision=product_precision(q.dtype), preferred_element_type=wide)
    scores = product("bkqd,bktd->bkqt", q, k)
    if shared is not None:
        scores = jnp.concatenate([product("bkqd,ckd->bkqc", q, shared[0]), scores], axis=-1)
    scores = soft_cap(scores * width**-0.5, cap) + hidden  # [B, K, G * S, C + T]
    # Against overflow of exp. The shift cancels, so no gradient has to pass through the maximum.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    narrow = weights.astype(v.dtype)
    columns = mask.shape[-1] - v.shape[2]  # C
    out = product("bkqt,bktd->bkqd", narrow[..., columns:], v)
    if shared is not None:
        out += product("bkqc,ckd->bkqd", narrow[..., :columns], shared[1])
    # Divides d numbers per query instead of T.
    out = (out / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)
    # [B, K, G * S, d] -> [B, S, H, d]
    return out.reshape(rows, -1, groups, length, width).transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, width)
