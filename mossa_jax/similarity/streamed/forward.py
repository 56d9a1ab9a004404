"""Similarity while the states pass: one program runs all models over a batch and adds every layer to its moments.

Nothing of the batch is kept, so that rows may be as many as one likes: the way for `all` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.model import merge
from mossa_jax.similarity.compare import Similarities
from mossa_jax.similarity.streamed import moments
from mossa_jax.similarity.streamed.moments import Moments
from mossa_jax.similarity.streamed.values import finish
from mossa_jax.states.forward import Pass, Prompts, rows_of, run_models


def stream_similarities(
    arch: Architecture,
    base: Any,
    adapters: dict,
    prompts: Sequence[Sequence[int]],
    mesh: jax.sharding.Mesh,
    pairs: Sequence[tuple[int, int]],
    *,
    fast: bool = False,
    **packing: Any,
) -> Similarities:
    """Same-layer CKA of pairs of models over prompts, in one pass.

    Args:
      arch, base, adapters, prompts, mesh: as of `states.keep_states`.
      pairs: (a, b) indices of models.
      fast: as in `moments.start`.
      packing: `pool` (`last`, `mean` or `all`), `row_length` and the others of `states.keep_states`.

    Returns:
      The similarities; without intervals, p-values and their kind, which need the rows.
    """
    packed = Prompts(arch, base, adapters, prompts, mesh, **packing)
    state = start(arch, packed.models, tuple(pairs), mesh, fast)
    for rows in packed.batches():
        state = stream_batch(packed.made, *packed.arguments, rows, packed.prefix, state)
    return finish(state)


@partial(jax.jit, static_argnames=("arch", "models", "pairs", "mesh", "fast"))
def start(
    arch: Architecture, models: int, pairs: tuple[tuple[int, int], ...], mesh: jax.sharding.Mesh, fast: bool = False
) -> Moments:
    """Empty moments [K, ...] of every layer of so many models; their first batch gives them their shift."""
    empty = jax.vmap(partial(moments.start, pairs=pairs, fast=fast, mesh=mesh))
    return empty(jnp.zeros((arch.layers + 2, models, arch.hidden), jnp.float32))


@partial(jax.jit, static_argnames=("made",), donate_argnames=("state",))
def stream_batch(made: Pass, base, adapters, rows, prefix, state: Moments) -> Moments:
    """One batch into the moments [K, ...] of all layers."""
    models = state.shift.shape[1]

    def put(state, layer, x, whole):
        x, valid = rows_of(made, rows, prefix, layer, x, whole)
        one = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), state)
        x = jnp.broadcast_to(x, (models, *x.shape[1:]))
        one = moments.update(moments.with_shift(one, x, valid), x, valid)
        return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, layer, 0), state, one)

    return moments.placed(run_models(made, merge(made.arch, base), adapters, rows, prefix, put, state))


def abstract_moments(
    arch: Architecture, mesh: jax.sharding.Mesh, models: int, pairs: Sequence[tuple[int, int]]
) -> Moments:
    """What `start` returns, as shapes, dtypes and shardings."""
    begin = start.lower(arch, models, tuple(pairs), mesh).compile()
    return mesh_lib.abstract_tree(
        jax.eval_shape(lambda: start(arch, models, tuple(pairs), mesh)), begin.output_shardings
    )
