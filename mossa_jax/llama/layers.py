"""The layers of a block in Flax NNX: projections with their low-rank updates, norms, attention, feed-forward part.

Matrices have the layout of Hugging Face files, [D_out, D_in], so that loading and saving only move bytes.

Shape letters: B rows, S positions, T keys, P query columns, D hidden, H heads, K key/value heads, d head width,
F feed-forward, L layers, r LoRA rank. Parameters are declared with their layer axis, which the scan over layers takes
off: inside a block, a matrix is [D_out, D_in].
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.llama.adapters import BlockAdapter
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import BranchColumns, DecodingQuery, Segments, Visible, attention
from mossa_jax.llama.blockwise import product_precision
from mossa_jax.llama.rope import RotaryTable, RotaryTables, rotate


class KeysValues(NamedTuple):
    """Keys and values of the columns of a row; stacked over layers, with a leading axis [L, ...].

    Attributes:
      keys, values: [B, S, K, d].
    """

    keys: Float[Array, "*L B S K d"]
    values: Float[Array, "*L B S K d"]


class SharedPrefix(NamedTuple):
    """Keys and values that stand before those of every row; stacked over layers, with a leading axis [L, ...].

    Attributes:
      keys, values: [T, K, d].
    """

    keys: Float[Array, "*L T K d"]
    values: Float[Array, "*L T K d"]


class Past(NamedTuple):
    """What queries continue: keys and values that were computed before.

    Attributes:
      own: [B, T, K, d] each, of each row.
      prefix: [C, K, d] each, which stand before those of every row; None: there are none.
      slot: [] int32: the keys and values of the queries are written into `own` from here on, in all rows; None: they
        stand behind it.
    """

    own: KeysValues
    prefix: SharedPrefix | None = None
    slot: Int[Array, ""] | None = None


def low_rank_inputs(x: Float[Array, "B S D_in"], lora: BlockAdapter, *targets: str) -> dict[str, jax.Array]:
    """Computes `x @ a` [B, S, r] for each of `targets` that the adapter updates.

    They all read the same x, so that one matrix product serves them all.
    """
    present = [target for target in targets if target in lora]
    if not present:
        return {}
    # Side by side in one matrix: many narrow products [.., D_in] x [D_in, r] would each read x again. The adapter is
    # float32; it takes part in the dtype of x.
    ranks = [lora[target]["a"].shape[-1] for target in present]
    with jax.named_scope("adapter"):
        joined = jnp.concatenate([lora[target]["a"] for target in present], axis=-1).astype(x.dtype)  # [D_in, sum of r]
        products = jnp.matmul(x, joined, precision=product_precision(x.dtype))  # [B, S, sum of r]
        return dict(zip(present, jnp.split(products, np.cumsum(ranks)[:-1], axis=-1), strict=True))


def take_columns(x: Float[Array, "B S w"], columns: Int[Array, "B P"]) -> Float[Array, "B P w"]:
    """Takes `columns` [B, P] of `x` [B, S, w]: [B, P, w]."""
    return jnp.take_along_axis(x, columns[..., None], axis=1)


class Projection(nnx.Module):
    """`x @ weight.T + bias`, with a low-rank update where the adapter has one for this target."""

    def __init__(
        self,
        arch: Architecture,
        name: str,
        axes: tuple[str, str | None],
        sizes: tuple[int, int],
        rngs: nnx.Rngs,
        std: float,
    ):
        """Draws the weights.

        Args:
          arch: the model's.
          name: of the target.
          axes: logical axes of input and output.
          sizes: D_in and D_out.
          rngs: source of randomness.
          std: standard deviation of the weights.
        """
        self.name = name
        # Drawn as [L, D_in, D_out] and stored as [L, D_out, D_in], the layout of Hugging Face files.
        weight = nnx.initializers.normal(std)(rngs.params(), (arch.layers, *sizes), jnp.float32)
        self.weight = nnx.Param(weight.swapaxes(1, 2), logical=("layers", *axes[::-1]))  # [L, D_out, D_in]
        if name in arch.biases:
            bias = jnp.zeros((arch.layers, sizes[1]), jnp.float32)  # [L, D_out]
            self.bias = nnx.Param(bias, logical=("layers", axes[1]))

    def __call__(
        self, x: Float[Array, "B S D_in"], lora: BlockAdapter, low_rank: dict[str, jax.Array] | None = None
    ) -> Float[Array, "B S D_out"]:
        """Projects x.

        Args:
          x: [B, S, D_in].
          lora: one model's adapter for this block.
          low_rank: `low_rank_inputs` of x, where other projections read the same x.

        Returns:
          [B, S, D_out] in the dtype of x.
        """
        precision = product_precision(x.dtype)
        # [B, S, D_out]. The last axis of both is contracted: the weight is used as it lies in the file.
        y = jnp.einsum("bsi,oi->bso", x, self.weight[...], precision=precision)
        if hasattr(self, "bias"):
            y = y + self.bias[...]
        if self.name in lora:
            update = lora[self.name]
            products = (low_rank_inputs(x, lora, self.name) if low_rank is None else low_rank)[self.name]
            with jax.named_scope("adapter"):
                # The scale multiplies r numbers per position here; behind the product with b it would be D_out.
                scaled = products * update["scale"].astype(x.dtype)  # [B, S, r]
                # Rows and positions as one axis, [B * S, r]: summed over two axes, the gradient of b takes much longer
                # on CPU.
                scaled = scaled.reshape(-1, scaled.shape[-1])
                y = y + jnp.matmul(scaled, update["b"].astype(x.dtype), precision=precision).reshape(y.shape)
        return y


def scale(x: Float[Array, "*rows D"], factor: float) -> Float[Array, "*rows D"]:
    """Multiplies by a constant, in float32 or wider, and rounds once; by 1 it is `x` itself."""
    if factor == 1:
        return x
    return (x.astype(jnp.promote_types(x.dtype, jnp.float32)) * factor).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467), in float32 or wider."""

    def __init__(self, arch: Architecture, *shape: int):
        """Starts with factors of one; `shape` is [D], or [L, D] where layers are stacked."""
        self.eps, self.offset, self.is_wide = arch.norm_eps, arch.norm_offset, arch.wide_norms
        weight = jnp.full(shape, 1.0 - self.offset, jnp.float32)
        self.weight = nnx.Param(weight, logical=(*("layers",) * (len(shape) - 1), None))

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Norms x: [..., D] -> [..., D]; cast back before or after the weight is applied, as in transformers."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # x / sqrt(mean(x^2) + eps): no mean is subtracted. Squares are summed in float32, since bfloat16 keeps 8 bits.
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        if self.is_wide:
            return (normed * (self.weight[...].astype(wide.dtype) + self.offset)).astype(x.dtype)
        return self.weight[...] * normed.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention (Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, std: float):
        d = arch.head_dim
        self.arch = arch
        heads, kv_heads = arch.heads * d, arch.kv_heads * d
        # Tensor parallel in pairs (Shoeybi et al. 2019, arXiv 1909.08053): q, k and v are split by heads over `tensor`
        # and o takes the split heads in, so that each device attends with its own heads and a sum follows o alone. The
        # other side of each matrix is spread over `fsdp` and gathered when it is used.
        if arch.fused:
            # Whole on every device of `tensor`, whose parts would be no whole heads of queries, keys or values.
            self.qkv_proj = Projection(
                arch, "qkv_proj", ("embed", None), (arch.hidden, heads + 2 * kv_heads), rngs, std
            )
        else:
            self.q_proj = Projection(arch, "q_proj", ("embed", "heads"), (arch.hidden, heads), rngs, std)
            self.k_proj = Projection(arch, "k_proj", ("embed", "kv_heads"), (arch.hidden, kv_heads), rngs, std)
            self.v_proj = Projection(arch, "v_proj", ("embed", "kv_heads"), (arch.hidden, kv_heads), rngs, std)
        # 2 L outputs are added to the residual stream (Radford et al. 2019, section 2.3).
        out_std = std / (2 * arch.layers) ** 0.5
        self.o_proj = Projection(arch, "o_proj", ("heads", "embed"), (heads, arch.hidden), rngs, out_std)
        if arch.query_key_norm:
            # Over the d numbers of one head, where all heads share the weight; or over all heads.
            is_per_head = arch.query_key_norm == "head"
            self.q_norm = RMSNorm(arch, arch.layers, d if is_per_head else heads)
            self.k_norm = RMSNorm(arch, arch.layers, d if is_per_head else kv_heads)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        lora: BlockAdapter,
        rotary: RotaryTable | RotaryTables,
        visible: Segments | DecodingQuery | BranchColumns,
        is_windowed: Bool[Array, ""] | None = None,
        *,
        past: SharedPrefix | Past | None = None,
        query_columns: Int[Array, "B P"] | None = None,
    ) -> tuple[Float[Array, "B P D"], KeysValues]:
        """Lets every query attend to the keys that it sees.

        Args:
          x: [B, S, D], normed states.
          lora: one model's adapter for this block.
          rotary: of the positions of x.
          visible: which keys a query sees; its columns include those of `past`.
          is_windowed: [] bool, whether `arch.window` holds in this block, where only some blocks are windowed; None
            where all blocks are alike.
          past: keys besides those of x. None: there are no others (packed rows). `SharedPrefix`: they stand before the
            keys of every row. `Past`: x continues what each row has read.
          query_columns: [B, P] int32, the only columns of x that ask; None: all of them (P = S).

        Returns:
          [B, P, D], and the keys and values of x; with a slot of `past`, those of all its rows' columns.
        """
        if isinstance(rotary, RotaryTables):
            assert is_windowed is not None, "two tables are for blocks of both kinds"
            rotary = rotary.of_block(is_windowed)
        queries, query_rotary = x, rotary
        if query_columns is not None:
            # Fewer queries, but the keys and values of every column.
            queries = take_columns(x, query_columns)  # [B, P, D]
            query_rotary = RotaryTable(*(take_columns(part, query_columns) for part in rotary))
        q, k, v = self._project(queries, x, lora)
        # Keys are rotated by their own positions before they are cached or shared, so that they are
        # never rotated again.
        q, k = rotate(q, query_rotary), rotate(k, rotary)
        # The bodies multiply scores by d^-0.5: whatever else a model scales them by is a factor of the queries.
        if self.arch.attention_scale:
            q = scale(q, self.arch.attention_scale * self.arch.head_dim**0.5)
        keys_values, shared = KeysValues(k, v), past.prefix if isinstance(past, Past) else None
        match past:
            case Past(slot=None):
                # [B, T, K, d] and [B, S, K, d] -> [B, T + S, K, d]
                k, v = (jnp.concatenate(both, axis=1) for both in zip(past.own, keys_values, strict=True))
            case Past(slot=slot) if slot is not None:
                # [B, T, K, d] with [B, S, K, d] written at the slot.
                k, v = keys_values = KeysValues(
                    *(
                        jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=1)
                        for old, new in zip(past.own, keys_values, strict=True)
                    )
                )
            case SharedPrefix():
                # [T, K, d] and [B, S, K, d] -> [B, T + S, K, d]
                k, v = (
                    jnp.concatenate([jnp.broadcast_to(before, (len(x), *before.shape)), own], axis=1)
                    for before, own in zip(past, keys_values, strict=True)
                )
        seen: Visible = visible
        if query_columns is not None:
            assert isinstance(visible, Segments), "decoding has one query per row"
            # Columns are counted among the keys, where the prefix comes first.
            seen = visible.at_columns(query_columns + k.shape[1] - x.shape[1])
        # [B, P, H, d], then all heads side by side, [B, P, H * d].
        with jax.named_scope("scores"):
            out = self._attend(q, k, v, seen, is_windowed, shared)
        return self.o_proj(out.reshape(*out.shape[:2], -1), lora), keys_values

    def _project(
        self, queries: Float[Array, "B P D"], x: Float[Array, "B S D"], lora: BlockAdapter
    ) -> tuple[Float[Array, "B P H d"], Float[Array, "B S K d"], Float[Array, "B S K d"]]:
        """Returns queries, keys and values, normed where this family norms them, and not yet rotated.

        Args:
          queries: [B, P, D], the columns that ask; `x` itself where all do.
          x: [B, S, D], the columns that are attended to.
          lora: one model's adapter for this block.
        """
        if self.arch.fused:
            return self._project_at_once(queries, x, lora)
        if queries is x:
            q_low_rank = kv_low_rank = low_rank_inputs(x, lora, "q_proj", "k_proj", "v_proj")
        else:
            q_low_rank = low_rank_inputs(queries, lora, "q_proj")
            kv_low_rank = low_rank_inputs(x, lora, "k_proj", "v_proj")
        q = self._split_heads(self._norm("q_norm", "projection", self.q_proj(queries, lora, q_low_rank)))
        k = self._split_heads(self._norm("k_norm", "projection", self.k_proj(x, lora, kv_low_rank)))
        v = self._split_heads(self.v_proj(x, lora, kv_low_rank))
        return self._norm("q_norm", "head", q), self._norm("k_norm", "head", k), v

    def _project_at_once(
        self, queries: Float[Array, "B P D"], x: Float[Array, "B S D"], lora: BlockAdapter
    ) -> tuple[Float[Array, "B P H d"], Float[Array, "B S K d"], Float[Array, "B S K d"]]:
        """Does the work of `_project` where queries, keys and values stand in one matrix."""
        ends = np.cumsum([self.arch.heads * self.arch.head_dim, self.arch.kv_heads * self.arch.head_dim])
        q, k, v = map(self._split_heads, jnp.split(self.qkv_proj(x, lora), ends, axis=-1))
        if queries is not x:
            # The keys and values of these few columns are computed once more, and dropped.
            q = self._split_heads(self.qkv_proj(queries, lora)[..., : ends[0]])
        return q, k, v

    def _norm(self, name: str, kind: str, x: jax.Array) -> jax.Array:
        """Norms queries or keys, where this family norms them in this way: all heads together, or each by itself."""
        return getattr(self, name)(x) if self.arch.query_key_norm == kind else x

    def _split_heads(self, x: Float[Array, "B S Hd"]) -> Float[Array, "B S H d"]:
        # [B, S, H * d] -> [B, S, H, d]; for keys and values, K heads.
        return x.reshape(*x.shape[:2], -1, self.arch.head_dim)

    def _attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        visible: Visible,
        is_windowed: Bool[Array, ""] | None,
        shared: SharedPrefix | None,
    ) -> Float[Array, "B S H d"]:
        """Attends with or without the window, as the block has one: [B, S, H, d]."""

        def windowed(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attention(q, k, v, visible, self.arch.window, self.arch.attention_cap, shared)

        def unwindowed(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attention(q, k, v, visible, 0, self.arch.attention_cap, shared)

        if is_windowed is None:
            return windowed(q, k, v)
        # The scan has one body for all blocks, so that a block's number decides at run time.
        return jax.lax.cond(is_windowed, windowed, unwindowed, q, k, v)


class FeedForward(nnx.Module):
    """Gated feed-forward part (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, std: float):
        self.activation = arch.activation
        up, down = (arch.hidden, arch.feed_forward), (arch.feed_forward, arch.hidden)
        # Gate and up are split by columns over `tensor` and down by rows, so that one sum over
        # devices follows down alone.
        if arch.fused:
            both = (arch.hidden, 2 * arch.feed_forward)
            self.gate_up_proj = Projection(arch, "gate_up_proj", ("embed", None), both, rngs, std)
        else:
            self.gate_proj = Projection(arch, "gate_proj", ("embed", "feed_forward"), up, rngs, std)
            self.up_proj = Projection(arch, "up_proj", ("embed", "feed_forward"), up, rngs, std)
        out_std = std / (2 * arch.layers) ** 0.5
        self.down_proj = Projection(arch, "down_proj", ("feed_forward", "embed"), down, rngs, out_std)

    def __call__(self, x: Float[Array, "B S D"], lora: BlockAdapter) -> Float[Array, "B S D"]:
        """[B, S, D] -> [B, S, D]."""
        if hasattr(self, "gate_up_proj"):
            gate, up = jnp.split(self.gate_up_proj(x, lora), 2, axis=-1)  # [B, S, F] each
        else:
            low_rank = low_rank_inputs(x, lora, "gate_proj", "up_proj")
            gate, up = self.gate_proj(x, lora, low_rank), self.up_proj(x, lora, low_rank)  # [B, S, F] each
        return self.down_proj(_gated(gate, up, self.activation), lora)


# `prevent_cse` is not needed: inside the scan over layers nothing is merged.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _gated(gate: Float[Array, "B S F"], up: Float[Array, "B S F"], activation: str) -> Float[Array, "B S F"]:
    """Multiplies by the gate; recomputed in the backward pass, which would keep as much as both arguments together."""
    if activation == "silu":
        return nnx.silu(gate) * up
    # In float32: a cube in bfloat16 would lose most of its bits.
    wide = gate.astype(jnp.promote_types(gate.dtype, jnp.float32))
    return jax.nn.gelu(wide, approximate=True).astype(gate.dtype) * up


class Block(nnx.Module):
    """Transformer block; its parameters carry the stacked layer axis, which the scan takes off."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, std: float):
        # Every parameter is declared once for all layers, [L, ...]: one scan compiles one block.
        self.residual_scale = arch.residual_scale
        if arch.norms in ("pre", "both"):
            self.attention_norm = RMSNorm(arch, arch.layers, arch.hidden)
            self.feed_forward_norm = RMSNorm(arch, arch.layers, arch.hidden)
        if arch.norms in ("post", "both"):
            self.attention_post_norm = RMSNorm(arch, arch.layers, arch.hidden)
            self.feed_forward_post_norm = RMSNorm(arch, arch.layers, arch.hidden)
        self.attention = Attention(arch, rngs, std)
        self.feed_forward = FeedForward(arch, rngs, std)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        lora: BlockAdapter,
        rotary: RotaryTable | RotaryTables,
        visible: Segments | DecodingQuery | BranchColumns,
        is_windowed: Bool[Array, ""] | None = None,
        *,
        past: SharedPrefix | Past | None = None,
        query_columns: Int[Array, "B P"] | None = None,
    ) -> tuple[Float[Array, "B P D"], KeysValues]:
        """[B, S, D] -> [B, P, D], and keys and values; arguments as in `Attention`, with x before its norm."""
        # The scopes name the two halves in profiles; those of `Attention` and `Projection` name what is inside.
        with jax.named_scope("attention"):
            attended, keys_values = self.attention(
                self._norm("attention_norm", x),
                lora,
                rotary,
                visible,
                is_windowed,
                past=past,
                query_columns=query_columns,
            )
            # The residual stream of the columns that ask, [B, P, D].
            x = x if query_columns is None else take_columns(x, query_columns)
            x = x + scale(self._norm("attention_post_norm", attended), self.residual_scale)
        with jax.named_scope("feed_forward"):
            fed = self.feed_forward(self._norm("feed_forward_norm", x), lora)
            return x + scale(self._norm("feed_forward_post_norm", fed), self.residual_scale), keys_values

    def _norm(self, name: str, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Applies one of the norms, where this family has it."""
        return getattr(self, name)(x) if hasattr(self, name) else x
