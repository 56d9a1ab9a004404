"""Prompts that do not fit a packed row go to longer rows, and their states stay the same."""

import jax
import numpy as np
import pytest

from mossa_jax.llama.adapters import stack
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.states import PassConfig, keep_states
from mossa_jax.tokens.packing import Packing
from tests.support.tiny_llama import random_prompts


@pytest.mark.parametrize("pool", ["last", pytest.param("mean", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_states_do_not_depend_on_the_lengths_of_rows(tiny, tiny_adapters, pool):
    model = load_model(str(tiny.folder))
    adapters = stack(model.architecture, [{}, load_adapter(tiny_adapters[0][0], model.architecture)])
    prompts = [*random_prompts(20), *random_prompts(3, seed=1, shortest=30, longest=60)]

    def states(**lengths):
        config = PassConfig(pool, batch_rows=4, packing=Packing(**lengths))
        found = keep_states(model, adapters, prompts, config)
        assert found.valid.sum() == 23
        return np.asarray(jax.device_get(found.states))[:, :, :23]

    whole, split = states(row_length=64), states(row_length=16, long_row_length=64)
    assert np.abs(whole).max(axis=(0, 1, 3)).min() > 0.1  # every prompt has states
    assert np.abs(whole - split).max() < 1e-5 * np.abs(whole).max()
    with pytest.raises(ValueError, match="32"):
        states(row_length=16, long_row_length=32)
