"""States of every token equal those of transformers, whatever the packing; and their index says whose they are."""

import numpy as np
import pytest

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from mossa_jax.existing import passes
from tests.support.tiny_llama import distance, random_texts, torch_states

TEXTS = [" ".join(random_texts(1 + number % 5, seed=number)) for number in range(24)]


@pytest.fixture(scope="module")
def model(tiny):
    return mossa.load_model(str(tiny.folder))


@pytest.fixture(scope="module")
def prompts(model):
    return [ids if len(ids) <= 96 else [ids[0], *ids[-95:]] for ids in model.tokenizer().prompts(TEXTS)]


@pytest.mark.parametrize("adapted", [False, True])
def test_every_token_has_the_states_of_transformers(model, tiny, tiny_adapters, prompts, adapted, monkeypatch):
    monkeypatch.setattr(passes, "_CPU_POSITIONS", 300)  # several batches
    folder, carrier = tiny_adapters[0]
    reference, adapter = (carrier, str(folder)) if adapted else (tiny.torch_model, None)
    states = mossa.layer_states(model, TEXTS, pool="tokens", adapter=adapter)
    assert list(states) == ["embed", "1", "2", "3", "final_norm"]
    wanted = torch_states(reference, prompts)
    for name, found in states.items():
        assert found.dtype == np.float32 and found.shape == (sum(map(len, prompts)), 32)
        assert distance(found, np.concatenate([layers[name] for layers in wanted])) < 2e-5, name


def test_the_index_says_prompt_position_and_token_of_each_row(model, prompts):
    states = mossa.layer_states(model, TEXTS, pool="tokens")
    assert states.token.tolist() == [token for ids in prompts for token in ids]
    assert states.position.tolist() == [place for ids in prompts for place in range(len(ids))]
    assert states.prompt.tolist() == [number for number, ids in enumerate(prompts) for _ in ids]
    assert np.array_equal(states.of_prompt(3)["2"], states["2"][states.prompt == 3])


def test_its_last_tokens_and_means_are_the_poolings(model):
    tokens = mossa.layer_states(model, TEXTS, pool="tokens")
    last, mean = (mossa.layer_states(model, TEXTS, pool=pool) for pool in ("last", "mean"))
    for name, states in tokens.items():
        own = [states[tokens.prompt == number] for number in range(len(TEXTS))]
        assert distance(np.stack([part[-1] for part in own]), last[name]) < 2e-5
        assert distance(np.stack([part.mean(0) for part in own]), mean[name]) < 2e-5


def test_tokens_are_no_pooling_of_a_comparison(model, tiny_adapters):
    with pytest.raises(Refusal, match="tokens") as caught:
        mossa.compare(model, "pretrained", str(tiny_adapters[0][0]), TEXTS, pool="tokens")
    assert caught.value.code == 2
