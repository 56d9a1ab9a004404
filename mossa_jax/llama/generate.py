"""Greedy decoding with a key/value cache, for several adapters at once.

Shape letters: A adapters, B rows (prompts), P columns of the ids that all prompts share, S positions of the padded
prompts, T = S + new tokens, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import Adapters, DeviceAdapter, abstract_adapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import DecodingQuery, Segments
from mossa_jax.llama.layers import KeysValues, SharedPrefix
from mossa_jax.llama.model import Llama, embed, logits, merge, pin_rows, run_blocks_cached, windowed_blocks
from mossa_jax.llama.placement import abstract_base


@partial(jax.jit, static_argnames=("arch", "eos", "new_tokens", "mesh"))
def greedy(
    arch: Architecture,
    state: nnx.State,
    adapters: Adapters,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    prefix: SharedPrefix | None = None,
    prefix_length: Int[Array, ""] | int = 0,
    *,
    eos: tuple[int, ...],
    new_tokens: int,
    mesh: jax.sharding.Mesh | None = None,
) -> Int[Array, "A B new_tokens"]:
    """Continues prompts by the likeliest token, all adapters over the same prompts.

    Args:
      arch: the base model's.
      state: the base model.
      adapters: stacked [A, ...].
      tokens: [B, S] int32, padded on the right.
      lengths: [B] int32, at least 1.
      prefix: keys and values of the ids that all prompts begin with, [A, L, P, K, d]; `tokens` are those behind them.
      prefix_length: [] int32, how many of the P columns hold an id.
      eos: ids that end an answer.
      new_tokens: length of the longest continuation; decoding ends earlier once every row of every adapter has ended.
      mesh: the devices that rows are spread over; None for one.

    Returns:
      [A, B, new_tokens] int32, filled with the first of `eos` from each row's end on.
    """
    eos_ids = jnp.asarray(eos, jnp.int32)
    # The first P slots are those of the shared ids, the next S hold the padded prompts, the last ones the new tokens.
    # A row's cache begins behind the shared ones.
    shared = 0 if prefix is None else prefix.keys.shape[2]
    width = shared + tokens.shape[1]
    is_prompt = jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]  # [B, S]
    # [B, P + S]: the position in each slot; -1 where there is none.
    columns = jnp.broadcast_to(jnp.arange(shared), (len(tokens), shared))
    held = jnp.concatenate(
        [
            jnp.where(columns < prefix_length, columns, -1),
            jnp.where(is_prompt, prefix_length + jnp.arange(tokens.shape[1]), -1),
        ],
        axis=1,
    )
    lengths = lengths + prefix_length
    # All adapters read the same prompts, so only adapters, caches and tokens have the axis A. In the caches it stands
    # behind the layers: the scan over these would move it there, and back, in every step.
    per_adapter = partial(jax.vmap, spmd_axis_name="adapter", out_axes=(0, 1))

    def read(adapter: DeviceAdapter, prefix: SharedPrefix | None) -> tuple[jax.Array, KeysValues]:
        return _read_prompts(arch, state, adapter, tokens, held, new_tokens, prefix, mesh)

    own_prefix = None if prefix is None else 0
    # [A, B], and keys and values [L, A, B, T, K, d]
    first, cached = per_adapter(read, in_axes=(0, own_prefix))(adapters, prefix)
    slots = jnp.arange(width + new_tokens)
    held = jnp.pad(held, ((0, 0), (0, new_tokens)), constant_values=-1)  # [B, P + T]
    output = jnp.full((*first.shape, new_tokens), eos_ids[0], jnp.int32)  # [A, B, new_tokens]

    # A while loop and not a scan: it stops as soon as every row of every adapter has ended.
    def is_unfinished(carry: tuple) -> Bool[Array, ""]:
        step, *_, has_ended = carry
        return (step < new_tokens) & ~has_ended.all()

    def body(carry: tuple) -> tuple:
        step, token, output, cached, has_ended = carry
        # The token of the step before is written first: step 0 writes the one that the prompts gave.
        output = output.at[:, :, step].set(jnp.where(has_ended, eos_ids[0], token))
        has_ended = has_ended | (token[..., None] == eos_ids).any(axis=-1)  # [A, B]
        # New keys take the same slot in all rows; the gap between a row's prompt and them stays hidden.
        is_new = (slots >= width) & (slots <= width + step)  # [P + T]
        # [B, P + T]: new tokens continue at the row's own length.
        key_positions = jnp.where(is_new, lengths[:, None] + slots - width, held)
        visible = DecodingQuery(key_positions, (lengths + step)[:, None])

        def decode(
            adapter: DeviceAdapter, token: jax.Array, cached: KeysValues, prefix: SharedPrefix | None
        ) -> tuple[jax.Array, KeysValues]:
            return _decode_step(arch, state, adapter, token, visible, cached, prefix, width - shared + step)

        # [A, B], [L, A, B, T, K, d]
        token, cached = per_adapter(decode, in_axes=(0, 0, 1, own_prefix))(adapters, token, cached, prefix)
        return step + 1, token, output, cached, has_ended

    # XLA updates the carry in place, so the cache exists once.
    start = (jnp.int32(0), first, output, cached, jnp.zeros(first.shape, bool))
    return jax.lax.while_loop(is_unfinished, body, start)[2]


def _read_prompts(
    arch: Architecture,
    state: nnx.State,
    adapter: DeviceAdapter,
    tokens: Int[Array, "B S"],
    held: Int[Array, "B P+S"],
    new_tokens: int,
    prefix: SharedPrefix | None,
    mesh: jax.sharding.Mesh | None,
) -> tuple[Int[Array, " B"], KeysValues]:
    """Reads the prompts with one adapter.

    Args:
      arch, state, adapter: as in `greedy`, of one adapter.
      tokens: [B, S] int32.
      held: [B, P + S] int32, the position in each slot; -1 where there is none.
      new_tokens: slots for further keys.
      prefix: keys and values of the shared ids, [L, P, K, d].
      mesh: as in `greedy`.

    Returns:
      The likeliest next token [B]; keys and values [L, B, T, K, d], with room for those of the new tokens.
    """
    model, width = merge(arch, state), tokens.shape[1]
    shared = held.shape[1] - width
    positions, is_held = held[:, shared:], held >= 0
    # One prompt per row: segment 1, behind the shared ids of segment -1, and 0 where there is no id.
    segments = jnp.where(jnp.arange(held.shape[1]) < shared, -1, 1) * is_held
    visible = Segments(segments, mesh, shared, width if shared else 0)
    x, rotary = embed(model, arch, tokens, jnp.maximum(positions, 0), visible)

    def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, KeysValues]:
        block, lora, is_windowed, past = layer
        x, own = block(x, lora, rotary, visible, is_windowed, past=past)
        return pin_rows(x, visible), own

    last, cached = jax.lax.scan(body, x, (model.blocks, adapter, windowed_blocks(arch), prefix))
    # [L, B, S, K, d] -> [L, B, T, K, d].
    cached = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (0, 0), (0, new_tokens), (0, 0), (0, 0))), cached)
    # The last id of each prompt alone: logits of all positions would be [B, S, V].
    column = jnp.argmax(positions, axis=1)[:, None, None]
    return _likeliest(model, arch, jnp.take_along_axis(last, column, axis=1)), cached  # [B, 1, D]


def _decode_step(
    arch: Architecture,
    state: nnx.State,
    adapter: DeviceAdapter,
    token: Int[Array, " B"],
    visible: DecodingQuery,
    cached: KeysValues,
    prefix: SharedPrefix | None,
    slot: Int[Array, ""],
) -> tuple[Int[Array, " B"], KeysValues]:
    """Decodes one token with one adapter: returns the likeliest next token [B], and the keys and values."""
    model = merge(arch, state)
    # [B] -> [B, 1]: one query per row.
    x, cached = run_blocks_cached(model, arch, adapter, token[:, None], visible, cached, prefix, slot)
    return _likeliest(model, arch, x), cached


def _likeliest(model: Llama, arch: Architecture, x: Float[Array, "B 1 D"]) -> Int[Array, " B"]:
    # [B, 1, D] -> [B, V] -> [B]; among equal logits the lowest id.
    return jnp.argmax(logits(model, arch, x)[:, 0], axis=-1).astype(jnp.int32)


def abstract_arguments(
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    *,
    dtype: DTypeLike,
    models: int,
    rank: int,
    targets: Sequence[str],
    rows: int,
    width: int,
    prefix: int = 0,
) -> tuple:
    """Describes the positional arguments of `greedy` behind `arch` as shapes, dtypes and shardings.

    Args:
      arch, mesh: as in `greedy`.
      dtype: of the base.
      models, rank, targets: of the adapters that answer at once.
      rows: B, prompts in a batch; a multiple of the fsdp axis.
      width: S, positions of the longest prompt.
      prefix: P, columns of the ids that all prompts share; 0 if they share none.
    """
    tokens = mesh_lib.abstract(mesh, (rows, width), ("rows", None), jnp.int32)
    lengths = mesh_lib.abstract(mesh, (rows,), ("rows",), jnp.int32)
    base, adapters = abstract_base(arch, mesh, dtype), abstract_adapters(arch, mesh, models, rank, targets)
    if not prefix:
        return base, adapters, tokens, lengths
    shape = (models, arch.layers, prefix, arch.kv_heads, arch.head_dim)
    keys = mesh_lib.abstract(mesh, shape, (None, None, None, "kv_heads", None), dtype)
    return base, adapters, tokens, lengths, SharedPrefix._make([keys, keys]), mesh_lib.abstract(mesh, (), (), jnp.int32)
