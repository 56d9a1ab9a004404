"""The attention door: one function, with a body chosen by platform and precision.

| body | where | packed rows |
|---|---|---|
| `xla` | everywhere; always for float32 and float64, and for decoding | mask by blocks of queries |
| `splash` | TPU, bfloat16 | segment ids inside the kernel, no mask in memory |
| `cudnn` | GPU, bfloat16 and float16 | the kernel takes a dense mask [B, 1, S, S] |

Rows that begin with ids which all their sequences share (segment -1) always take `xla`, whatever is asked for.

The environment variable MOSSA_ATTENTION=xla (or splash, cudnn) overrules the choice. A kernel works in the matrix
unit's narrow precision, so float32, whose point is exactness, never goes there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.blockwise import Spans, blockwise, exact
from mossa_jax.llama.splash import splash

_BLOCK, _BLOCKS = 128, 8
_CPU_SIZE = 64  # queries in a block that meets near keys only; `_BLOCK` elsewhere
_NARROW = (jnp.bfloat16, jnp.float16)
BODIES = ("xla", "splash", "cudnn")


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: Segments | Cached | Chosen, window: int = 0
) -> jax.Array:
    """Softmax attention with grouped heads.

    Args:
      q: [B, S, H, d].
      k: [B, T, K, d], K divides H; v alike.
      visible: which keys a query sees.
      window: sees at most so many of them, the nearest, itself included; 0 sees all.

    Returns:
      [B, S, H, d] in the dtype of `v`; the softmax is computed in float32 or wider.
    """
    if isinstance(visible, Cached | Chosen):
        return _attend(q, k, v, visible.mask(window))
    tensor = visible.mesh.shape["tensor"] if visible.mesh is not None else 1
    if k.shape[2] % tensor:  # fewer key/value heads than devices: every device gets a copy of the one it needs
        k, v = (jnp.repeat(part, tensor // k.shape[2], axis=2) for part in (k, v))
    body = "xla" if visible.prefix else choose(visible.mesh, q.dtype)
    # Nothing is seen further back than this, were it only since no sequence is longer.
    near = min(filter(None, (window, visible.max_own)), default=0)
    if body == "splash":
        return splash(q, k, v, visible.segments, visible.mesh, near)
    if body == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, mask=visible.mask(window=window)[:, None], implementation="cudnn")
    on_cpu = visible.mesh is None or visible.mesh.devices.flat[0].platform == "cpu"
    size = _CPU_SIZE if on_cpu else _BLOCK
    if visible.prefix or 0 < near < q.shape[1] - size:
        spans = Spans(size, near or k.shape[1], visible.prefix)
        arrays = (q, k, v, visible.segments)
        if on_cpu and (visible.mesh is None or visible.mesh.shape["fsdp"] == 1):
            # Row by row, so that the scores of a block stay in the cache.
            row = lambda arrays: blockwise(*(x[None] for x in arrays), spans)[0]  # noqa: E731
            return jax.lax.map(row, arrays)
        return blockwise(*arrays, spans)
    # Causal: a block of queries needs no key behind it. Saves near half the work, and memory for the scores.
    blocks, size = [], max(_BLOCK, -(-q.shape[1] // _BLOCKS))
    for start in range(0, q.shape[1], size):
        stop = min(start + size, q.shape[1])
        mask = visible.mask(start, stop, window)
        blocks.append(_attend(q[:, start:stop], k[:, :stop], v[:, :stop], mask))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)


def choose(mesh: jax.sharding.Mesh | None, dtype) -> str:
    """The body for arrays of `dtype` on a mesh: one of `BODIES`."""
    if asked := os.environ.get("MOSSA_ATTENTION"):
        if asked not in BODIES:
            raise Refusal(BAD_CONFIG, f"MOSSA_ATTENTION={asked} is unknown; these are: {', '.join(BODIES)}")
        return asked
    if mesh is None or dtype not in _NARROW:
        return "xla"
    platform = mesh.devices.flat[0].platform
    return {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform, "xla")


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """q [B, S, H, d], k and v [B, T, K, d], mask [B, S, T] -> [B, S, H, d].

    Heads stand in front and the queries of a group in one matrix; the mask is added, not selected by; weights are
    normed behind the second product. Together three times as fast on CPU as the textbook's order (BUILD_NOTES.md).
    """
    rows, length, heads, width = q.shape
    groups = heads // k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q = q.reshape(rows, length, -1, groups, width).transpose(0, 2, 3, 1, 4).reshape(rows, -1, groups * length, width)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    hidden = jnp.tile(jnp.where(mask, 0.0, -jnp.inf).astype(wide), (1, groups, 1))[:, None]
    scores = jnp.einsum("bkqd,bktd->bkqt", q, k, precision=exact(q.dtype), preferred_element_type=wide)
    scores = scores * width**-0.5 + hidden
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    out = jnp.einsum(
        "bkqt,bktd->bkqd", weights.astype(v.dtype), v, precision=exact(v.dtype), preferred_element_type=wide
    )
    out = (out / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)
    return out.reshape(rows, -1, groups, length, width).transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, width)


@jax.tree_util.register_dataclass
@dataclass
class Segments:
    """Packed rows: a query sees the keys of its own segment up to itself, and those that all sequences share.

    Attributes:
      segments: [B, T] int32, 1, 2, ... per packed sequence, 0 on padding (which sees padding only); the tokens of a
        sequence stand side by side. Within `prefix`, -1 on keys that every sequence behind them sees.
      mesh: the devices that the rows are spread over; None for one device.
      prefix: columns, at the head of a row, that may be -1. Then columns are no positions: only for a
        `model.shareable` architecture. The queries may be fewer than the keys: they are the last ones.
      max_own: no sequence has more tokens of its own; 0: not known.
    """

    segments: jax.Array
    mesh: jax.sharding.Mesh | None = field(default=None, metadata={"static": True})
    prefix: int = field(default=0, metadata={"static": True})
    max_own: int = field(default=0, metadata={"static": True})

    def mask(self, start: int = 0, stop: int | None = None, window: int = 0) -> jax.Array:
        """What queries start..stop see of the keys up to stop, without a prefix: [B, stop - start, stop] bool."""
        stop = self.segments.shape[1] if stop is None else stop
        behind = jnp.arange(start, stop)[:, None] - jnp.arange(stop)[None, :]
        near = (behind >= 0) & (behind < window) if window else behind >= 0
        return near & (self.segments[:, start:stop, None] == self.segments[:, None, :stop])

    def seen_from(self, columns: jax.Array) -> Chosen:
        """What the queries at `columns` [B, P] see."""
        return Chosen(self.segments, columns)

    def lengths(self) -> jax.Array:
        """[B, S] int32: how long the sequence is that each token belongs to."""
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return jnp.sum(same, axis=-1, dtype=jnp.int32)


@jax.tree_util.register_dataclass
@dataclass
class Chosen:
    """A few queries of packed rows.

    Attributes:
      segments: [B, T] as in `Segments`.
      columns: [B, P] int32, where they stand.
    """

    segments: jax.Array
    columns: jax.Array

    def mask(self, window: int = 0) -> jax.Array:
        """[B, P, T] bool."""
        behind = self.columns[..., None] - jnp.arange(self.segments.shape[1])
        near = (behind >= 0) & (behind < window) if window else behind >= 0
        own = jnp.take_along_axis(self.segments, self.columns, axis=1)[..., None]
        keys = self.segments[:, None, :]
        return near & ((own == keys) | ((keys == -1) & (own != 0)))


@jax.tree_util.register_dataclass
@dataclass
class Cached:
    """One query a row against a cache of keys.

    Attributes:
      keys: [B, T] int32, position of the key that each cache slot holds, -1 for none.
      position: [B, 1] int32, the query's own.
    """

    keys: jax.Array
    position: jax.Array

    def mask(self, window: int = 0) -> jax.Array:
        """[B, 1, T] bool."""
        behind = self.position - self.keys
        seen = (self.keys >= 0) & (behind >= 0)
        return (seen & (behind < window) if window else seen)[:, None, :]

    def lengths(self) -> jax.Array:
        """[B, 1] int32: how long the sequence is with the query at its end."""
        return self.position + 1
