"""The three ways to a similarity behind one signature: (states [M, n, D], valid) -> a single layer's `Found`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from mossa_jax.similarity import compare_states, matrix
from mossa_jax.similarity.streamed import moments
from mossa_jax.similarity.streamed.values import similarities_of
from tests.support.traps import PAIRS

BATCH = 16


class Found(NamedTuple):
    """`value`, `undefined` [P, 2]; `participation_ratio`, `offset` [M]; rows that counted and that were dropped."""

    value: np.ndarray
    undefined: np.ndarray
    participation_ratio: np.ndarray
    offset: np.ndarray
    n: int
    dropped: int


def _first_layer(found):
    return Found(
        found.value[:, 0],
        found.undefined[:, 0],
        found.participation_ratio[:, 0],
        found.offset[:, 0],
        found.n,
        found.dropped,
    )


def kept(states, valid):
    return _first_layer(compare_states(jnp.asarray(states)[:, None], valid, PAIRS))


def whole(states, valid):
    found = matrix.cka_matrix(jnp.asarray(states), valid)
    at = tuple(zip(*PAIRS, strict=True))
    return Found(
        np.stack([found.biased[at], found.debiased[at]], 1),
        found.undefined[at],
        found.participation_ratio,
        found.offset,
        found.n,
        found.dropped,
    )


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def add(state, x, valid):
    return moments.update(moments.with_shift(state, x, valid), x, valid)


def streamed(states, valid):
    """Batches of `BATCH` rows, shifted by the means of the first that holds finite ones."""
    placed = isinstance(states, jax.Array) and isinstance(states.sharding, NamedSharding)
    mesh = states.sharding.mesh if placed else None
    host = np.asarray(multihost_utils.process_allgather(states, tiled=True) if placed else states)
    empty = jnp.zeros((1, len(host), host.shape[2]))
    state = jax.vmap(functools.partial(moments.start_stream, pairs=PAIRS, mesh=mesh))(empty)
    for first in range(0, host.shape[1], BATCH):
        batch, counts = host[:, first : first + BATCH], valid[first : first + BATCH]
        missing = BATCH - len(counts)
        batch = np.pad(batch, ((0, 0), (0, missing), (0, 0)))[None]
        if mesh:
            batch = _place(batch, mesh, PartitionSpec(None, None, "fsdp"))
        state = add(state, batch, np.pad(counts, (0, missing)))
    return _first_layer(similarities_of(state))


ENGINES = {"kept rows": kept, "whole matrix": whole, "moments": streamed}


def _place(array, mesh, spec):
    """The same array on every process, each of which copies its own part."""
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


def spread(states):
    """The states with rows over a mesh of eight devices, of however many processes, filled up with rows that are not
    valid."""
    mesh = jax.make_mesh((1, 4, 2), ("adapter", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    n = states.shape[1]
    filled = np.pad(states, ((0, 0), (0, -n % 16), (0, 0)), constant_values=np.nan)
    return _place(filled, mesh, PartitionSpec(None, "fsdp")), np.arange(filled.shape[1]) < n
