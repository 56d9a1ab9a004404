"""Effective dimension against float64 singular values, and on planted spectra."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from mossa_jax.errors import Refusal
from mossa_jax.similarity.measures.spectrum import spectrum


def planted(n, d, seed=0):
    """[2, 2, n, d]: power-law spectra under an offset; one state with a massive dimension."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1) ** -0.75
    states = rng.normal(size=(2, 2, n, d)) * scale + 10 * rng.normal(size=d)
    states[1, 1, :, 3] += 40 * rng.normal(size=n)
    return states.astype(np.float32)


@pytest.mark.parametrize("n, d", [(200, 40), (50, 120)])
def test_figures_are_those_of_the_singular_values(n, d):
    states = planted(n, d)
    states[0, 0, 4, 1] = np.nan
    valid = np.arange(n) != 8
    found = spectrum(states, valid)
    kept = valid & (np.arange(n) != 4)
    assert (found.n, found.dropped) == (n - 2, 1)
    for m in range(2):
        for k in range(2):
            x = states[m, k, kept].astype(np.float64)
            x -= x.mean(0)
            power = np.linalg.svd(x, compute_uv=False) ** 2
            total = power.sum()
            assert found.components[m, k] == np.searchsorted(np.cumsum(power) / total, 0.99) + 1
            assert found.participation_ratio[m, k] == pytest.approx(total**2 / (power**2).sum(), rel=1e-5)
            assert found.top_component[m, k] == pytest.approx(power[0] / total, abs=1e-6)
            assert found.top_dimension[m, k] == pytest.approx(np.square(x).sum(0).max() / total, abs=1e-6)
    assert found.top_dimension[1, 1] > 0.99 > found.top_dimension[0, 1]


def test_planted_dimensions_are_recovered():
    rng = np.random.default_rng(1)
    directions = np.linalg.qr(rng.normal(size=(64, 8)))[0].T
    rows = rng.normal(size=(4000, 8)).astype(np.float32) @ directions.astype(np.float32)
    found = spectrum(rows[None, None] * np.float32(1e-12), np.ones(4000, bool), share=0.9)
    assert found.participation_ratio[0, 0] == pytest.approx(8, rel=0.01)
    assert found.components[0, 0] == 8 and found.top_component[0, 0] == pytest.approx(1 / 8, rel=0.1)
    half = spectrum(rows[None, None], np.ones(4000, bool), share=0.5)
    assert half.components[0, 0] == 4


def test_constant_states_and_few_rows_have_no_spectrum():
    states = planted(50, 120)
    states[0, 1] = 3.0
    found = spectrum(states, np.ones(50, bool))
    assert found.undefined[0, 1] == "no variance" and (found.undefined != "").sum() == 1
    for name in ("components", "participation_ratio", "top_component", "top_dimension"):
        np.testing.assert_array_equal(np.isnan(getattr(found, name)), found.undefined != "")
    few = spectrum(states, np.arange(50) < 3)
    assert (few.undefined == "3 finite rows; at least 4 are needed").all() and np.isnan(few.components).all()


def test_rounding_of_bfloat16_is_not_variance():
    states = jnp.full((1, 1, 50, 120), 3.0, jnp.bfloat16).at[0, 0, 7, :].add(0.02)
    assert spectrum(states, np.ones(50, bool)).undefined[0, 0] == "no variance"
    assert spectrum(states.astype(jnp.float32), np.ones(50, bool)).components[0, 0] == 1


def test_bad_arguments_are_refused():
    for code, arguments in ((2, (planted(10, 4), np.ones(10, bool), 1.0)), (3, (planted(10, 4)[0], np.ones(10, bool)))):
        with pytest.raises(Refusal) as refused:
            spectrum(*arguments)
        assert refused.value.code == code


def test_components_are_those_of_scikit_learn():
    states = planted(200, 40)
    figures = spectrum(states, np.ones(200, bool))
    for m in range(2):
        for k in range(2):
            shares = PCA(svd_solver="full").fit(states[m, k].astype(np.float64)).explained_variance_ratio_
            assert figures.components[m, k] == np.searchsorted(np.cumsum(shares), 0.99) + 1


def test_first_models_and_rows_have_the_spectrum_that_they_have_alone():
    states = planted(50, 120)
    more = np.concatenate([states, np.full_like(states[:1], np.nan)])
    more = np.pad(more, ((0, 0), (0, 0), (0, 14), (0, 0)))
    figures = spectrum(more, np.arange(64) < 50, models=2, rows=50)
    alone = spectrum(states, np.ones(50, bool))
    assert figures.n == 50 and figures.components.shape == (2, 2)
    np.testing.assert_array_equal(figures.components, alone.components)
    np.testing.assert_allclose(figures.participation_ratio, alone.participation_ratio, rtol=1e-6)
