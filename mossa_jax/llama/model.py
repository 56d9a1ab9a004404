"""The Llama family in Flax NNX: small modules, layers stacked on a leading axis and scanned.

Modules only define: programs take the pure state that `abstract_state` describes and merge it inside `jax.jit`.
Matrices lie as in Hugging Face files, [D_out, D_in], so that loading and saving move bytes and nothing else.
Shape letters: B rows, S positions, D hidden, H heads, K key/value heads, d head width, F feed-forward,
V vocabulary, L layers, r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Cached, Segments, attention, exact
from mossa_jax.llama.rope import rotary, rotate

Lora = dict[str, dict[str, jax.Array]]
"""One model's adapter for one block: target -> {"a": [D_in, r], "b": [r, D_out], "scale": []}."""


def low_rank(x: jax.Array, lora: Lora, *names: str) -> dict[str, jax.Array]:
    """`x @ a` [B, S, r] of every target of `names` that the adapter has: one product for all, since x is one."""
    parts = [lora[name]["a"] for name in names if name in lora]
    if not parts:
        return {}
    joined = jnp.concatenate(parts, axis=-1).astype(x.dtype)
    low = jnp.matmul(x, joined, precision=exact(x.dtype))
    ends = np.cumsum([part.shape[-1] for part in parts])[:-1]
    return dict(zip([name for name in names if name in lora], jnp.split(low, ends, axis=-1), strict=True))


class Projection(nnx.Module):
    """`x @ weight.T + bias`, with a low-rank update where the adapter has one for this target."""

    def __init__(self, arch: Architecture, name: str, names: tuple[str, str], sizes: tuple[int, int], rngs, std):
        self.name = name
        weight = nnx.initializers.normal(std)(rngs.params(), (arch.layers, *sizes), jnp.float32)
        self.weight = nnx.Param(weight.swapaxes(1, 2), logical=("layers", *names[::-1]))
        if name in arch.biases:
            self.bias = nnx.Param(jnp.zeros((arch.layers, sizes[1]), jnp.float32), logical=("layers", names[1]))

    def __call__(self, x: jax.Array, lora: Lora, low: dict[str, jax.Array] | None = None) -> jax.Array:
        """[B, S, D_in] -> [B, S, D_out] in the dtype of x; `low` is `low_rank` of x, where others read x as well."""
        precision = exact(x.dtype)
        y = jnp.einsum("bsi,oi->bso", x, self.weight[...], precision=precision)
        if hasattr(self, "bias"):
            y = y + self.bias[...]
        if self.name in lora:
            part = lora[self.name]
            low = (low_rank(x, lora, self.name) if low is None else low)[self.name] * part["scale"].astype(x.dtype)
            # Rows and positions as one axis: summed over two, the gradient of b is many times slower on CPU.
            low = low.reshape(-1, low.shape[-1])
            y = y + jnp.matmul(low, part["b"].astype(x.dtype), precision=precision).reshape(y.shape)
        return y


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32 or wider."""

    def __init__(self, eps: float, *shape: int):
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(shape, jnp.float32), logical=(*("layers",) * (len(shape) - 1), None))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]; cast back before the weight, as transformers does."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return self.weight[...] * normed.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention."""

    def __init__(self, arch: Architecture, rngs, std):
        d = arch.head_dim
        self.arch = arch
        heads, kv_heads = arch.heads * d, arch.kv_heads * d
        self.q_proj = Projection(arch, "q_proj", ("embed", "heads"), (arch.hidden, heads), rngs, std)
        self.k_proj = Projection(arch, "k_proj", ("embed", "kv_heads"), (arch.hidden, kv_heads), rngs, std)
        self.v_proj = Projection(arch, "v_proj", ("embed", "kv_heads"), (arch.hidden, kv_heads), rngs, std)
        out_std = std / (2 * arch.layers) ** 0.5
        self.o_proj = Projection(arch, "o_proj", ("heads", "embed"), (heads, arch.hidden), rngs, out_std)
        if arch.query_key_norm:
            self.q_norm = RMSNorm(arch.norm_eps, arch.layers, d)
            self.k_norm = RMSNorm(arch.norm_eps, arch.layers, d)

    def __call__(self, x, lora, table, visible, windowed=None, cache=None, slot=None, ends=None):
        """[B, S, D] -> ([B, S, D], (k, v)).

        With `cache` = (k, v) of [B, T, K, d] and `slot`, the new keys and values are written there first and the
        whole cache is attended to; without `slot` the cache, [T, K, d], stands before the keys of every row.
        `windowed` [] bool says of this block what `arch.windowed` says, where blocks differ; None where all are
        alike. With `ends` [B, P] only the queries in these columns are worked out: [B, P, D].
        """
        if ends is None:
            asking, asked = x, table
            low = lows = low_rank(x, lora, "q_proj", "k_proj", "v_proj")
        else:
            asking, *asked = (columns(part, ends) for part in (x, *table))
            low, lows = low_rank(asking, lora, "q_proj"), low_rank(x, lora, "k_proj", "v_proj")
        split = lambda x: x.reshape(*x.shape[:2], -1, self.arch.head_dim)  # noqa: E731
        q, k, v = (
            split(self.q_proj(asking, lora, low)),
            split(self.k_proj(x, lora, lows)),
            split(self.v_proj(x, lora, lows)),
        )
        if self.arch.query_key_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, asked), rotate(k, table)
        own = k, v
        if slot is not None:
            k, v = own = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=1) for old, new in zip(cache, own, strict=True)
            )
        elif cache is not None:
            k, v = (
                jnp.concatenate([jnp.broadcast_to(old, (len(x), *old.shape)), new], axis=1)
                for old, new in zip(cache, own, strict=True)
            )
        if ends is not None:
            visible = visible.seen_from(ends + k.shape[1] - x.shape[1])
        if windowed is None:
            out = attention(q, k, v, visible, self.arch.window)
        else:
            near = lambda q, k, v: attention(q, k, v, visible, self.arch.window)  # noqa: E731
            out = jax.lax.cond(windowed, near, lambda q, k, v: attention(q, k, v, visible), q, k, v)
        return self.o_proj(out.reshape(*out.shape[:2], -1), lora), own


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
        low = low_rank(x, lora, "gate_proj", "up_proj")
        return self.down_proj(_gated(self.gate_proj(x, lora, low), self.up_proj(x, lora, low)), lora)


