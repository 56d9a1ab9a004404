"""Models and adapters whose numbers are not finite end with code 5 and a name, and never with an empty table."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from tests.support.tiny_llama import random_texts

PROMPTS = random_texts(8, seed=3)


@pytest.fixture(scope="module")
def model(tiny):
    return mossa.load_model(str(tiny.folder))


@pytest.fixture(scope="module")
def broken(tiny, tmp_path_factory):
    """A copy of the model with one weight of layer 2 that is NaN."""
    folder = shutil.copytree(tiny.folder, tmp_path_factory.mktemp("broken") / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def loud(tiny_adapters, tmp_path_factory):
    """An adapter whose numbers are finite, and whose products are not."""
    folder = shutil.copytree(tiny_adapters[1][0], tmp_path_factory.mktemp("loud") / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor * 1e25 for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return str(folder)


def refused(function, *words):
    with pytest.raises(Refusal) as caught:
        function()
    assert caught.value.code == 5
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("pool", ["last", "tokens"])
def test_states_of_a_broken_base_are_refused_by_layer_and_weight(broken, pool):
    refused(
        lambda: mossa.layer_states(mossa.load_model(broken), PROMPTS, pool=pool),
        broken, "states of layer 2 are not finite", "model.layers.1.mlp.down_proj.weight",
    )  # fmt: skip


def test_states_that_overflow_are_refused_by_adapter_and_layer(model, loud):
    refused(
        lambda: mossa.layer_states(model, PROMPTS, adapter=loud),
        f"with {loud}", "states of layer 1 are not finite for 8 of 8 prompts", "smaller scale",
    )  # fmt: skip


@pytest.mark.parametrize("pool", ["mean", "all"])
def test_a_comparison_names_the_side_and_its_first_layer(model, loud, pool):
    refused(
        lambda: mossa.compare(model, "pretrained", loud, PROMPTS, pool=pool),
        f"{loud}: states of layer 1 are not finite",
    )  # fmt: skip


def test_prompts_that_are_not_finite_are_left_out_and_named_where_enough_are_left(tiny, model, tmp_path, caplog):
    """An id whose row of the embedding is infinite takes its prompt out of the table."""
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    prompts = [*PROMPTS, "qqq"]
    ids = model.tokenizer().prompts(prompts)
    tensors = load_file(folder / "model.safetensors")
    own = sorted(set(ids[-1]) - {one for each in ids[:-1] for one in each})
    tensors["model.embed_tokens.weight"][own[-1]] = np.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    table = mossa.compare(model, "pretrained", str(folder), prompts)
    # Prompts that are packed beside it may go with it.
    assert 4 <= table.n.min() == table.n.max() <= len(PROMPTS) and (table.undefined == "").all()
    assert any("not finite from layer embed on" in record.getMessage() for record in caplog.records)
