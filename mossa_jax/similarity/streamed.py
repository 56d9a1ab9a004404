"""Similarity while the states pass: one program runs all models over a batch and adds every layer to its moments.

Nothing of the batch is kept, so that rows may be as many as one likes: the way for `all` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.model import merge
from mossa_jax.mesh import round_up
from mossa_jax.similarity import moments
from mossa_jax.similarity.compare import Similarities
from mossa_jax.similarity.moments import Moments
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
    """Same-layer CKA of pairs of models over prompts, in one pass and a mean of some rows of its first batch.

    Args:
      arch, base, adapters, prompts, mesh: as of `states.keep_states`.
      pairs: (a, b) indices of models.
      fast: as in `moments.start`.
      packing: `pool` (`last`, `mean` or `all`), `row_length` and the others of `states.keep_states`.

    Returns:
      The similarities; without intervals, p-values and their kind, which need the rows.
    """
    packed = Prompts(arch, base, adapters, prompts, mesh, **packing)
    state, spread = None, mesh if mesh.size > 1 else None
    for rows in packed.batches():
        arguments = (packed.made, *packed.arguments, rows, packed.lead)
        if state is None:
            begin = jax.vmap(lambda shift: moments.start(shift, pairs, fast=fast, mesh=spread))
            state = jax.jit(begin)(_means(*arguments))
        state = stream_batch(*arguments, state)
    return moments.finish(state)


@partial(jax.jit, static_argnames=("made",))
def _means(made: Pass, base, adapters, rows, lead) -> jax.Array:
    """Mean row of every layer and model in a quarter of the batch, [K, M, D] float32: what the moments are shifted by.

    A shift need only lie near the mean, and these passes are made once more.
    """
    fewer = round_up(-(-len(rows["tokens"]) // 4), made.mesh.shape["fsdp"])
    rows = {name: part[:fewer] for name, part in rows.items()}
    models = len(next(iter(jax.tree.leaves(adapters))))
    empty = jnp.zeros((made.arch.layers + 2, models, made.arch.hidden), jnp.float32)

    def put(means, layer, x, whole):
        x, valid = rows_of(made, rows, lead, layer, x, whole)
        counted = valid & jnp.isfinite(x).all((0, 2))
        mean = jnp.where(counted[:, None], x, 0).sum(axis=1) / jnp.maximum(counted.sum(), 1)
        return means.at[layer].set(jnp.broadcast_to(mean, means.shape[1:]))

    return run_models(made, merge(made.arch, base), adapters, rows, lead, put, empty)


@partial(jax.jit, static_argnames=("made",), donate_argnames=("state",))
def stream_batch(made: Pass, base, adapters, rows, lead, state: Moments) -> Moments:
    """One batch into the moments [K, ...] of all layers."""
    models = state.shift.shape[1]

    def put(state, layer, x, whole):
        x, valid = rows_of(made, rows, lead, layer, x, whole)
        one = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), state)
        one = moments.update(one, jnp.broadcast_to(x, (models, *x.shape[1:])), valid)
        return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, layer, 0), state, one)

    return run_models(made, merge(made.arch, base), adapters, rows, lead, put, state)
