"""CKA during the forward pass: one program runs all models over a batch and adds every layer to its moments.

No state is kept, so there may be any number of rows. With pool `all`, where every token is a row, this is the only
engine.

Shape letters: M models, K layers with the embedding and the final norm, R rows of a batch, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import Adapters, HostAdapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.model import merge
from mossa_jax.similarity.combine import Similarities
from mossa_jax.similarity.streamed import moments
from mossa_jax.similarity.streamed.moments import Moments
from mossa_jax.similarity.streamed.values import similarities_of
from mossa_jax.states.forward import Layer, PassSpec, PrefixStates, RowBatch, run_models, similarity_rows
from mossa_jax.states.prompts import PassConfig, PromptPass
from mossa_jax.states.shapes import PassShape


def stream_similarities(
    model: Model,
    adapters: HostAdapters,
    prompts: Sequence[Sequence[int]],
    config: PassConfig,
    pairs: Sequence[tuple[int, int]],
    *,
    fast: bool = False,
    shapes: Sequence[PassShape] = (),
    after_batch: Callable[[Moments], None] | None = None,
) -> Similarities:
    """Computes same-layer CKA of pairs of models over prompts, in one pass.

    Args:
      model: the base model, on a mesh whose adapter axis has size one.
      adapters: stacked [M, ...] on the host; a zero adapter is the base model itself.
      prompts: token ids, BOS included.
      config: pooling (`last`, `mean` or `all`), batch size and packing.
      pairs: (a, b) indices of models.
      fast: as in `moments.start_stream`.
      shapes: as in `keep_states`.
      after_batch: called with the sums so far after each batch.

    Returns:
      The similarities, without intervals and p-values: these need the rows.
    """
    run = PromptPass(model, adapters, prompts, config, shapes)
    state = start_layers(model.architecture, run.models, tuple(pairs), model.mesh, fast)
    for batch in run.batches():
        state = stream_batch(run.spec, *run.arguments, batch, run.prefix, state)
        if after_batch is not None:
            after_batch(state)
    return similarities_of(state)


@partial(jax.jit, static_argnames=("arch", "models", "pairs", "mesh", "fast"))
def start_layers(
    arch: Architecture, models: int, pairs: tuple[tuple[int, int], ...], mesh: jax.sharding.Mesh, fast: bool = False
) -> Moments:
    """Returns empty moments [K, ...] of every layer of M models; the first batch will set their shifts."""
    # Layers are stacked on the first axis of every leaf. The zeros [K, M, D] hold the place of the shifts.
    empty = jax.vmap(partial(moments.start_stream, pairs=pairs, fast=fast, mesh=mesh))
    return empty(jnp.zeros((arch.layers + 2, models, arch.hidden), jnp.float32))


@partial(jax.jit, static_argnames=("spec",), donate_argnames=("state",))
def stream_batch(
    spec: PassSpec, base: nnx.State, adapters: Adapters, batch: RowBatch, prefix: PrefixStates | None, state: Moments
) -> Moments:
    """Runs all models over one batch and adds every layer to its moments.

    Args:
      spec: the static part of the pass.
      base: the base's state.
      adapters: stacked [M, L, ...] on the devices.
      batch: packed prompts.
      prefix: of the ids that all prompts share, or None.
      state: moments [K, ...], donated: the sums are updated in place.
    """
    models = state.shift.shape[1]

    # Called once per layer as soon as its states exist, for most layers inside a scan.
    def add(state: Moments, layer: Layer, x: jax.Array, every_position: bool) -> Moments:
        x, valid = similarity_rows(spec, batch, prefix, layer, x, every_position)
        # One layer's moments are sliced from the stack and written back. The stack is the carry of the scan, so XLA can
        # update it in place.
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), state)
        # [M, R, D]. Below the first adapter all models share one state [1, R, D].
        x = jnp.broadcast_to(x, (models, *x.shape[1:]))
        own = moments.update(moments.with_shift(own, x, valid), x, valid)
        return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, layer, 0), state, own)

    # In the layout in which the state came, so that the next batch runs the same program.
    return moments.placed(run_models(spec, merge(spec.arch, base), adapters, batch, prefix, add, state))


def abstract_moments(
    arch: Architecture, mesh: jax.sharding.Mesh, models: int, pairs: Sequence[tuple[int, int]]
) -> Moments:
    """Describes the result of `start_layers` by shapes, dtypes and shardings."""
    compiled = start_layers.lower(arch, models, tuple(pairs), mesh).compile()
    # The compiler chooses the layouts that `start_layers` leaves open, so they are read from the compiled program.
    return mesh_lib.abstract_tree(
        jax.eval_shape(lambda: start_layers(arch, models, tuple(pairs), mesh)), compiled.output_shardings
    )
