"""The whole matrix: values, symmetry, tiles of any size, undefined entries, and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.similarity import compare_states, matrix, reference
from tests.support.traps import benign, expected


def layered(n=50, d=12):
    return np.stack([benign(n, d, seed=k) for k in range(2)], 1)  # [3 models, 2 layers, n, d]


def both(found):
    return np.stack([found.biased, found.debiased], -1)


def test_every_state_against_every_other():
    states = layered()
    valid = np.ones(50, bool)
    valid[9] = False
    states[0, 0, 9] = 1e30
    states[2, 1, 4, 0] = np.nan
    found = matrix.cka_matrix(states, valid)
    flat = np.delete(states, [4, 9], 2).reshape(6, 48, 12)
    assert both(found) == pytest.approx(expected(flat), abs=1e-6)
    assert (found.n, found.dropped) == (48, 1) and (found.undefined == "").all()
    assert (np.diag(found.biased) == 1).all() and (found.biased == found.biased.T).all()
    assert both(matrix.cka_matrix(states.reshape(6, 50, 12), valid)) == pytest.approx(both(found), abs=1e-12)


def test_the_diagonals_are_those_of_compare_states():
    states = layered(n=300, d=20)
    found = matrix.cka_matrix(states, np.ones(300, bool))
    pairs = [(a, b) for a in range(3) for b in range(3)]
    kept = compare_states(states, np.ones(300, bool), pairs)
    for i, (a, b) in enumerate(pairs):
        for k in range(2):
            assert both(found)[2 * a + k, 2 * b + k] == pytest.approx(kept.value[i, k], abs=1e-6)
    assert found.participation_ratio.reshape(3, 2) == pytest.approx(kept.participation_ratio, rel=1e-6)
    assert found.offset.reshape(3, 2) == pytest.approx(kept.offset, rel=1e-6)


@pytest.mark.parametrize("n, tile", [(201, 8), (201, 56), (201, 200), (201, 201), (900, 512)])
def test_tiles_of_any_size_give_the_same_sums(n, tile):
    """Also if the last tile reaches past the rows, and if tiles are halved and contracted slice by slice."""
    states = benign(n, d=9, models=17)
    kept = np.ones(n, bool)
    kept[[0, n - 1]] = False
    found = matrix.matrix_sums(states, kept, tile=tile, mesh=None)
    rows = states[:, kept].astype(np.float64)
    rows -= rows.mean(1, keepdims=True)
    rows *= np.sqrt(np.asarray(found.r).sum(1) / np.square(rows).sum((1, 2)))[:, None, None]
    grams = np.einsum("sid,sjd->sij", rows, rows) * (1 - np.eye(n - 2))
    exact = np.einsum("sij,tij->st", grams, grams)
    np.testing.assert_allclose(found.off, exact, rtol=1e-5, atol=1e-6 * np.abs(exact).max())


def test_a_state_without_a_value_leaves_the_others_alone():
    states = benign(n=6, d=6, models=4)
    states[1], states[2] = np.eye(6), 7
    found = matrix.cka_matrix(states, np.ones(6, bool))
    both_values = both(found)
    whole = expected(states[[0, 1, 3]])
    assert found.biased[np.ix_([0, 1, 3], [0, 1, 3])] == pytest.approx(whole[..., 0], abs=1e-6)
    assert found.debiased[np.ix_([0, 3], [0, 3])] == pytest.approx(whole[::2, ::2, 1], abs=1e-6)
    assert (np.isnan(both_values) == (found.undefined != "")).all()
    assert list(found.undefined[1, 3]) == ["", "debiased self-similarity is not positive in a"]
    assert list(found.undefined[3, 2]) == ["no variance in b"] * 2
    assert (found.undefined[2, 2] == "no variance in a and b").all()
    assert np.isnan(found.participation_ratio[2]) and np.isfinite(found.participation_ratio[[0, 1, 3]]).all()


def test_no_rows_at_all():
    found = matrix.cka_matrix(benign(), np.zeros(40, bool))
    assert found.n == 0 and np.isnan(both(found)).all()
    assert (found.undefined == "0 finite rows; at least 4 are needed").all()


def test_bad_arguments_are_refused():
    states = benign()
    for arguments, said in (
        ((states[0], np.ones(40, bool)), r"give floating \[models, layers, rows, width\]"),
        ((states.astype(np.int32), np.ones(40, bool)), "int32"),
        ((states, np.ones(39, bool)), "one bool for each of 40 rows"),
    ):
        with pytest.raises(Refusal, match=said) as raised:
            matrix.cka_matrix(*arguments)
        assert raised.value.code == 3


def test_memory_holds_no_copy_of_the_states_and_nothing_of_size_n_by_n():
    shape = (24, 4096, 512)
    tile = matrix.tile_rows(24, 4096, 512, 1)
    compiled = matrix.matrix_sums.lower(
        jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((4096,), bool), tile=tile, mesh=None
    ).compile()
    held = compiled.memory_analysis().temp_size_in_bytes
    states, grams = 4 * np.prod(shape), 4 * 24 * 4096**2
    assert held < 0.6 * states and held < 0.1 * grams


def test_pairs_of_rows_of_one_item_are_left_out_as_in_compare_states():
    states = layered(n=60, d=12)
    items = np.random.default_rng(0).integers(0, 21, 60)
    valid = np.ones(60, bool)
    valid[[3, 40]] = False
    # A row that is not finite takes itself, and not its item, out of the sums.
    states[1, 0, 7] = np.inf
    found = matrix.cka_matrix(states, valid, items=items)
    assert (found.n, found.dropped) == (57, 1)
    pairs = [(a, b) for a in range(3) for b in range(3)]
    kept = compare_states(states, valid, pairs, items=items)
    for i, (a, b) in enumerate(pairs):
        for k in range(2):
            assert both(found)[2 * a + k, 2 * b + k] == pytest.approx(kept.value[i, k], abs=1e-6)
    # Across layers, against the definition.
    rows = valid & (np.arange(60) != 7)
    x, y = states[0, 0, rows].astype(np.float64), states[2, 1, rows].astype(np.float64)
    assert found.debiased[0, 5] == pytest.approx(reference.debiased_by_items(x, y, items[rows]), abs=1e-6)
    plain = matrix.cka_matrix(states, valid)
    assert plain.biased == pytest.approx(found.biased, abs=1e-12)
    assert np.abs(plain.debiased - found.debiased).max() > 1e-3


def test_an_item_with_half_of_the_rows_leaves_no_debiased_value():
    states = layered(n=40, d=6)
    found = matrix.cka_matrix(states, np.ones(40, bool), items=np.where(np.arange(40) < 20, 0, np.arange(40)))
    assert np.isnan(found.debiased).all() and np.isfinite(found.biased).all()
    assert (found.undefined[..., 1] == "one item has half of the rows or more").all()
    few = matrix.cka_matrix(states, np.ones(40, bool), items=np.arange(40) % 3)
    assert (few.undefined == "3 items; at least 4 are needed").all() and np.isnan(few.biased).all()
