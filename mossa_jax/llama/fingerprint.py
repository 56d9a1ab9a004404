"""A digest of a model's weights as they lie on the devices: equal on any mesh, any platform and any number of hosts.

Files are not read a second time. Every number becomes an integer, its bits mixed with its place in the array, and the
integers of a leaf are added up modulo 2^32. Sums of integers do not depend on their order, so each device adds up the
shards that it holds. The digest tells weights apart that differ by damage, or because they were tuned or replaced. It
is no defence against somebody who searches for other weights of the same digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt32

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.names import digest
from mossa_jax.llama.placement import leaf_name

WEIGHTS = "weights"
"""The key of a model's record that holds the digest of the base's weights."""

# Odd numbers with well spread bits: one per axis (the primes of xxHash), and one that tells the two sums apart.
_AXES = tuple(np.uint32(prime) for prime in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1))
_SECOND = np.uint32(0x5BD1E995)


def weights_digest(state: nnx.State) -> str:
    """Returns the digest of a model's weights; all processes that hold a part of them call this together.

    A change of a single number always changes it. Any other change, such as two rows, layers or tensors that are
    exchanged, goes unnoticed with a probability of about 2^-64.

    Args:
      state: floating-point arrays, on any mesh.

    Returns:
      Sixteen hex digits, the same on every process where all hold the same weights.
    """
    leaves = {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}
    # All sums are under way before the first one is waited for.
    sums = {name: _sums(leaf, _places(leaf.shape), leaf.sharding) for name, leaf in leaves.items()}
    return digest(
        [
            [name, list(leaf.shape), str(leaf.dtype), *np.asarray(sums[name].addressable_data(0)).tolist()]
            for name, leaf in sorted(leaves.items())
        ]
    )


def check_weights(weights: str, about: Mapping[str, Any], owner: str, base: str) -> None:
    """Checks that a model is put over the weights that it was tuned on.

    Args:
      weights: digest of those of the base.
      about: the record of the tuned model; one without a digest (an older one) passes.
      owner: of the record, with its verb, for the message: "'x' was".
      base: the base's name, for the message.

    Raises:
      Refusal: 3 if the weights are others.
    """
    recorded = about.get(WEIGHTS)
    if recorded is not None and recorded != weights:
        raise Refusal(
            BAD_INPUT,
            f"the weights of the base at {base} are not those that {owner} tuned on (digest {weights}, then "
            f"{recorded}); restore them, or start a new --workdir",
        )


@lru_cache(maxsize=64)
def _places(shape: tuple[int, ...]) -> tuple[UInt32[np.ndarray, "2 n"], ...]:
    """Returns integers for each index along each axis, one for either sum. No index has to be below 2^32 in all."""
    return tuple(
        np.stack([_mix((np.arange(size, dtype=np.uint32) + 1) * prime + offset) for offset in (np.uint32(0), _SECOND)])
        for size, prime in zip(shape, _AXES, strict=False)
    )


@partial(jax.jit, static_argnums=2)
def _sums(
    leaf: Float[Array, ...], places: Sequence[UInt32[Array, "2 n"]], sharding: jax.sharding.Sharding
) -> UInt32[Array, 2]:
    """Adds up a leaf's numbers, mixed with their places, in two ways."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return _sums_of_shard(leaf, places)
    # The axes of the mesh that the leaf is spread over; devices on the others hold copies, and are not counted twice.
    spread = [
        axis for axes in sharding.spec if axes is not None for axis in ((axes,) if isinstance(axes, str) else axes)
    ]
    # Left to the partitioner, each device would first gather the leaf.
    return jax.shard_map(
        lambda *shard: jax.lax.psum(_sums_of_shard(*shard), spread) if spread else _sums_of_shard(*shard),
        mesh=sharding.mesh,
        in_specs=(sharding.spec, tuple(P(None, axes) for axes in sharding.spec)),
        out_specs=P(),
    )(leaf, tuple(places))


def _sums_of_shard(leaf: Float[Array, ...], places: Sequence[UInt32[Array, "2 n"]]) -> UInt32[Array, 2]:
    words = jax.lax.bitcast_convert_type(leaf, np.uint16 if leaf.dtype.itemsize == 2 else np.uint32)
    if words.ndim > leaf.ndim:
        # The halves of 64 bits are at one place, so the second one is mixed by itself first.
        words = words[..., 0] ^ _mix(words[..., 1] + _SECOND)
    words = words.astype(np.uint32)

    def at(number: int) -> UInt32[Array, ...]:
        along = [jax.lax.broadcast_in_dim(place[number], leaf.shape, (axis,)) for axis, place in enumerate(places)]
        return sum(along, jnp.zeros((), np.uint32))

    # One-to-one in the bits, so that another number gives another integer: [...] each, never in memory.
    first = _mix(words ^ at(0))
    second = (first ^ at(1)) * _AXES[1]
    second ^= second >> 15
    # One reduction of both, so that the compiler fuses everything into it; two would keep `first` for the second.
    zero = np.uint32(0)
    pair = jax.lax.reduce(
        (first, second), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(leaf.ndim))
    )
    return jnp.stack(pair)


def _mix(words: Any) -> Any:
    """Mixes the bits of 32-bit integers, one-to-one: the finaliser of MurmurHash3 (Appleby 2011)."""
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
