"""The Llama model in Flax NNX: small modules, layers stacked on a leading axis and scanned.

Modules only define: programs take the pure state that `abstract_state` describes and merge it inside `jax.jit`.
Shape letters: B rows, S positions, D hidden, H heads, K key/value heads, d head width, F feed-forward,
V vocabulary, L layers, r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
from flax import nnx

from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Cached, attention

Lora = dict[str, dict[str, jax.Array]]
"""One model's adapter for one block: target -> {"a": [D_in, r], "b": [r, D_out], "scale": []}."""


def _init(std: float) -> Callable:
    return nnx.initializers.normal(std)


class Projection(nnx.Module):
    """`x @ kernel`, with a low-rank update where the adapter has one for this target."""

    def __init__(self, arch: Architecture, name: str, names: tuple[str, str], sizes: tuple[int, int], rngs, std):
        self.name = name
        shape = (arch.layers, *sizes)
        self.kernel = nnx.Param(_init(std)(rngs.params(), shape, jnp.float32), logical=("layers", *names))

    def __call__(self, x: jax.Array, lora: Lora) -> jax.Array:
        """[B, S, D_in] -> [B, S, D_out] in the dtype of x."""
        y = x @ self.kernel[...]
        if self.name in lora:
            part = lora[self.name]
            low = (x @ part["a"].astype(x.dtype)) @ part["b"].astype(x.dtype)
            y = y + low * part["scale"].astype(x.dtype)
        return y


class RMSNorm(nnx.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, arch: Architecture, stacked: bool):
        shape, names = ((arch.layers, arch.hidden), ("layers", None)) if stacked else ((arch.hidden,), (None,))
        self.eps = arch.norm_eps
        self.weight = nnx.Param(jnp.ones(shape, jnp.float32), logical=names)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]; cast back before the weight, as transformers does."""
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return self.weight[...] * normed.astype(x.dtype)


def rotary(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, S, d/2] in float32 for positions [B, S] (Su et al. 2021)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies the rotary table to x [B, S, H, d]; the halves of d are the pairs, as in Hugging Face weights."""
    cos, sin = (part[:, :, None, :].astype(x.dtype) for part in table)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Attention(nnx.Module):
    """Grouped-query self-attention."""

    def __init__(self, arch: Architecture, rngs, std):
        d = arch.head_dim
        self.head_dim = d
        heads, kv_heads = arch.heads * d, arch.kv_heads * d
        self.q_proj = Projection(arch, "q_proj", ("embed", "heads"), (arch.hidden, heads), rngs, std)
        self.k_proj = Projection(arch, "k_proj", ("embed", "kv_heads"), (arch.hidden, kv_heads), rngs, std)
        self.v_proj = Projection(arch, "v_proj", ("embed", "kv_heads"), (arch.hidden, kv_heads), rngs, std)
        out_std = std / (2 * arch.layers) ** 0.5
        self.o_proj = Projection(arch, "o_proj", ("heads", "embed"), (heads, arch.hidden), rngs, out_std)

    def __call__(self, x, lora, table, visible, cache=None, slot=None):
        """[B, S, D] -> ([B, S, D], (k, v)).

        With `cache` = (k, v) of [B, T, K, d] and `slot`, the new keys and values are written there first and the
        whole cache is attended to.
        """
        split = (*x.shape[:2], -1, self.head_dim)
        q = rotate(self.q_proj(x, lora).reshape(split), table)
        k = rotate(self.k_proj(x, lora).reshape(split), table)
        v = self.v_proj(x, lora).reshape(split)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, slot, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, slot, axis=1)
        out = attention(q, k, v, visible)
        return self.o_proj(out.reshape(*x.shape[:2], -1), lora), (k, v)


class FeedForward(nnx.Module):
    """SiLU-gated feed-forward part."""

    def __init__(self, arch: Architecture, rngs, std):
        up, down = (arch.hidden, arch.feed_forward), (arch.feed_forward, arch.hidden)
        self.gate_proj = Projection(arch, "gate_proj", ("embed", "feed_forward"), up, rngs, std)
        self.up_proj = Projection(arch, "up_proj", ("embed", "feed_forward"), up, rngs, std)
        out_std = std / (2 * arch.layers) ** 0.5
        self.down_proj = Projection(arch, "down_proj", ("feed_forward", "embed"), down, rngs, out_std)

    def __call__(self, x: jax.Array, lora: Lora) -> jax.Array:
        """[B, S, D] -> [B, S, D]."""
        return self.down_proj(nnx.silu(self.gate_proj(x, lora)) * self.up_proj(x, lora), lora)


