"""The Llama family: embedding, stacked blocks run by one scan, final norm and head.

Modules only define. Programs take the pure state that `abstract_state` describes and merge it inside `jax.jit`.

Shape letters: A adapters, B rows, S positions, T keys, P query columns, D hidden, K key/value heads, d head width,
V vocabulary, L layers, r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import DeviceAdapter
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import BranchColumns, DecodingQuery, Segments
from mossa_jax.llama.blockwise import product_precision
from mossa_jax.llama.layers import Block, KeysValues, Past, RMSNorm, SharedPrefix
from mossa_jax.llama.rope import Rope, RotaryTable, RotaryTables, rotary_table


class Llama(nnx.Module):
    """Embedding, stacked blocks, final norm, head (the embedding itself where the checkpoint ties them)."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        # Narrow models need wider weights: "SmallInit" of Nguyen and Salazar 2019, arXiv 1910.05895.
        std = 0.02 if arch.hidden >= 1024 else (2 / (5 * arch.hidden)) ** 0.5
        shape = (arch.vocab, arch.hidden)
        init = nnx.initializers.normal(std)
        # [V, D], ids over `tensor` and widths over `fsdp`; the head likewise.
        self.embedding = nnx.Param(init(rngs.params(), shape, jnp.float32), logical=("vocab", "embed"))
        self.blocks = Block(arch, rngs, std)
        self.final_norm = RMSNorm(arch, arch.hidden)
        if not arch.tied_head:
            self.head = nnx.Param(init(rngs.params(), shape, jnp.float32), logical=("vocab", "embed"))


def run_blocks(
    model: Llama,
    arch: Architecture,
    adapter: DeviceAdapter,
    tokens: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    visible: Segments,
    tap: Callable[[Float[Array, "B S D"], KeysValues], Any],
    remat: bool = False,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"], Any]:
    """Embeds packed rows and runs all blocks in one scan.

    Args:
      model: merged module.
      arch: its architecture.
      adapter: one model's adapter, stacked over layers; {} for none.
      tokens: [B, S] int32.
      positions: [B, S] int32, restarting in every segment.
      visible: segments and, where there are several devices, the mesh that rows are spread over.
      tap: called with each block's output [B, S, D] and its keys and values; its results are stacked over layers.
      remat: recompute the inside of each block in the backward pass.

    Returns:
      (embedding [B, S, D], output of the last block [B, S, D], taps [L, ...]).
    """
    # [B, S, D], and cosines and sines [B, S, d/2], which all blocks share.
    embedded, rotary = embed(model, arch, tokens, positions, visible)

    def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, Any]:
        # The scan takes the layer axis off: one block, its adapter, and [] bool or None.
        block, lora, is_windowed = layer
        x, keys_values = block(x, lora, rotary, visible, is_windowed)
        x = pin_rows(x, visible)
        return x, tap(x, keys_values)

    # With recomputation the scan keeps only each block's input [B, S, D] for the backward pass.
    body = jax.checkpoint(body) if remat else body
    # A scan and not a Python loop: compilation time does not grow with L, and weights that are spread over `fsdp` are
    # gathered one block at a time.
    last, taps = jax.lax.scan(body, embedded, (model.blocks, adapter, windowed_blocks(arch)))
    return embedded, last, taps


