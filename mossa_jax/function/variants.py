"""Log probabilities of given answers under many variants of a model, as one stacked population over one base.

A variant takes the adapter of each block from one of a few sources. The sources are on the devices once; a lane gathers
what its block needs, and a state that several variants share is computed once (`variant_schedule`).

Shape letters: A sources, N variants, L layers, V slots, G lanes, T turns, n pairs, B packed rows of a batch, S
positions, M answer tokens of a row, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.function.packed_pairs import PackedSize, PairConfig, PairShape, sum_by_pair
from mossa_jax.function.variant_schedule import (
    Schedule,
    ScheduleSize,
    choose_lanes,
    distinct_sources,
    make_schedule,
    schedule_size,
)
from mossa_jax.llama.adapters import Adapters, BlockAdapter, HostAdapters, place_adapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.layers import Block
from mossa_jax.llama.model import embed, merge, parameter_count, pin_rows, windowed_blocks
from mossa_jax.tokens.encoded import Examples
from mossa_jax.tuning.batch import Batch
from mossa_jax.tuning.loss import HEAD_TOKENS, losses_of_states

# Tokens that a device works on in a turn, in all lanes together, and the most lanes.
_TURN_TOKENS, _MOST_LANES = 8_192, 16
# Of a device's memory without its part of the base, what the states of all variants may take.
_STATES_SHARE = 0.5


class Turns(NamedTuple):
    """A schedule on the devices; all int32, as in `Schedule`.

    Attributes:
      bounds: [L, 2], first turn of each block and the one behind its last.
      read, write, source: [T, G].
    """

    bounds: Int[Array, "L 2"]
    read: Int[Array, "T G"]
    write: Int[Array, "T G"]
    source: Int[Array, "T G"]

    @classmethod
    def place(cls, mesh: jax.sharding.Mesh, schedule: Schedule) -> Turns:
        """Places a schedule whole on every device."""
        bounds = np.stack([schedule.bounds[:-1], schedule.bounds[1:]], axis=1)
        leaves = (bounds, schedule.read, schedule.write, schedule.source)
        return cls(*(mesh_lib.place(mesh, leaf, (None, None)) for leaf in leaves))

    @classmethod
    def abstract(cls, mesh: jax.sharding.Mesh, layers: int, size: ScheduleSize) -> Turns:
        """Describes schedules of this size by shape, dtype and sharding; `layers` is L."""
        shapes = ((layers, 2), *[(size.turns, size.lanes)] * 3)
        leaves: Any = (mesh_lib.abstract(mesh, shape, (None, None), jnp.int32) for shape in shapes)
        return cls(*leaves)


@dataclass(frozen=True)
class VariantShape:
    """All sizes that the programs of `variant_likelihoods` depend on.

    Attributes:
      pairs: of the batches.
      size: of the schedule.
    """

    pairs: PairShape
    size: ScheduleSize


def variant_shape(
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    lists: Sequence[Sequence[PackedSize]],
    variants: Int[np.ndarray, "N L"],
    config: PairConfig,
    itemsize: int,
    memory: int,
) -> VariantShape:
    """Chooses the shape that serves several lists of packed pairs: one program for each length of rows.

    A batch has as many rows as the states of all variants leave room for, at least one for each device.

    Args:
      arch: the base model's.
      mesh: that rows are spread over.
      lists: the sizes of each list, at least one with pairs.
      variants: the source of each block.
      config: how pairs are packed and read; batches may be smaller than it says.
      itemsize: bytes of a number of the base.
      memory: of a device, in bytes.
    """
    fsdp = mesh.shape["fsdp"]
    room = _STATES_SHARE * (memory - parameter_count(arch) * itemsize / (fsdp * mesh.shape["tensor"]))
    rows = int(room // row_bytes(arch, variants, config.packing.row_length, itemsize))
    pairs = replace(config, batch_rows=max(min(rows * fsdp, config.batch_rows), fsdp)).shape(lists, mesh)
    tokens = max(each.rows * each.length for each in pairs.rows) // fsdp
    lanes = choose_lanes(variants, min(max(_TURN_TOKENS // tokens, 1), _MOST_LANES))
    return VariantShape(pairs, schedule_size(variants, lanes))


def row_bytes(arch: Architecture, variants: Int[np.ndarray, "N L"], length: int, itemsize: int) -> int:
    """Returns the memory that the states of all variants take for one row, in bytes.

    Args:
      arch: the base model's.
      variants: the source of each block.
      length: S.
      itemsize: bytes of a number of the base.
    """
    return schedule_size(variants, _MOST_LANES).slots * length * arch.hidden * itemsize


def variant_likelihoods(
    model: Model,
    adapters: HostAdapters,
    variants: Int[np.ndarray, "N L"],
    pairs: Examples,
    config: PairConfig,
    shape: VariantShape,
) -> Float[np.ndarray, "N n"]:
    """Returns the log probability of each pair's answer after its prompt, by each variant.

    Variants that are the same, because their sources have the same updates, are computed once and equal to the bit.

    Args:
      model: the base model.
      adapters: those of the sources, stacked [A, ...] on the host.
      variants: the source of each block.
      pairs: prompts and answers; the last id of a whole answer is EOS.
      config: how pairs are packed and read.
      shape: from `variant_shape`.

    Returns:
      [N, n] float64, the sum over the answer's ids, in nats.
    """
    mesh, size = model.mesh, shape.size
    effective = distinct_sources(adapters)[variants, np.arange(variants.shape[1])]  # [N, L]
    schedule = make_schedule(effective, size)
    turns, placed = Turns.place(mesh, schedule), place_adapters(mesh, adapters)
    common = {"slots": size.slots, "prefix": shape.pairs.prefix, "max_own": shape.pairs.max_own}

    def losses(batch: Batch) -> Float[Array, "V B M"]:
        return variant_losses(model.architecture, mesh, model.state, placed, turns, batch, **common)

    return sum_by_pair(losses, size.slots, model, pairs, config, shape.pairs)[schedule.slot_of]


@partial(jax.jit, static_argnames=("arch", "mesh", "slots", "prefix", "max_own"))
def variant_losses(
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    state: nnx.State,
    adapters: Adapters,
    turns: Turns,
    batch: Batch,
    *,
    slots: int,
    prefix: int,
    max_own: int,
) -> Float[Array, "V B M"]:
    """Runs the blocks of all variants over one batch and returns the loss of every answer token, in nats.

    Args:
      arch: the base model's.
      mesh: that rows and weights are spread over.
      state: the base model.
      adapters: those of the sources, stacked [A, ...] on the devices.
      turns: which block is run when.
      batch: rows [B, ...], the same for all variants.
      slots: V.
      prefix, max_own: as in `packed_pairs.PairShape`.
    """
    model, lanes = merge(arch, state), turns.read.shape[1]
    visible = Segments(batch["segments"], mesh, prefix, max_own)
    embedded, rotary = embed(model, arch, batch["tokens"], batch["positions"], visible)  # [B, S, D]
    # [V, B, S, D]. Slots stay whole, because a turn may read any of them; rows are spread as in every block.
    states = jnp.zeros((slots, *embedded.shape), embedded.dtype).at[0].set(embedded)
    states = jax.lax.with_sharding_constraint(states, mesh_lib.sharding(mesh, states.shape, (None, "rows", None, None)))

    def run_layer(states: jax.Array, layer: tuple[Block, Adapters, Any, jax.Array]) -> tuple[jax.Array, None]:
        block, sources, is_windowed, bounds = layer

        def run_block(x: jax.Array, lora: BlockAdapter) -> jax.Array:
            return pin_rows(block(x, lora, rotary, visible, is_windowed)[0], visible)

        def turn(number: jax.Array, states: jax.Array) -> jax.Array:
            x = states[turns.read[number]]  # [G, B, S, D]
            lora = jax.tree.map(lambda leaf: leaf[turns.source[number]], sources)  # [G, ...]
            # The base has no axis of lanes, so its products run over the rows of all lanes at once.
            x = jax.vmap(run_block, spmd_axis_name="adapter")(x, lora)
            # One slot after the other: a scatter would be a loop on CPU, and XLA updates a slice in place.
            for lane in range(lanes):
                states = jax.lax.dynamic_update_index_in_dim(states, x[lane], turns.write[number, lane], 0)
            return states

        # The number of turns is data. A layer's weights are taken out of the stack once for all of its turns.
        return jax.lax.fori_loop(bounds[0], bounds[1], turn, states), None

    by_layer = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), adapters)  # [L, A, ...]
    states, _ = jax.lax.scan(run_layer, states, (model.blocks, by_layer, windowed_blocks(arch), turns.bounds))

    def losses(x: jax.Array) -> jax.Array:
        return losses_of_states(model, arch, x, batch, mesh, max(HEAD_TOKENS // lanes, 1))  # [B, M]

    # [V / G, G, B, S, D], so that the logits of few variants exist at once.
    groups = states.reshape(-1, lanes, *states.shape[1:])
    per_group = jax.lax.map(jax.vmap(losses, spmd_axis_name="adapter"), groups)  # [V / G, G, B, M]
    return per_group.reshape(slots, *per_group.shape[2:])