class Block(nnx.Module):
    """Pre-norm transformer block; its parameters carry the stacked layer axis, which the scan takes off."""

    def __init__(self, arch: Architecture, rngs, std):
        self.attention_norm = RMSNorm(arch, stacked=True)
        self.attention = Attention(arch, rngs, std)
        self.feed_forward_norm = RMSNorm(arch, stacked=True)
        self.feed_forward = FeedForward(arch, rngs, std)

    def __call__(self, x, lora, table, visible, cache=None, slot=None):
        """[B, S, D] -> ([B, S, D], (k, v))."""
        with jax.named_scope("attention"):
            mixed, keys_values = self.attention(self.attention_norm(x), lora, table, visible, cache, slot)
            x = x + mixed
        with jax.named_scope("feed_forward"):
            return x + self.feed_forward(self.feed_forward_norm(x), lora), keys_values


class Llama(nnx.Module):
    """Embedding, stacked blocks, final norm, head (the embedding itself where the checkpoint ties them)."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        std = 0.02 if arch.hidden >= 1024 else (2 / (5 * arch.hidden)) ** 0.5
        shape = (arch.vocab, arch.hidden)
        table = _init(std)(rngs.params(), shape, jnp.float32)
        self.embedding = nnx.Param(table, logical=("vocab", "embed"))
        self.blocks = Block(arch, rngs, std)
        self.final_norm = RMSNorm(arch, stacked=False)
        if not arch.tied_head:
            self.head = nnx.Param(_init(std)(rngs.params(), shape, jnp.float32), logical=("vocab", "embed"))


def run_blocks(model: Llama, arch: Architecture, adapter: Lora, tokens, positions, visible, tap: Callable, remat=False):
    """Embeds `tokens` [B, S] and runs all blocks by one scan.

    Args:
      model: merged module.
      arch: its architecture.
      adapter: stacked over layers: target -> {"a": [L, D_in, r], "b": [L, r, D_out], "scale": [L]}; {} for none.
      tokens: [B, S] int32.
      positions: [B, S] int32, restarting in every segment.
      visible: `Segments`.
      tap: called with each block's output [B, S, D] and its keys and values; what it returns is stacked over layers.
      remat: recompute each block's inside in the backward pass.

    Returns:
      (embedding [B, S, D], output of the last block [B, S, D], taps [L, ...]).
    """
    embedded = model.embedding[...][tokens]
    table = rotary(positions, arch.head_dim, arch.rope_theta)

    def body(x, layer):
        block, lora = layer
        x, keys_values = block(x, lora, table, visible)
        return x, tap(x, keys_values)

    body = jax.checkpoint(body) if remat else body
    last, taps = jax.lax.scan(body, embedded, (model.blocks, adapter))
    return embedded, last, taps


def run_blocks_cached(model: Llama, arch: Architecture, adapter: Lora, tokens, positions, visible: Cached, cache, slot):
    """One decoding step: tokens [B, 1] against `cache` = (k, v) of [L, B, T, K, d].

    Returns:
      (output of the last block [B, 1, D], the cache with the new keys and values at `slot`).
    """
    table = rotary(positions, arch.head_dim, arch.rope_theta)

    def body(x, layer):
        block, lora, keys_values = layer
        return block(x, lora, table, visible, keys_values, slot)

    return jax.lax.scan(body, model.embedding[...][tokens], (model.blocks, adapter, cache))


def logits(model: Llama, arch: Architecture, x: jax.Array) -> jax.Array:
    """Final norm and head: [..., D] -> [..., V] float32."""
    head = model.embedding[...] if arch.tied_head else model.head[...]
    return jnp.einsum("...d,vd->...v", model.final_norm(x), head, preferred_element_type=jnp.float32)


@lru_cache(maxsize=16)
def _abstract(arch: Architecture) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Llama(arch, nnx.Rngs(0))))


def abstract_state(arch: Architecture, dtype: jnp.dtype) -> nnx.State:
    """The model's state as shapes, with the logical axis names of every leaf in its metadata `logical`."""
    _, state = _abstract(arch)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), state)


def merge(arch: Architecture, state: nnx.State) -> Llama:
    """The module around a pure state; free inside `jax.jit`."""
    return nnx.merge(_abstract(arch)[0], state)


def initial_state(arch: Architecture, seed: int) -> nnx.State:
    """A freshly initialised model, float32: normal weights, residual outputs scaled by 1/sqrt(2 L)."""
    return nnx.split(Llama(arch, nnx.Rngs(seed)))[1]