def run_blocks_cached(
    model: Llama,
    arch: Architecture,
    adapter: DeviceAdapter,
    tokens: Int[Array, "B 1"],
    visible: DecodingQuery,
    cached: KeysValues,
    prefix: SharedPrefix | None,
    slot: Int[Array, ""],
) -> tuple[Float[Array, "B 1 D"], KeysValues]:
    """Runs one decoding step.

    Args:
      model, arch, adapter: as in `run_blocks`.
      tokens: [B, 1] int32.
      visible: the slots of prefix and cache that each row's query sees.
      cached: keys and values [L, B, T, K, d] each.
      prefix: those that all rows share, [L, C, K, d] each; None: there are none.
      slot: [] int32, where the new keys and values go.

    Returns:
      (output of the last block [B, 1, D], the keys and values with the new ones at `slot`).
    """
    embedded = _embedded(model, arch, tokens)  # [B, 1, D]
    # One position per row: [B, 1, d/2] each.
    rotary = _rotary_table(arch, visible.position, visible, embedded.dtype)

    def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, KeysValues]:
        block, lora, is_windowed, cached, shared = layer
        return block(x, lora, rotary, visible, is_windowed, past=Past(cached, shared, slot))

    # The cache goes through the scan as its inputs and outputs, one layer [B, T, K, d] per turn. As a carry that is
    # written at one slot, XLA copies all of it in every turn (docs/measurements.md).
    return jax.lax.scan(body, embedded, (model.blocks, adapter, windowed_blocks(arch), cached, prefix))


def run_branches(
    model: Llama,
    arch: Architecture,
    adapter: DeviceAdapter,
    tokens: Int[Array, "B Q"],
    visible: BranchColumns,
    past: KeysValues,
    prefix: SharedPrefix | None,
) -> Float[Array, "B Q D"]:
    """Continues sequences that were read before, several continuations of each at once.

    Args:
      model, arch, adapter: as in `run_blocks`.
      tokens: [B, Q] int32.
      visible: the sequence that each of them continues, and its position.
      past: keys and values of the sequences, [L, B, T, K, d] each.
      prefix: those that all sequences share, [L, C, K, d] each; None: there are none.

    Returns:
      Output of the last block.
    """
    embedded = _embedded(model, arch, tokens)  # [B, Q, D]
    rotary = _rotary_table(arch, visible.positions, visible, embedded.dtype)

    def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
        block, lora, is_windowed, own, shared = layer
        return block(x, lora, rotary, visible, is_windowed, past=Past(own, shared))[0], None

    return jax.lax.scan(body, embedded, (model.blocks, adapter, windowed_blocks(arch), past, prefix))[0]


def embed(
    model: Llama, arch: Architecture, tokens: Int[Array, "B S"], positions: Int[Array, "B S"], visible: Segments
) -> tuple[Float[Array, "B S D"], RotaryTable | RotaryTables]:
    """Embeds `tokens` [B, S]: returns [B, S, D], and the rotary table or tables of their `positions`."""
    # The embedding [V, D] has D over `fsdp`, and so would the result. Pinned, it has its rows there,
    # as every block expects.
    embedded = pin_rows(_embedded(model, arch, tokens), visible)
    return embedded, _rotary_table(arch, positions, visible, embedded.dtype)


def _embedded(model: Llama, arch: Architecture, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """Looks `tokens` up in the embedding, and scales them where the family does."""
    embedded = model.embedding[...][tokens]
    # The factor is rounded to the embedding's dtype first, as in transformers.
    return embedded if arch.embedding_scale == 1 else embedded * jnp.asarray(arch.embedding_scale, embedded.dtype)


def _rotary_table(
    arch: Architecture,
    positions: Int[Array, "B S"],
    visible: Segments | DecodingQuery | BranchColumns,
    dtype: DTypeLike,
) -> RotaryTable | RotaryTables:
    """Returns the rotary table or tables of `positions`, in float32 or wider."""
    wide = jnp.promote_types(dtype, jnp.float32)

    def table(rope: Rope) -> RotaryTable:
        # To count a sequence's length takes a comparison [B, T, T].
        lengths = visible.lengths() if rope.depends_on_length else None
        return rotary_table(rope, arch.head_dim, positions, lengths, wide)

    if arch.local_rope is None:
        return table(arch.rope)
    if len(arch.windowed) == arch.layers:
        return table(arch.local_rope)
    return RotaryTables(table(arch.local_rope), table(arch.rope))


def pin_rows(x: Float[Array, "B S D"], visible: Segments) -> Float[Array, "B S D"]:
    """Pins the rows of states [B, S, D] to `fsdp`.

    The compiler then moves weights to the rows, and never partial sums between them.
    """
    if visible.mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, mesh_lib.sharding(visible.mesh, x.shape, ("rows", None, None)))


