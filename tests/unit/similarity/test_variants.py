"""Transformed states give the CKA of the same transformation in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.similarity import compare_states, reference
from mossa_jax.similarity.measures.variants import standardised, unit_rows, without_top_components

PAIRS = [(0, 1), (2, 1)]


def massive(n, d, seed=0):
    """[3, 2, n, d] float32: shared factors, offsets, and one dimension of models 0 and 1 that drowns the rest."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(2, n, 6))
    states = np.stack([factors @ rng.normal(size=(6, d)) + (1 + m) * rng.normal(size=(2, n, d)) + 10 for m in range(3)])
    states[:2, :, :, 2] += 300 * rng.normal(size=(2, n))
    return states.astype(np.float32)


def agree(transformed, valid, rows, pairs, transform):
    """`compare_states` of transformed states equals the float64 reference of transformed rows."""
    found = compare_states(transformed, valid, pairs, permutations=20)
    assert np.isfinite(found.low).all() and np.isfinite(found.p).all()
    for i, pair in enumerate(pairs):
        for k in range(2):
            x, y = (transform(rows[m, k].astype(np.float64)) for m in pair)
            expected = reference.biased(x, y), reference.debiased(x, y)
            np.testing.assert_allclose(found.value[i, k], expected, atol=1e-5)
    return found


@pytest.mark.parametrize("n, d", [(120, 30), (50, 90)])
def test_standardised_dimensions_weigh_the_same(n, d):
    states = massive(n, d)
    states[0, :, :, 5] = 1e4
    states[1, 1, 6, 0] = np.nan
    valid = np.arange(n) != 3
    kept = valid & (np.arange(n) != 6)
    transformed = standardised(states, valid)
    assert transformed.shape == states.shape and transformed.dtype == jnp.float32

    def transform(x):
        x = x[:, x.std(0) > 0]
        return (x - x.mean(0)) / x.std(0)

    found = agree(transformed, valid, states[:, :, kept], PAIRS, transform)
    assert (found.n, found.dropped) == (n - 2, 1)
    np.testing.assert_allclose(np.asarray(transformed)[1, 0, kept].std(0), 1, rtol=1e-5)
    assert (np.asarray(transformed)[0][:, kept, 5] == 0).all()


@pytest.mark.parametrize("n, d", [(120, 30), (50, 90)])
@pytest.mark.parametrize("count", [1, 3])
def test_top_components_are_removed(n, d, count):
    states = massive(n, d)
    states[2, 0, 6, 0] = np.inf
    valid = np.arange(n) != 3
    kept = valid & (np.arange(n) != 6)

    def transform(x):
        u, s, v = np.linalg.svd(x - x.mean(0), full_matrices=False)
        return (u * s)[:, count:] @ v[count:]

    transformed = without_top_components(states, valid, count)
    agree(transformed, valid, states[:, :, kept], PAIRS, transform)
    whole = compare_states(states, valid, [(0, 1)]).value
    assert (whole > 0.95).all() and (compare_states(transformed, valid, [(0, 1)]).value[..., 1] < 0.9).all()


def test_a_state_without_its_only_components_is_undefined():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(2, 2, 50, 90)).astype(np.float32) + 5
    states[0, 0] = np.outer(rng.normal(size=50), rng.normal(size=90)) + 5
    states[0, 1] = 7.0
    for transformed in (without_top_components(states, np.ones(50, bool)), standardised(states, np.ones(50, bool))):
        found = compare_states(transformed, np.ones(50, bool), [(0, 1)])
        assert (found.undefined[0, 1] == "no variance in a").all()
    found = compare_states(without_top_components(states, np.ones(50, bool)), np.ones(50, bool), [(0, 1)])
    assert (found.undefined[0, 0] == "no variance in a").all()


def test_extreme_scales_and_bfloat16():
    states = massive(50, 90)
    valid = np.ones(50, bool)
    for scale in (1e-30, 1e30):
        for variant in (standardised, without_top_components, unit_rows):
            np.testing.assert_allclose(
                compare_states(variant(states * np.float32(scale), valid), valid, PAIRS).value,
                compare_states(variant(states, valid), valid, PAIRS).value,
                atol=1e-5,
            )
    stored = jnp.asarray(states, jnp.bfloat16).at[0, :, :, 5].set(3.0).at[0, :, 0, 5].set(3.02)
    assert (standardised(stored, valid)[0, :, :, 5] == 0).all()


def test_unit_rows_have_norm_one_and_a_zero_row_stays():
    states = massive(50, 90)
    states[0, 0, 4] = 0
    found = np.asarray(unit_rows(states, np.ones(50, bool)), np.float64)
    expected = np.ones((3, 2, 50))
    expected[0, 0, 4] = 0
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), expected, rtol=1e-6)
    cosine = (found[1, 0] * states[1, 0]).sum(-1) / np.linalg.norm(states[1, 0].astype(np.float64), axis=-1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-6)


def test_bad_arguments_are_refused():
    states, valid = massive(10, 6), np.ones(10, bool)
    for code, call in (
        (2, lambda: without_top_components(states, valid, 0)),
        (2, lambda: without_top_components(states, valid, 6)),
        (3, lambda: without_top_components(states[0], valid)),
        (3, lambda: standardised(states, valid[1:])),
    ):
        with pytest.raises(Refusal) as refused:
            call()
        assert refused.value.code == code
