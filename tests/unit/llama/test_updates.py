"""Sizes, angles and means of LoRA products, against dense float64 products, SciPy and NumPy's SVD."""

import jax
import numpy as np
import pytest
import scipy.linalg

from mossa_jax.config import Pretraining
from mossa_jax.devices.mesh import single_device
from mossa_jax.llama import updates
from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.model import initial_state
from mossa_jax.tuning.pretrain import miniature_architecture

LAYERS = 3


def draw(seed, d_in=24, d_out=17, rank=4, layers=LAYERS):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(layers, d_in, rank)),
        "b": rng.normal(size=(layers, rank, d_out)),
        "scale": rng.uniform(0.5, 2, layers),
    }


def dense(update):
    return update["scale"][:, None, None] * (update["a"] @ update["b"])


def in_another_gauge(update, seed):
    turn = np.random.default_rng(seed).normal(size=(LAYERS, update["a"].shape[2], update["a"].shape[2]))
    return {**update, "a": update["a"] @ turn, "b": np.linalg.solve(turn, update["b"])}


def test_norms_and_inner_products_are_those_of_the_dense_products():
    x, y = draw(0), draw(1, rank=6)
    assert updates.norms(x) == pytest.approx(np.linalg.norm(dense(x), axis=(1, 2)), rel=1e-12)
    expected = (dense(x) * dense(y)).sum((1, 2))
    assert updates.inner_products(x, y) == pytest.approx(expected, rel=1e-12)
    sizes = np.linalg.norm(dense(x), axis=(1, 2)) * np.linalg.norm(dense(y), axis=(1, 2))
    assert updates.cosines(x, y) == pytest.approx(expected / sizes, rel=1e-12)


def test_overlaps_are_those_of_scipys_subspace_angles():
    x, y = draw(0), draw(1, rank=6)
    # Two directions in common on each side.
    y["a"][:, :, :2], y["b"][:, 1:3] = x["a"][:, :, 1:3], x["b"][:, :2]
    overlap = updates.overlap(x, y)
    for layer in range(LAYERS):
        bases = [np.linalg.svd(dense(each)[layer]) for each in (x, y)]
        left = (u[:, :k] for (u, _, _), k in zip(bases, (4, 6), strict=True))
        inputs = np.cos(scipy.linalg.subspace_angles(*left)) ** 2
        right = (v[:k].T for (_, _, v), k in zip(bases, (4, 6), strict=True))
        outputs = np.cos(scipy.linalg.subspace_angles(*right)) ** 2
        assert overlap.inputs[layer] == pytest.approx(inputs.mean(), abs=1e-9)
        assert overlap.outputs[layer] == pytest.approx(outputs.mean(), abs=1e-9)
    assert overlap.inputs.min() > 0.5
    assert (overlap.chance_inputs == 6 / 24).all() and (overlap.chance_outputs == 6 / 17).all()


def test_random_spaces_overlap_as_chance_says():
    pairs = [updates.overlap(draw(2 * i, 40, 30, 3, 1), draw(2 * i + 1, 40, 30, 5, 1)) for i in range(400)]
    assert np.mean([each.inputs for each in pairs]) == pytest.approx(5 / 40, rel=0.05)
    assert np.mean([each.outputs for each in pairs]) == pytest.approx(5 / 30, rel=0.05)