@partial(jax.checkpoint, prevent_cse=False)  # inside the scan over layers nothing is merged
def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Worked out once more in the backward pass: what it would keep is as wide as its two arguments together."""
    return nnx.silu(gate) * up


class Block(nnx.Module):
    """Pre-norm transformer block; its parameters carry the stacked layer axis, which the scan takes off."""

    def __init__(self, arch: Architecture, rngs, std):
        self.attention_norm = RMSNorm(arch.norm_eps, arch.layers, arch.hidden)
        self.attention = Attention(arch, rngs, std)
        self.feed_forward_norm = RMSNorm(arch.norm_eps, arch.layers, arch.hidden)
        self.feed_forward = FeedForward(arch, rngs, std)

    def __call__(self, x, lora, table, visible, windowed=None, cache=None, slot=None, ends=None):
        """[B, S, D] -> ([B, S, D], (k, v)); arguments as in `Attention`."""
        with jax.named_scope("attention"):
            normed = self.attention_norm(x)
            mixed, keys_values = self.attention(normed, lora, table, visible, windowed, cache, slot, ends)
            x = (x if ends is None else columns(x, ends)) + mixed
        with jax.named_scope("feed_forward"):
            return x + self.feed_forward(self.feed_forward_norm(x), lora), keys_values


class Llama(nnx.Module):
    """Embedding, stacked blocks, final norm, head (the embedding itself where the checkpoint ties them)."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        std = 0.02 if arch.hidden >= 1024 else (2 / (5 * arch.hidden)) ** 0.5
        shape = (arch.vocab, arch.hidden)
        init = nnx.initializers.normal(std)
        self.embedding = nnx.Param(init(rngs.params(), shape, jnp.float32), logical=("vocab", "embed"))
        self.blocks = Block(arch, rngs, std)
        self.final_norm = RMSNorm(arch.norm_eps, arch.hidden)
        if not arch.tied_head:
            self.head = nnx.Param(init(rngs.params(), shape, jnp.float32), logical=("vocab", "embed"))


def run_blocks(
    model: Llama, arch: Architecture, adapter: Lora, tokens, positions, visible: Segments, tap: Callable, remat=False
):
    """Embeds `tokens` [B, S] and runs all blocks by one scan.

    Args:
      model: merged module.
      arch: its architecture.
      adapter: stacked over layers: target -> {"a": [L, D_in, r], "b": [L, r, D_out], "scale": [L]}; {} for none.
      tokens: [B, S] int32.
      positions: [B, S] int32, restarting in every segment.
      visible: segments and, where there are several devices, the mesh that rows are spread over.
      tap: called with each block's output [B, S, D] and its keys and values; what it returns is stacked over layers.
      remat: recompute each block's inside in the backward pass.

    Returns:
      (embedding [B, S, D], output of the last block [B, S, D], taps [L, ...]).
    """

    embedded, table = embed(model, arch, tokens, positions, visible)

    def body(x, layer):
        block, lora, windowed = layer
        x, keys_values = block(x, lora, table, visible, windowed)
        x = by_row(x, visible)
        return x, tap(x, keys_values)

    body = jax.checkpoint(body) if remat else body
    last, taps = jax.lax.scan(body, embedded, (model.blocks, adapter, windowed_blocks(arch)))
    return embedded, last, taps


