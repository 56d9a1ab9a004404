"""Lists of prompts that share the shapes of their passes have the states that each of them has alone."""

import jax
import numpy as np
import pytest

from mossa_jax.llama.adapters import stack
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.similarity import compare_states
from mossa_jax.states import PassConfig, keep_states
from mossa_jax.tokens.packing import Packing
from tests.support.tiny_llama import VOCAB, random_prompts

LEAD = [1, *np.random.default_rng(8).integers(3, VOCAB, 36).tolist()]


def behind(lead, count, seed, **lengths):
    return [[*lead, *own[1:]] for own in random_prompts(count, seed, **lengths)]


LISTS = {
    "long prefix": behind(LEAD, 20, 1),
    "short prefix": behind(LEAD[:12], 150, 2, longest=40),
    "no prefix": random_prompts(9, 3),
    "many prompts": random_prompts(300, 4, longest=30),
}


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize(
    "lengths", [{"row_length": 64}, pytest.param({"row_length": 32, "long_row_length": 64}, marks=pytest.mark.slow)]
)
def test_states_and_similarities_are_those_of_a_list_alone(tiny, tiny_adapters, pool, lengths):
    model = load_model(str(tiny.folder))
    arch = model.architecture
    adapters = stack(arch, [{}, load_adapter(tiny_adapters[0][0], arch)])
    config = PassConfig(pool, 4, Packing(**lengths))
    shapes = config.shapes([config.pack(arch, prompts).sizes for prompts in LISTS.values()], model.mesh)
    assert [shape.prefix_length for shape in shapes] == [0, 64] and shapes[0].kept == (128, 384)
    for name, prompts in LISTS.items():
        common, alone = (keep_states(model, adapters, prompts, config, given) for given in (shapes, ()))
        assert common.states.shape[2] == 384 and common.rows == (384 if len(prompts) > 128 else 128), name
        assert alone.states.shape[2] == alone.rows < 385
        assert common.valid.sum() == alone.valid.sum() == len(prompts)
        states, expected = (np.asarray(jax.device_get(kept.states))[:, :, kept.valid] for kept in (common, alone))
        assert (
            np.isfinite(np.asarray(common.states)).all() and not np.asarray(common.states)[:, :, len(prompts) :].any()
        )
        assert np.abs(states - expected).max() < 2e-6 * np.abs(expected).max(), name
    # One list's similarities: the array's rows behind its own change nothing.
    kept = keep_states(model, adapters, LISTS["no prefix"], config, shapes)
    wide, tight = (
        compare_states(kept.states[:, :, :n], kept.valid[:n], [(0, 1)], permutations=5, rows=rows)
        for n, rows in ((384, kept.rows), (32, None))
    )
    for figure in ("value", "low", "high", "p"):
        np.testing.assert_allclose(getattr(wide, figure), getattr(tight, figure), atol=1e-5)


def test_rows_behind_those_looked_at_may_not_be_valid():
    states = np.random.default_rng(0).standard_normal((2, 1, 16, 3), np.float32)
    with pytest.raises(ValueError, match="behind the first 8"):
        compare_states(states, np.arange(16) < 9, [(0, 1)], rows=8)
