"""The attention door: one function, with a body chosen by platform.

Today one body, XLA's, which runs everywhere; kernels for TPU and GPU come in behind the same signature.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

_BLOCK = 256


def attention(q: jax.Array, k: jax.Array, v: jax.Array, visible: Segments | Cached) -> jax.Array:
    """Softmax attention with grouped heads.

    Args:
      q: [B, S, H, d].
      k: [B, T, K, d], K divides H; v alike.
      visible: which keys a query sees.

    Returns:
      [B, S, H, d] in the dtype of `v`; the softmax is computed in float32.
    """
    length = q.shape[1]
    if isinstance(visible, Cached) or length <= _BLOCK:
        return _attend(q, k, v, visible.mask())
    # Causal: a block of queries needs no key behind it. Saves near half the work, and memory for the scores.
    blocks = []
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        blocks.append(_attend(q[:, start:stop], k[:, :stop], v[:, :stop], visible.mask(start, stop)))
    return jnp.concatenate(blocks, axis=1)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")


@jax.tree_util.register_dataclass
@dataclass
class Segments:
    """Packed rows: a query sees the keys of its own segment up to itself.

    Attributes:
      segments: [B, S] int32, 1, 2, ... per packed sequence, 0 on padding (which sees padding only).
    """

    segments: jax.Array

    def mask(self, start: int = 0, stop: int | None = None) -> jax.Array:
        """What queries start..stop see of keys 0..stop: [B, stop - start, stop] bool."""
        stop = self.segments.shape[1] if stop is None else stop
        causal = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
        return causal & (self.segments[:, start:stop, None] == self.segments[:, None, :stop])


@jax.tree_util.register_dataclass
@dataclass
class Cached:
    """One query a row against a cache of keys.

    Attributes:
      keys: [B, T] bool, the cache slots that hold a key of the row.
    """

    keys: jax.Array

    def mask(self) -> jax.Array:
        """[B, 1, T] bool."""
        return self.keys[:, None, :]
