"""Greedy decoding with a key/value cache, for several adapters at once.

Shape letters: A adapters, B rows (prompts), S positions of the padded prompts, T = S + new tokens, L layers, V
vocabulary.
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
from mossa_jax.llama.layers import KeysValues
from mossa_jax.llama.model import Llama, logits, merge, run_blocks, run_blocks_cached
from mossa_jax.llama.placement import abstract_base


@partial(jax.jit, static_argnames=("arch", "eos", "new_tokens", "mesh"))
def greedy(
    arch: Architecture,
    state: nnx.State,
    adapters: Adapters,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
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
      eos: ids that end an answer.
      new_tokens: length of the longest continuation; decoding ends earlier once every row of every adapter has ended.
      mesh: the devices that rows are spread over; None for one.

    Returns:
      [A, B, new_tokens] int32, filled with the first of `eos` from each row's end on.
    """
    eos_ids = jnp.asarray(eos, jnp.int32)
    # Slots 0..S-1 of the cache hold the padded prompts, slots S.. the new tokens.
    width = tokens.shape[1]
    is_prompt = jnp.arange(width)[None, :] < lengths[:, None]  # [B, S]
    # All adapters read the same prompts, so only adapters, caches and tokens have the axis A.
    per_adapter = partial(jax.vmap, spmd_axis_name="adapter")

    def read(adapter: DeviceAdapter) -> tuple[jax.Array, KeysValues]:
        return _read_prompts(arch, state, adapter, tokens, lengths, is_prompt, new_tokens, mesh)

    first, cached = per_adapter(read)(adapters)  # [A, B], and keys and values [A, L, B, T, K, d]
    slots = jnp.arange(width + new_tokens)
    holds_prompt = jnp.pad(is_prompt, ((0, 0), (0, new_tokens)))  # [B, T]
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
        is_new = (slots >= width) & (slots <= width + step)  # [T]
        # [B, T]: a prompt's slot is its position; new tokens continue at the row's own length; all other slots are -1.
        key_positions = jnp.where(is_new, lengths[:, None] + slots - width, jnp.where(holds_prompt, slots, -1))
        visible = DecodingQuery(key_positions, (lengths + step)[:, None])

        def decode(adapter: DeviceAdapter, token: jax.Array, cached: KeysValues) -> tuple[jax.Array, KeysValues]:
            return _decode_step(arch, state, adapter, token, visible, cached, width + step)

        token, cached = per_adapter(decode)(adapters, token, cached)  # [A, B], [A, L, B, T, K, d]
        return step + 1, token, output, cached, has_ended

    # XLA updates the carry in place, so the cache exists once.
    start = (jnp.int32(0), first, output, cached, jnp.zeros(first.shape, bool))
    return jax.lax.while_loop(is_unfinished, body, start)[2]


def _read_prompts(
    arch: Architecture,
    state: nnx.State,
    adapter: DeviceAdapter,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    is_prompt: Bool[Array, "B S"],
    new_tokens: int,
    mesh: jax.sharding.Mesh | None,
) -> tuple[Int[Array, " B"], KeysValues]:
    """Reads the prompts with one adapter.

    Returns:
      The likeliest next token [B]; keys and values [L, B, T, K, d], with room for those of the new tokens.
    """
    model = merge(arch, state)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    # One prompt per row: segment 1, and 0 on the padding behind it.
    visible = Segments(is_prompt.astype(jnp.int32), mesh)
    _, last, cached = run_blocks(
        model, arch, adapter, tokens, positions, visible, tap=lambda _, keys_values: keys_values
    )
    # [L, B, S, K, d] -> [L, B, T, K, d].
    cached = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (0, 0), (0, new_tokens), (0, 0), (0, 0))), cached)
    # The last id of each prompt alone: logits of all positions would be [B, S, V].
    ends = jnp.take_along_axis(last, (lengths - 1)[:, None, None], axis=1)  # [B, 1, D]
    return _likeliest(model, arch, ends), cached


def _decode_step(
    arch: Architecture,
    state: nnx.State,
    adapter: DeviceAdapter,
    token: Int[Array, " B"],
    visible: DecodingQuery,
    cached: KeysValues,
    slot: Int[Array, ""],
) -> tuple[Int[Array, " B"], KeysValues]:
    """Decodes one token with one adapter: returns the likeliest next token [B], and the keys and values."""
    model = merge(arch, state)
    # [B] -> [B, 1]: one query per row.
    x, cached = run_blocks_cached(model, arch, adapter, token[:, None], visible, cached, slot)
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
) -> tuple:
    """Describes the arguments (state, adapters, tokens, lengths) of `greedy` as shapes, dtypes and shardings.

    Args:
      arch, mesh: as in `greedy`.
      dtype: of the base.
      models, rank, targets: of the adapters that answer at once.
      rows: B, prompts in a batch; a multiple of the fsdp axis.
      width: S, positions of the longest prompt.
    """
    tokens = mesh_lib.abstract(mesh, (rows, width), ("rows", None), jnp.int32)
    lengths = mesh_lib.abstract(mesh, (rows,), ("rows",), jnp.int32)
    base, adapters = abstract_base(arch, mesh, dtype), abstract_adapters(arch, mesh, models, rank, targets)
    return base, adapters, tokens, lengths
