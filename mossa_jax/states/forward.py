"""The forward pass that keeps one pooled vector per prompt, layer and model, and nothing else.

Pooling happens inside the scan over layers, so no [B, S, D] state outlives its layer and nothing touches the disk.
There is no head and no logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax import mesh as mesh_lib
from mossa_jax.llama.adapters import place_adapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.model import merge, run_blocks
from mossa_jax.tokens.packing import PromptRows, pack_prompts

POOLS = ("last", "mean")


@dataclass(frozen=True)
class KeptStates:
    """Pooled states of M models over the same prompts.

    Attributes:
      states: [M, L + 2, n, D] float32 on the mesh, rows spread over `fsdp`; row i is prompt i.
      valid: [n] bool, False on the rows that only fill the array up.
      names: the L + 2 layer names.
    """

    states: jax.Array
    valid: np.ndarray
    names: tuple[str, ...]


def pooled(x: jax.Array, rows: dict[str, jax.Array], pool: str) -> jax.Array:
    """Pools states per prompt: [B, S, D] -> [B, P, D] float32."""
    if pool == "last":
        return jnp.take_along_axis(x, rows["ends"][..., None], axis=1).astype(jnp.float32)
    prompts = jnp.arange(1, rows["ends"].shape[1] + 1)
    inside = (rows["segments"][:, None, :] == prompts[:, None]).astype(jnp.float32)
    sums = jnp.einsum("bps,bsd->bpd", inside, x.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return sums / jnp.maximum(inside.sum(-1, keepdims=True), 1)


@partial(jax.jit, static_argnames=("arch", "pool", "layout"), donate_argnames=("kept",))
def forward(arch: Architecture, pool: str, layout: Any, base, adapters, rows, kept):
    """Runs all models over one batch of rows and puts their pooled states at the prompts' own rows of `kept`."""
    model = merge(arch, base)

    def one(adapter):
        tap = lambda x, _: pooled(x, rows, pool)  # noqa: E731
        embedded, last, layers = run_blocks(
            model, arch, adapter, rows["tokens"], rows["positions"], Segments(rows["segments"], layout.mesh), tap
        )
        ends = [pooled(x, rows, pool)[None] for x in (embedded, model.final_norm(last))]
        return jnp.concatenate([ends[0], layers, ends[1]])

    states = jax.vmap(one, spmd_axis_name="adapter")(adapters)
    states = states.reshape(*states.shape[:2], -1, states.shape[-1])
    ids = rows["ids"].reshape(-1)
    ids = jnp.where(ids < 0, kept.shape[2], ids)  # beyond the end: dropped

    def put(layer, kept):
        return kept.at[:, layer, ids].set(states[:, layer], mode="drop")

    # Layer by layer: one scatter over all of them takes the TPU compiler many minutes.
    return jax.lax.with_sharding_constraint(jax.lax.fori_loop(0, kept.shape[1], put, kept), layout)


def keep_states(
    arch: Architecture,
    base: Any,
    adapters: dict[str, dict[str, np.ndarray]],
    prompts: Sequence[Sequence[int]],
    mesh: jax.sharding.Mesh,
    *,
    pool: str,
    row_length: int,
    batch_rows: int,
    long_row_length: int = 0,
) -> KeptStates:
    """States of all models over all prompts.

    Args:
      arch: the base model's.
      base: its state on `mesh`.
      adapters: stacked [M, ...] on the host; a zero adapter is the base model itself.
      prompts: token ids, BOS included.
      mesh: with an adapter axis of one: the models of a task are few, rows are many.
      pool: one of `POOLS`.
      row_length: positions of a packed row.
      batch_rows: packed rows a forward pass.
      long_row_length: positions of the rows for prompts that are longer; 0: there are none.
    """
    placed = place_adapters(mesh, adapters)
    models = len(next(iter(jax.tree.leaves(adapters))))
    slots = _slots(len(prompts), mesh.shape["fsdp"])
    shape = (models, arch.layers + 2, slots, arch.hidden)
    layout = mesh_lib.sharding(mesh, shape, ("adapter", None, "rows", None))
    kept = jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=layout)()
    for rows in pack_prompts(prompts, row_length, long_row_length):
        width = _power_of_two(rows.ids.shape[1])
        share = max(batch_rows * row_length // rows.tokens.shape[1], 1)  # about as many positions, whatever the length
        size = mesh_lib.round_up(min(share, _power_of_two(len(rows))), mesh.shape["fsdp"])
        for batch in rows.batches(size):
            batch = _with_prompts(batch, width)
            names = ("rows", None)
            arrays = {field.name: mesh_lib.place(mesh, getattr(batch, field.name), names) for field in fields(batch)}
            kept = forward(arch, pool, layout, base, placed, arrays, kept)
    return KeptStates(kept, np.arange(slots) < len(prompts), arch.state_names())


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _slots(prompts: int, devices: int) -> int:
    """Rows kept for so many prompts: rounded up, so that tasks of similar size share their compiled programs."""
    step = 128 if prompts <= 1024 else 1024
    return mesh_lib.round_up(mesh_lib.round_up(prompts, step), devices)


def _with_prompts(batch: PromptRows, width: int) -> PromptRows:
    pad = ((0, 0), (0, width - batch.ids.shape[1]))
    return replace(batch, ends=np.pad(batch.ends, pad), ids=np.pad(batch.ids, pad, constant_values=-1))
