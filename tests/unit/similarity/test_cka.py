"""cka() and the references against closed forms and definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard

from mossa_jax.errors import Refusal
from mossa_jax.similarity import ESTIMATORS, UndefinedSimilarity, cka, reference


def correlated(n, widths, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 4))
    return [shared @ rng.normal(size=(4, d)) + rng.normal(size=(n, d)) + offset * rng.normal(size=d) for d in widths]


def test_orthogonal_design_has_the_value_computed_by_hand():
    # Columns of a Hadamard matrix are centred and orthogonal and every row has the same norm, so that with
    # squared weights p, q: biased = p.q / |p||q|, and debiasing takes sum(p) sum(q) / (n - 1) from each product.
    n = 16
    columns = hadamard(n)[:, 1:6]
    p, q = np.array([5.0, 4, 1, 0.5, 0.2]), np.array([0.1, 2, 3, 1, 4])
    x, y = columns * np.sqrt(p), columns * np.sqrt(q)

    def product(u, v, cut):
        return u @ v - cut * u.sum() * v.sum() / (n - 1)

    for estimator, cut in (("biased", 0), ("debiased", 1)):
        expected = product(p, q, cut) / np.sqrt(product(p, p, cut) * product(q, q, cut))
        assert cka(x, y, estimator) == pytest.approx(expected, abs=1e-6)
        assert getattr(reference, estimator)(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rotation_scale_and_shift_change_nothing(estimator):
    x = correlated(50, [12])[0].astype(np.float32)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0].astype(np.float32)
    assert cka(x, x, estimator) == 1.0
    assert cka(x, x @ rotation * 3 + 5, estimator) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "rows, widths", [(60, (16, 9)), (20, (70, 40)), (600, (16, 520)), (1300, (520, 8)), (4, (6, 6))]
)
def test_agrees_with_the_definition(estimator, rows, widths):
    x, y = correlated(rows, widths)
    expected = getattr(reference, estimator)(x, y)
    assert cka(x, y, estimator) == pytest.approx(expected, abs=1e-6)
    assert cka(jnp.asarray(x, jnp.float32), y.astype(np.float32), estimator) == pytest.approx(expected, abs=1e-6)


def test_independent_wide_data_is_near_zero_only_debiased():
    x, y = np.random.default_rng(3).normal(size=(2, 40, 2000))
    assert cka(x, y, "biased") > 0.95
    assert abs(cka(x, y)) < 0.1


def test_sign_is_kept():
    signs = {np.sign(cka(*np.random.default_rng(s).normal(size=(2, 12, 6)))) for s in range(12)}
    assert signs == {-1.0, 1.0}


def test_float64_offset_beyond_float32_is_kept():
    x, y = correlated(40, (8, 8), offset=1e8)
    assert cka(x, y) == pytest.approx(reference.debiased(x, y), abs=1e-5)
    with pytest.raises(UndefinedSimilarity, match="no variance in x"):
        cka(np.float32(x), y)


@pytest.mark.parametrize("rows", [8, 60])
def test_without_variance_it_is_undefined(rows):
    x = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    flat = np.tile(np.float32(0.1) * np.arange(1, 9, dtype=np.float32), (rows, 1))
    for estimator in ESTIMATORS:
        with pytest.raises(UndefinedSimilarity, match="no variance in y"):
            cka(x, flat, estimator)
        with pytest.raises(UndefinedSimilarity, match="no variance in x"):
            cka(np.float64(flat), x, estimator)


def test_equidistant_rows_have_no_debiased_value():
    x = np.random.default_rng(0).normal(size=(6, 6))
    assert cka(np.eye(6), x, "biased") > 0
    with pytest.raises(UndefinedSimilarity, match="self-similarity is not positive in x"):
        cka(np.eye(6), x)


def test_bad_input_is_refused_with_code_3():
    good = np.random.default_rng(0).normal(size=(8, 4))
    for dtype in (np.float32, np.float64):
        holed = good.astype(dtype)
        holed[2, 1] = np.nan
        for x, y in ((good, holed), (holed, good)):
            with pytest.raises(Refusal, match="not finite") as raised:
                cka(x, y)
            assert raised.value.code == 3
    for x, y, said in (
        (good, good[:7], "8 rows and y has 7"),
        (good[:3], good[:3], "at least 4"),
        (good[0], good, r"shape \[4\]"),
        (good + 1j, good, "complex"),
    ):
        with pytest.raises(Refusal, match=said) as raised:
            cka(x, y)
        assert raised.value.code == 3
    with pytest.raises(Refusal, match="estimator is 'linear'") as raised:
        cka(good, good, "linear")
    assert raised.value.code == 2
