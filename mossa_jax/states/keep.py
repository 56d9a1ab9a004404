"""States of every prompt, layer and model, kept on the devices: what intervals and p-values need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import Adapters, HostAdapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.model import merge
from mossa_jax.states.forward import Layer, PassSpec, PrefixStates, RowBatch, run_models, similarity_rows
from mossa_jax.states.prompts import PassConfig, PromptPass
from mossa_jax.states.shapes import PassShape, row_slots

# Rows over `fsdp` alone would leave each device of a tensor group with all columns of its rows.
STATE_AXES = ("adapter", None, "rows", "kept")
"""Logical axes of kept states [M, L + 2, n, D]."""


@dataclass(frozen=True)
class KeptStates:
    """Pooled states of M models over the same prompts.

    Attributes:
      states: [M, L + 2, n, D] float32 on the mesh, rows spread over `fsdp` and columns over `tensor`; row i is
        prompt i.
      valid: [n] bool, False on rows that only pad the array.
      rows: all valid rows are among the first so many.
      names: the L + 2 layer names.
    """

    states: Float[Array, "M L+2 n D"]
    valid: Bool[np.ndarray, " n"]
    rows: int
    names: tuple[str, ...]

    def __repr__(self) -> str:
        models, layers, _, width = self.states.shape
        prompts = int(self.valid.sum())
        return f"KeptStates({models} models x {layers} layers x {prompts:,} prompts x width {width:,})"


def keep_states(
    model: Model,
    adapters: HostAdapters,
    prompts: Sequence[Sequence[int]],
    config: PassConfig,
    shapes: Sequence[PassShape] = (),
    after_batch: Callable[[jax.Array], None] | None = None,
) -> KeptStates:
    """Runs all models over all prompts and keeps the pooled states of every layer.

    Args:
      model: the base model, on a mesh whose adapter axis has size one: a comparison has few models and many rows.
      adapters: stacked [M, ...] on the host; a zero adapter is the base model itself.
      prompts: token ids, BOS included.
      config: pooling (`last` or `mean`), batch size and packing.
      shapes: from `PassConfig.shapes`, for all lists of prompts that are to share programs; by default those of this
        list alone.
      after_batch: called with the array that is being filled, which may be incomplete still, after each batch.

    Raises:
      ValueError: a prompt has no ids or fits no row.
    """
    arch, mesh = model.architecture, model.mesh
    run = PromptPass(model, adapters, prompts, config, shapes)
    # The largest n of all lists, so that one program writes the states of each of them.
    slots = run.shape.kept[-1]
    kept = _zeros(mesh, (run.models, arch.layers + 2, slots, arch.hidden))()
    for batch in run.batches():
        # The array is the largest of the comparison. It is donated to each call, which writes the
        # batch's rows in place.
        kept = keep_batch(run.spec, *run.arguments, batch, run.prefix, kept)
        if after_batch is not None:
            after_batch(kept)
    return KeptStates(kept, np.arange(slots) < run.prompts, run.shape.kept_for(run.prompts), arch.state_names())


@lru_cache(maxsize=16)
def _zeros(mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> Callable[[], Float[Array, "M L+2 n D"]]:
    """Makes the jitted function that returns zeros; kept, since every new function is compiled anew.

    Every device fills its own shard, and no host and no device ever holds the whole array.
    """
    return jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=_layout(mesh, shape))


@partial(jax.jit, static_argnames=("spec",), donate_argnames=("kept",))
def keep_batch(
    spec: PassSpec,
    base: nnx.State,
    adapters: Adapters,
    batch: RowBatch,
    prefix: PrefixStates | None,
    kept: Float[Array, "M L+2 n D"],
) -> Float[Array, "M L+2 n D"]:
    """Runs all models over one batch and writes the pooled states to the prompts' rows of `kept`, which is donated."""
    layout = _layout(spec.mesh, kept.shape)
    ids = batch.ids.reshape(-1)  # [R]
    # A slot without a prompt is sent beyond the end, where the scatter drops it.
    ids = jnp.where(ids < 0, kept.shape[2], ids)

    def write(kept: jax.Array, layer: Layer, x: jax.Array, every_position: bool) -> jax.Array:
        x, _ = similarity_rows(spec, batch, prefix, layer, x, every_position)
        # States that all models share, [1, R, D], are written to every model.
        x = jnp.broadcast_to(x, (len(kept), *x.shape[1:]))  # [M, R, D]
        # Packing puts prompts out of order; this scatter puts them back, prompt i in row i.
        # Layer by layer: one scatter over all layers takes the TPU compiler many minutes.
        return jax.lax.with_sharding_constraint(kept.at[:, layer, ids].set(x, mode="drop"), layout)

    return run_models(spec, merge(spec.arch, base), adapters, batch, prefix, write, kept)


def abstract_kept(arch: Architecture, mesh: jax.sharding.Mesh, models: int, prompts: int) -> jax.ShapeDtypeStruct:
    """Describes the array that `keep_states` keeps by shape, dtype and sharding."""
    shape = (models, arch.layers + 2, row_slots(prompts, mesh.shape["fsdp"]), arch.hidden)
    return mesh_lib.abstract(mesh, shape, STATE_AXES, jnp.float32)


def _layout(mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
    return mesh_lib.sharding(mesh, shape, STATE_AXES)