def test_another_gauge_of_the_factors_gives_the_same_numbers():
    x, y = draw(0), draw(1)
    other_x, other_y = in_another_gauge(x, 5), in_another_gauge(y, 6)
    assert updates.norms(other_x) == pytest.approx(updates.norms(x), rel=1e-6)
    assert updates.cosines(other_x, other_y) == pytest.approx(updates.cosines(x, y), abs=1e-6)
    for mine, theirs in zip(updates.overlap(other_x, other_y), updates.overlap(x, y), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


def test_only_the_rank_of_the_product_counts():
    x = draw(0)
    padded = {
        **x,
        "a": np.concatenate([x["a"], np.ones((LAYERS, 24, 3))], axis=2),
        "b": np.concatenate([x["b"], np.zeros((LAYERS, 3, 17))], axis=1),
    }
    overlap = updates.overlap(padded, draw(1))
    assert overlap.inputs == pytest.approx(updates.overlap(x, draw(1)).inputs, abs=1e-12)
    assert (overlap.chance_inputs == 4 / 24).all()


def test_layers_without_an_update_have_a_norm_of_zero_and_nothing_else():
    x = draw(0)
    x["scale"][0] = 0
    x["b"][1] = 0
    assert updates.norms(x)[:2].tolist() == [0, 0]
    assert np.isnan(updates.cosines(x, draw(1))[:2]).all()
    overlap = updates.overlap(x, draw(1))
    assert np.isnan(np.stack(overlap)[:, :2]).all() and np.isfinite(np.stack(overlap)[:, 2]).all()


def tiny() -> Architecture:
    return miniature_architecture(Pretraining(layers=LAYERS, hidden=16, heads=2, feed_forward=20))


def adapters_of(count, rank=3):
    sizes, every = target_sizes(tiny()), []
    for seed in range(count):
        drawn = {t: draw((seed, i), *sizes[t], rank) for i, t in enumerate(("q_proj", "down_proj"))}
        every.append({t: {k: v.astype(np.float32) for k, v in each.items()} for t, each in drawn.items()})
    return every


def mean_of_products(adapters, target):
    return np.mean([dense({k: v.astype(float) for k, v in each[target].items()}) for each in adapters], axis=0)


def test_the_mean_adapter_is_the_mean_of_the_products():
    adapters = adapters_of(4)
    merged, lost = updates.mean_adapter(tiny(), adapters, max_rank=64)
    assert lost == 0 and merged["q_proj"]["a"].shape == (LAYERS, 16, 12)
    for target in ("q_proj", "down_proj"):
        expected = mean_of_products(adapters, target)
        assert dense(merged[target]) == pytest.approx(expected, abs=1e-6 * np.abs(expected).max())


def test_a_mean_of_more_ranks_than_the_width_loses_nothing():
    adapters = adapters_of(9)
    merged, lost = updates.mean_adapter(tiny(), adapters, max_rank=64)
    assert merged["q_proj"]["a"].shape == (LAYERS, 16, 16)
    assert lost < 1e-7
    expected = mean_of_products(adapters, "q_proj")
    assert dense(merged["q_proj"]) == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())


def test_a_truncated_mean_is_the_best_approximation_and_says_what_it_lost():
    adapters = adapters_of(4)
    merged, lost = updates.mean_adapter(tiny(), adapters, max_rank=5)
    squares = cut = 0.0
    for target in ("q_proj", "down_proj"):
        u, s, v = np.linalg.svd(mean_of_products(adapters, target), full_matrices=False)
        best = (u[:, :, :5] * s[:, None, :5]) @ v[:, :5]
        assert dense(merged[target]) == pytest.approx(best, abs=1e-5 * np.abs(best).max())
        squares, cut = squares + np.square(s).sum(), cut + np.square(s[:, 5:]).sum()
    assert lost == pytest.approx(np.sqrt(cut / squares), rel=1e-6) and lost > 0.1


def test_an_adapter_without_a_target_counts_as_no_update_there():
    adapters = adapters_of(2)
    del adapters[1]["q_proj"]
    merged, _ = updates.mean_adapter(tiny(), adapters, max_rank=64)
    alone = {k: v.astype(float) for k, v in adapters[0]["q_proj"].items()}
    assert dense(merged["q_proj"]) == pytest.approx(dense(alone) / 2, abs=1e-5)


def test_base_norms_are_those_of_the_matrices():
    state = initial_state(tiny(), seed=0)
    norms = updates.base_norms(single_device(), state, ["q_proj", "down_proj"])
    blocks = jax.tree.map(np.asarray, state)["blocks"]
    for name, matrix in (("q_proj", blocks["attention"]["q_proj"]), ("down_proj", blocks["feed_forward"]["down_proj"])):
        weight = np.asarray(matrix["weight"][...], np.float64)
        assert norms[name] == pytest.approx(np.linalg.norm(weight, axis=(1, 2)), rel=1e-5)
