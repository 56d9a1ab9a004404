"""Greedy decoding with a key/value cache, for several adapters at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import abstract_adapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Cached, Segments
from mossa_jax.llama.model import logits, merge, run_blocks, run_blocks_cached
from mossa_jax.llama.placement import abstract_base


@partial(jax.jit, static_argnames=("arch", "eos", "new_tokens", "mesh"))
def greedy(
    arch: Architecture, state, adapters, tokens, lengths, *, eos: tuple[int, ...], new_tokens: int, mesh=None
) -> jax.Array:
    """Continues prompts by the likeliest token, all adapters over the same prompts.

    Args:
      arch: the base model's.
      state: the base model.
      adapters: stacked [A, ...].
      tokens: [B, S] int32, padded on the right.
      lengths: [B] int32, at least 1.
      eos: ids that end an answer.
      new_tokens: longest continuation; decoding ends earlier when every row of every adapter has ended.
      mesh: the devices that rows are spread over; None for one.

    Returns:
      [A, B, new_tokens] int32, EOS from each row's end on.
    """
    eos = jnp.asarray(eos, jnp.int32)
    width = tokens.shape[1]
    prompt = jnp.arange(width)[None, :] < lengths[:, None]
    stacked = partial(jax.vmap, spmd_axis_name="adapter")
    first, cache = stacked(lambda adapter: _read(arch, state, adapter, tokens, lengths, prompt, new_tokens, mesh))(
        adapters
    )
    slots, held = jnp.arange(width + new_tokens), jnp.pad(prompt, ((0, 0), (0, new_tokens)))
    output = jnp.full((*first.shape, new_tokens), eos[0], jnp.int32)

    def going_on(carry):
        step, *_, done = carry
        return (step < new_tokens) & ~done.all()

    def body(carry):
        step, token, output, cache, done = carry
        output = output.at[:, :, step].set(jnp.where(done, eos[0], token))
        done = done | (token[..., None] == eos).any(axis=-1)
        # New keys share one slot over all rows; the gap between a row's prompt and them stays hidden.
        written = (slots >= width) & (slots <= width + step)
        keys = jnp.where(written, lengths[:, None] + slots - width, jnp.where(held, slots, -1))
        visible = Cached(keys, (lengths + step)[:, None])
        token, cache = stacked(
            lambda adapter, token, cache: _write(arch, state, adapter, token, visible, cache, width + step)
        )(adapters, token, cache)
        return step + 1, token, output, cache, done

    start = (jnp.int32(0), first, output, cache, jnp.zeros(first.shape, bool))
    return jax.lax.while_loop(going_on, body, start)[2]


def _read(arch, state, adapter, tokens, lengths, prompt, new_tokens, mesh):
    """Reads the prompts of one adapter: (likeliest next token [B], cache with room for the new ones)."""
    model = merge(arch, state)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    visible = Segments(prompt.astype(jnp.int32), mesh)
    _, last, cache = run_blocks(model, arch, adapter, tokens, positions, visible, tap=lambda _, kv: kv)
    cache = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (0, 0), (0, new_tokens), (0, 0), (0, 0))), cache)
    ends = jnp.take_along_axis(last, (lengths - 1)[:, None, None], axis=1)
    return _likeliest(model, arch, ends), cache


def _write(arch, state, adapter, token, visible, cache, slot):
    """One step of one adapter: (likeliest next token [B], cache)."""
    model = merge(arch, state)
    x, cache = run_blocks_cached(model, arch, adapter, token[:, None], visible, cache, slot)
    return _likeliest(model, arch, x), cache


def _likeliest(model, arch, x):
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
    """The arguments (state, adapters, tokens, lengths) of `greedy` behind `arch`, as shapes, dtypes and shardings.

    Args:
      arch, mesh: as in `greedy`.
      dtype: of the base.
      models, rank, targets: adapters that answer at once.
      rows, width: B and S, prompts in a batch (a multiple of the fsdp axis), and positions of the longest.
    """
    tokens = mesh_lib.abstract(mesh, (rows, width), ("rows", None), jnp.int32)
    lengths = mesh_lib.abstract(mesh, (rows,), ("rows",), jnp.int32)
    base, adapters = abstract_base(arch, mesh, dtype), abstract_adapters(arch, mesh, models, rank, targets)
    return base, adapters, tokens, lengths
