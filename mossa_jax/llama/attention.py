"""The attention door: one function, with a body chosen by platform.

Today one body, XLA's, which runs everywhere; kernels for TPU and GPU come in behind the same signature.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


def attention(q: jax.Array, k: jax.Array, v: jax.Array, visible: Segments | Cached) -> jax.Array:
    """Softmax attention with grouped heads.

    Args:
      q: [B, S, H, d].
      k: [B, T, K, d], K divides H; v alike.
      visible: which keys a query sees.

    Returns:
      [B, S, H, d] in the dtype of `v`; the softmax is computed in float32.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=visible.mask()[:, None], implementation="xla")


@jax.tree_util.register_dataclass
@dataclass
class Segments:
    """Packed rows: a query sees the keys of its own segment up to itself.

    Attributes:
      segments: [B, S] int32, 1, 2, ... per packed sequence, 0 on padding (which sees padding only).
    """

    segments: jax.Array

    def mask(self) -> jax.Array:
        """[B, S, S] bool."""
        index = jnp.arange(self.segments.shape[1])
        causal = index[:, None] >= index[None, :]
        return causal & (self.segments[:, :, None] == self.segments[:, None, :])


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
