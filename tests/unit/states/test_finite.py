"""States that are not finite are found and refused by the name of the model and its first layer."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.files.weights import first_not_finite
from mossa_jax.llama.model import abstract_state
from mossa_jax.run import compare
from mossa_jax.similarity import compare_states
from mossa_jax.states import KeptStates
from mossa_jax.states.finite import find_not_finite, find_not_finite_on_host

NAMES = ("embed", "1", "2", "final_norm")


def kept_states(bad):
    """Two models x four layers x 6 rows, of which the last only pads; `bad` are places that become infinite."""
    states = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    for place in bad:
        states[place] = np.inf
    states[:, :, 5] = np.nan
    placed = jax.device_put(states, mesh_lib.replicated(mesh_lib.single_device()))
    return KeptStates(placed, np.arange(6) < 5, 5, NAMES)


def test_the_first_layer_of_the_first_model_is_found():
    assert find_not_finite(kept_states([])) is None
    assert find_not_finite(kept_states([(1, 3, 0, 0), (1, 2, 4, 1), (1, 2, 0, 2)])) == (1, "2", 2, 5)
    assert find_not_finite_on_host({"embed": np.zeros((3, 2)), "1": np.array([[0, np.nan], [1, 1], [2, 2]])}) == (
        0,
        "1",
        1,
        3,
    )


def looked_at(bad):
    kept = kept_states(bad)
    similarities = compare_states(kept.states, kept.valid, [(0, 1)])
    run = types.SimpleNamespace(is_whole=lambda name: True)
    states = types.SimpleNamespace(kept=kept)
    compare._look_at_dropped(run, types.SimpleNamespace(name="sums"), [None, "tuned"], states, similarities)


def test_a_task_of_a_run_with_too_few_finite_rows_is_refused_by_task_model_and_layer():
    with pytest.raises(Refusal, match="task sums: model tuned: states of layer 1 are not finite for 2 of 5") as caught:
        looked_at([(1, 1, 0, 0), (1, 1, 1, 0), (1, 3, 2, 1)])
    assert caught.value.code == 5


def test_a_task_of_a_run_with_enough_finite_rows_has_a_warning(caplog):
    looked_at([(0, 2, 3, 1)])
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage() == (
        "sums: 1 prompts are left out of all models, since states of pretrained are not finite from layer 2 on"
    )


def test_a_weight_that_is_not_finite_is_found_by_its_stored_name():
    config = {
        "model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }  # fmt: skip
    arch = architecture_from_config(config, "config.json")
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_state(arch, np.float32))
    assert first_not_finite(state, arch) is None
    weight = state["blocks"]["feed_forward"]["up_proj"]["weight"]
    weight.set_value(weight.get_value().at[2, 1, 1].set(jnp.nan))
    assert first_not_finite(state, arch) == "model.layers.2.mlp.up_proj.weight"
