"""The order in which the blocks of many variants of a model are run, each state once.

A variant takes the adapter of each block from one of a few sources, such as the base, E and a specialist. Variants
whose first blocks are the same have the same states there, so that the states of all variants form a tree: it branches
where variants part. A schedule is data, and a program that follows it is the same for every set of variants of one
size.

Shape letters: N variants, A sources, L layers, V slots that each hold the state of one batch, G lanes that run side by
side, T turns of the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mossa_jax.llama.adapters import HostAdapters


class ScheduleSize(NamedTuple):
    """The sizes that a program depends on.

    Attributes:
      lanes: G.
      slots: V, a multiple of G. The last slot is for lanes without work.
      turns: T, room for the turns of all layers.
    """

    lanes: int
    slots: int
    turns: int


@dataclass(frozen=True)
class Schedule:
    """Which lane runs which block on which state.

    Attributes:
      size: its sizes.
      bounds: [L + 1] int32; the turns of block l (from 0) are bounds[l] to bounds[l + 1] - 1.
      read: [T, G] int32, the slot that a lane reads its state from.
      write: [T, G] int32, the slot that it writes the block's output to.
      source: [T, G] int32, whose adapter it uses.
      slot_of: [N] int64, the slot that holds each variant's last state in the end.
      steps: how many blocks are run in all.
    """

    size: ScheduleSize
    bounds: Int[np.ndarray, " L+1"]
    read: Int[np.ndarray, "T G"]
    write: Int[np.ndarray, "T G"]
    source: Int[np.ndarray, "T G"]
    slot_of: Int[np.ndarray, " N"]
    steps: int


def distinct_sources(adapters: HostAdapters) -> Int[np.ndarray, "A L"]:
    """Returns, for each source and block, the first source that has the same update there.

    Updates are the same if their numbers are equal, or if neither changes anything.

    Args:
      adapters: stacked [A, L, ...] on the host.
    """
    sources, layers = next(iter(adapters.values()))["scale"].shape

    def update(source: int, layer: int) -> tuple[bytes, ...]:
        parts = []
        for target in adapters.values():
            leaves = [np.asarray(target[name][source, layer]) for name in ("a", "b", "scale")]
            is_zero = not all(leaf.any() for leaf in leaves)
            parts.append(b"" if is_zero else b"".join(leaf.tobytes() for leaf in leaves))
        return tuple(parts)

    first = np.zeros((sources, layers), np.int64)
    for layer in range(layers):
        seen: dict[tuple[bytes, ...], int] = {}
        for source in range(sources):
            first[source, layer] = seen.setdefault(update(source, layer), source)
    return first


def schedule_size(variants: Int[np.ndarray, "N L"], lanes: int) -> ScheduleSize:
    """Returns the sizes that serve these variants, also where some of their sources turn out to be the same.

    Args:
      variants: the source of each block.
      lanes: G.
    """
    counts = np.asarray([len(np.unique(variants[:, : layer + 1], axis=0)) for layer in range(variants.shape[1])])
    slots = -(-(int(counts[-1]) + 1) // lanes) * lanes
    return ScheduleSize(lanes, slots, int((-(-counts // lanes)).sum()))


def choose_lanes(variants: Int[np.ndarray, "N L"], most: int) -> int:
    """Returns the number of lanes, between half of `most` and `most`, that are idle least often.

    Args:
      variants: the source of each block.
      most: the largest number of lanes, at least 1.
    """
    return min(range(most, most // 2, -1), key=lambda lanes: lanes * schedule_size(variants, lanes).turns)


def make_schedule(variants: Int[np.ndarray, "N L"], size: ScheduleSize) -> Schedule:
    """Lays the blocks of all variants out in turns.

    A state is read before it is overwritten: the first variant that continues a state keeps its slot, and the others
    take new slots, in the same turn or before.

    Args:
      variants: the source of each block, numbers from 0.
      size: from `schedule_size`, for these variants or for ones with more differences.
    """
    (count, layers), lanes = variants.shape, size.lanes
    shape = (size.turns, lanes)
    idle = size.slots - 1
    read, write, source = np.zeros(shape, np.int32), np.full(shape, idle, np.int32), np.zeros(shape, np.int32)
    # The embedding is the same for all variants and stands in slot 0.
    slot_of, used, turn, steps, bounds = np.zeros(count, np.int64), 1, 0, 0, [0]
    for layer in range(layers):
        # [branches, 2]: slot and source of the branches of this layer, ordered by slot.
        branches, branch_of = np.unique(np.stack([slot_of, variants[:, layer]], 1), axis=0, return_inverse=True)
        slots, is_new = branches[:, 0].copy(), np.append(False, branches[1:, 0] == branches[:-1, 0])
        slots[is_new] = np.arange(used, used + is_new.sum())
        used += int(is_new.sum())
        # New slots are filled first: until then, the state that they branch from is still there.
        order = np.argsort(~is_new, kind="stable")
        places = turn * lanes + np.arange(len(order))
        for table, column in ((read, branches[:, 0]), (write, slots), (source, branches[:, 1])):
            table.reshape(-1)[places] = column[order]
        turn, steps = turn - (-len(order) // lanes), steps + len(order)
        bounds.append(turn)
        slot_of = slots[branch_of.reshape(-1)]
    return Schedule(size, np.asarray(bounds, np.int32), read, write, source, slot_of, steps)