def can_share_prefix(arch: Architecture) -> bool:
    """Whether the sequences of a row may share a prefix (segment -1).

    They may not where anything depends on the columns of the row (a window) or on a sequence's own length (some rotary
    scalings).
    """
    return not arch.windowed and not arch.rope.depends_on_length


def windowed_blocks(arch: Architecture) -> np.ndarray | None:
    """Returns which blocks are windowed, [L] bool; None where all blocks are alike."""
    # With None there is no `cond` in the scan: `arch.window` holds in every block, and it is 0
    # where no block is windowed.
    if len(arch.windowed) in (0, arch.layers):
        return None
    return np.isin(np.arange(arch.layers), arch.windowed)


def head_weight(model: Llama, arch: Architecture) -> Float[Array, "V D"]:
    """Returns the matrix of the head, [V, D]."""
    return model.embedding[...] if arch.tied_head else model.head[...]


@jax.named_scope("head")
def logits(model: Llama, arch: Architecture, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Applies final norm and head: [..., D] -> [..., V] float32 (float64 for float64)."""
    return bound_logits(arch, head_products(model.final_norm(x), head_weight(model, arch)))


def bound_logits(arch: Architecture, products: Float[Array, "*rows V"]) -> Float[Array, "*rows V"]:
    """Turns products with the head into logits, [..., V]: divided and capped where the family does."""
    if arch.logit_divisor != 1:
        products = products / arch.logit_divisor
    return arch.logit_cap * jnp.tanh(products / arch.logit_cap) if arch.logit_cap else products


def head_products(normed: Float[Array, "*rows D"], head: Float[Array, "V D"]) -> Float[Array, "*rows V"]:
    """Multiplies by the head: [..., D] and [V, D] -> [..., V] float32 (float64 for float64)."""
    wide = jnp.promote_types(normed.dtype, jnp.float32)
    precision = product_precision(normed.dtype)
    # Sums in float32 also for bfloat16 states: logits decide between ids that are close.
    return jnp.einsum("...d,vd->...v", normed, head, precision=precision, preferred_element_type=wide)


def parameter_count(arch: Architecture) -> int:
    """Counts the parameters of the model from their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_state(arch, jnp.float32)))


@lru_cache(maxsize=16)
def _abstract(arch: Architecture) -> tuple[nnx.GraphDef, nnx.State]:
    # Shapes only: no weight is drawn. Cached, since tracing all modules takes time and every program needs it.
    return nnx.split(nnx.eval_shape(lambda: Llama(arch, nnx.Rngs(0))))


def abstract_state(arch: Architecture, dtype: DTypeLike) -> nnx.State:
    """Returns the model's state as shapes."""
    _, state = _abstract(arch)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), state)


def logical_axes(arch: Architecture) -> dict[str, tuple[str | None, ...]]:
    """Returns each leaf's logical axes as the modules declare them, e.g. by "blocks.attention.q_proj.weight"."""
    variables = _abstract(arch)[1].flat_state()
    # Each `nnx.Param` carries its logical axes; `devices.mesh.RULES` maps them to mesh axes.
    return {".".join(map(str, path)): variable.get_metadata("logical") for path, variable in variables}


def merge(arch: Architecture, state: nnx.State) -> Llama:
    """Builds the module around a pure state; free of cost inside `jax.jit`."""
    return nnx.merge(_abstract(arch)[0], state)


def initial_state(arch: Architecture, seed: int) -> nnx.State:
    """Draws a new model, float32: normal weights; those of residual outputs are scaled by 1/sqrt(2 L)."""
    return nnx.split(Llama(arch, nnx.Rngs(seed)))[1]