def embed(model: Llama, arch: Architecture, tokens, positions, visible: Segments) -> tuple:
    """Embedded `tokens` [B, S, D], and the rotary table of their `positions`."""
    embedded = by_row(model.embedding[...][tokens], visible)
    lengths = visible.lengths() if arch.rope.kind == "dynamic" else None
    return embedded, rotary(
        arch.rope, arch.head_dim, positions, lengths, jnp.promote_types(embedded.dtype, jnp.float32)
    )


def by_row(x: jax.Array, visible: Segments) -> jax.Array:
    """Pins states [B, S, D] to rows over `fsdp`: then weights travel to the rows, never partial sums between them."""
    if visible.mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, mesh_lib.sharding(visible.mesh, x.shape, ("rows", None, None)))


def columns(x: jax.Array, at: jax.Array) -> jax.Array:
    """The columns `at` [B, P] of `x` [B, S, D]: [B, P, D]."""
    return jnp.take_along_axis(x, at[..., None], axis=1)


def run_blocks_cached(model: Llama, arch: Architecture, adapter: Lora, tokens, visible: Cached, cache, slot):
    """One decoding step: tokens [B, 1] against `cache` = (k, v) of [L, B, T, K, d].

    Returns:
      (output of the last block [B, 1, D], the cache with the new keys and values at `slot`).
    """
    embedded = model.embedding[...][tokens]
    lengths = visible.lengths() if arch.rope.kind == "dynamic" else None
    table = rotary(arch.rope, arch.head_dim, visible.position, lengths, jnp.promote_types(embedded.dtype, jnp.float32))

    def body(x, layer):
        block, lora, windowed, keys_values = layer
        return block(x, lora, table, visible, windowed, keys_values, slot)

    return jax.lax.scan(body, embedded, (model.blocks, adapter, windowed_blocks(arch), cache))


def shareable(arch: Architecture) -> bool:
    """Whether sequences of a row may share leading ids (segment -1).

    Not where anything counts by columns of the row (a window), or by a sequence's own length (dynamic rotary scaling).
    """
    return not arch.windowed and arch.rope.kind != "dynamic"


def windowed_blocks(arch: Architecture) -> np.ndarray | None:
    """[L] bool, where some blocks are windowed and some are not."""
    if len(arch.windowed) in (0, arch.layers):
        return None
    return np.isin(np.arange(arch.layers), arch.windowed)


def head_weight(model: Llama, arch: Architecture) -> jax.Array:
    """[V, D]."""
    return model.embedding[...] if arch.tied_head else model.head[...]


def logits(model: Llama, arch: Architecture, x: jax.Array) -> jax.Array:
    """Final norm and head: [..., D] -> [..., V] float32 (float64 for float64)."""
    return score(model.final_norm(x), head_weight(model, arch))


def score(normed: jax.Array, head: jax.Array) -> jax.Array:
    """The head alone: [..., D], [V, D] -> [..., V] float32 (float64 for float64)."""
    wide = jnp.promote_types(normed.dtype, jnp.float32)
    return jnp.einsum("...d,vd->...v", normed, head, precision=exact(normed.dtype), preferred_element_type=wide)


def parameter_count(arch: Architecture) -> int:
    """Parameters of the model, from shapes alone."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_state(arch, jnp.float32)))


@lru_cache(maxsize=16)
def _abstract(arch: Architecture) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Llama(arch, nnx.Rngs(0))))


def abstract_state(arch: Architecture, dtype: jnp.dtype) -> nnx.State:
    """The model's state as shapes."""
    _, state = _abstract(arch)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), state)


def logical_axes(arch: Architecture) -> dict[str, tuple[str | None, ...]]:
    """Leaf name, e.g. "blocks.attention.q_proj.weight" -> what its axes mean, as the modules declare it."""
    variables = _abstract(arch)[1].flat_state()
    return {".".join(map(str, path)): variable.get_metadata("logical") for path, variable in variables}


def merge(arch: Architecture, state: nnx.State) -> Llama:
    """The module around a pure state; free inside `jax.jit`."""
    return nnx.merge(_abstract(arch)[0], state)


def initial_state(arch: Architecture, seed: int) -> nnx.State:
    """A freshly initialised model, float32: normal weights, residual outputs scaled by 1/sqrt(2 L)."""
    return nnx.split(Llama(arch, nnx.Rngs(seed)))[1]
