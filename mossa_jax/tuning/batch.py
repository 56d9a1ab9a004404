"""A batch of packed rows on the devices, and the micro-batches that it is worked through in.

Shape letters: A slots, B rows, S positions, M answer tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import jax
import jax.numpy as jnp

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.tokens.rows import TrainingRows

Batch = dict[str, jax.Array]
"""The fields of `tokens.rows.TrainingRows`: tokens, segments and positions [B, S], predict and labels [B, M], all
int32; for a population with a leading axis [A, B, ...]."""

Sums = TypeVar("Sums")

# Positions stay whole: attention is over the row. Without an adapter axis the first name is left out.
_AXES = ("adapter", "rows", None)


def place_batch(mesh: jax.sharding.Mesh, rows: TrainingRows) -> Batch:
    """Places a batch of the host, the same on every process: slots over the `adapter` axis, rows over `fsdp`.

    Args:
      mesh: with axes ('adapter', 'fsdp', 'tensor').
      rows: fields [A, B, ...] for a population, [B, ...] for one model.
    """
    # Tokens are [A, B, S] or [B, S], and the other fields have as many axes.
    names = _AXES[-rows.tokens.ndim :]
    return {field.name: mesh_lib.place(mesh, getattr(rows, field.name), names) for field in fields(rows)}


def abstract_batch(
    mesh: jax.sharding.Mesh, leading: tuple[int, ...], row_length: int, answers: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what `place_batch` returns as shapes, dtypes and shardings.

    Args:
      mesh: as in `place_batch`.
      leading: (A, B) for a population, (B,) for one model.
      row_length: S.
      answers: M.
    """
    widths = dict.fromkeys(("tokens", "segments", "positions"), row_length)
    widths |= dict.fromkeys(("predict", "labels"), answers)
    names = _AXES[-len(leading) - 1 :]
    return {name: mesh_lib.abstract(mesh, (*leading, width), names, jnp.int32) for name, width in widths.items()}


def sum_over_micro_batches(sums_over: Callable[[Batch], Sums], batch: Batch, micro_batches: int) -> Sums:
    """Sums over the rows of a batch, one micro-batch after another (gradient accumulation).

    Args:
      sums_over: returns a tree of arrays that are sums over the rows it is called with.
      batch: rows [B, ...].
      micro_batches: how many; must divide B. With 1 the function is called on the batch itself.
    """
    if micro_batches == 1:
        return sums_over(batch)

    def micro_batch(index: jax.Array | int) -> Batch:
        # Every micro_batches-th row, so that each device finds some of its own rows in every micro-batch.
        # [B, ...] -> [B / micro_batches, micro_batches, ...] -> [B / micro_batches, ...]
        return jax.tree.map(lambda leaf: leaf.reshape(-1, micro_batches, *leaf.shape[1:])[:, index], batch)

    # A scan over all of them, so that only one micro-batch's states exist at a time. If the first one stood before the
    # scan, a scan of one more would be unrolled, and a compiler could work through both at once.
    def add(sums: Sums, index: jax.Array) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, sums, sums_over(micro_batch(index))), None

    shapes = jax.eval_shape(lambda: sums_over(micro_batch(0)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, jnp.arange(micro_batches))[0]
