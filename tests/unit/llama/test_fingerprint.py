"""The digest of weights on the devices: any bit and any place counts, the mesh does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.llama.fingerprint import check_weights, weights_digest

MASK = 2**32 - 1
PRIMES = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D


def drawn(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def digest_of(**leaves):
    return weights_digest({name: jnp.asarray(leaf) for name, leaf in leaves.items()})


def mix(word):
    word = (word ^ (word >> 16)) * 0x85EBCA6B & MASK
    word = (word ^ (word >> 13)) * 0xC2B2AE35 & MASK
    return word ^ (word >> 16)


def sums_by_hand(words):
    """The two sums of an array of integers, with Python's own integers."""
    first = second = 0
    for index in np.ndindex(words.shape):
        at = [
            sum(mix(((i + 1) * prime + offset) & MASK) for i, prime in zip(index, PRIMES, strict=False)) & MASK
            for offset in (0, 0x5BD1E995)
        ]
        one = mix(int(words[index]) ^ at[0])
        two = (one ^ at[1]) * 0x85EBCA77 & MASK
        first, second = (first + one) & MASK, (second + (two ^ (two >> 15))) & MASK
    return [first, second]


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_the_sums_are_those_that_whole_numbers_give(shape):
    from mossa_jax.llama.fingerprint import _places, _sums

    leaf = jnp.asarray(drawn(shape, np.float32))
    assert _sums(leaf, _places(shape), leaf.sharding).tolist() == sums_by_hand(np.asarray(leaf).view(np.uint32))
    narrow = leaf.astype(jnp.bfloat16)
    assert _sums(narrow, _places(shape), leaf.sharding).tolist() == sums_by_hand(np.asarray(narrow).view(np.uint16))


@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, np.uint32), (jnp.bfloat16, np.uint16)])
def test_every_single_bit_counts(dtype, bits):
    leaf = drawn((4, 6), dtype)
    seen = {digest_of(a=leaf)}
    for place in range(leaf.size):
        for bit in range(8 * leaf.itemsize):
            flipped = leaf.copy()
            flipped.reshape(-1).view(bits)[place] ^= bits(1 << bit)
            seen.add(digest_of(a=flipped))
    assert len(seen) == 1 + 8 * leaf.nbytes


def test_rows_layers_tensors_and_signs_of_zero_that_are_exchanged_count():
    leaf, other = drawn((3, 4, 5), np.float32), drawn((3, 4, 5), np.float32, seed=1)
    zeros = np.zeros((3, 4, 5), np.float32)
    changed = [
        {"a": leaf[[1, 0, 2]], "b": other},
        {"a": leaf[:, [0, 2, 1, 3]], "b": other},
        {"a": leaf[:, :, ::-1], "b": other},
        {"a": other, "b": leaf},
        {"a": leaf, "c": other},
        {"a": leaf.reshape(4, 3, 5), "b": other},
        {"a": leaf},
        {"a": zeros, "b": other},
        {"a": -zeros, "b": other},
    ]
    digests = {digest_of(a=leaf, b=other), *(digest_of(**each) for each in changed)}
    assert len(digests) == 1 + len(changed)
    # Equal values of another number type are other weights.
    assert digest_of(a=zeros) != digest_of(a=zeros.astype(jnp.bfloat16))


def test_numbers_of_64_bits_count_in_both_halves():
    with jax.enable_x64(True):
        leaf = drawn((2, 3), np.float64)
        seen = {digest_of(a=leaf)}
        for bit in range(64):
            flipped = leaf.copy()
            flipped.view(np.uint64)[1, 2] ^= np.uint64(1 << bit)
            seen.add(digest_of(a=flipped))
    assert len(seen) == 65


def test_other_weights_are_refused_with_both_places_and_the_way_out():
    check_weights("aa", {"weights": "aa"}, "'x' was", "base")
    check_weights("aa", {}, "'x' was", "base")  # an earlier version recorded none
    with pytest.raises(Refusal, match=r"base at /b are not those that 'x' was tuned on .*new --workdir") as caught:
        check_weights("aa", {"weights": "bb"}, "'x' was", "/b")
    assert caught.value.code == 3
