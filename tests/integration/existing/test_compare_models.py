"""The public Python API: states by prompt, options, and refusals."""

import numpy as np
import pytest

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from tests.support.tiny_llama import distance, random_texts, torch_states

# Far more than fit into one row, of very different lengths, so that packing reorders them.
TEXTS = [" ".join(random_texts(1 + number % 5, seed=number)) for number in range(40)]


@pytest.fixture(scope="module")
def model(tiny):
    return mossa.load_model(str(tiny.folder))


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_row_i_is_prompt_i(model, tiny, tiny_adapters, pool):
    prompts = [ids[:96] for ids in model.tokenizer().prompts(TEXTS)]  # the model's positions
    assert len({len(ids) for ids in prompts}) > 5
    folder, carrier = tiny_adapters[0]
    for adapter, reference in ((None, tiny.torch_model), (str(folder), carrier)):
        states = mossa.layer_states(model, TEXTS, pool=pool, adapter=adapter)
        assert list(states) == ["embed", "1", "2", "3", "final_norm"]
        wanted = torch_states(reference, prompts)
        for name, found in states.items():
            assert found.dtype == np.float32 and found.shape == (len(TEXTS), 32)
            rows = [p[name][-1] if pool == "last" else p[name].mean(0) for p in wanted]
            assert distance(found, np.stack(rows)) < 2e-5, name


def test_prompts_are_cut_on_the_right(model):
    long = " ".join(random_texts(30))
    ids = model.tokenizer().prompts([long])[0]
    assert len(ids) > 96
    wanted = mossa.layer_states(model, [long], max_tokens=5)
    assert not np.allclose(mossa.layer_states(model, [long], max_tokens=6)["3"], wanted["3"])
    # Without a bound, the model's own positions are the bound.
    whole, bound = mossa.layer_states(model, [long]), mossa.layer_states(model, [long], max_tokens=96)
    assert np.array_equal(whole["3"], bound["3"])
    assert wanted["embed"].shape == (1, 32)


def test_a_model_equals_itself(model, tiny):
    table = mossa.compare(model, "pretrained", str(tiny.folder), TEXTS)
    assert table.cka.to_numpy() == pytest.approx(np.ones(len(table)), abs=1e-6)


def test_cka_of_arrays(model):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 8)).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    for estimator in ("biased", "debiased"):
        assert mossa.cka(x, (3 * x @ rotation + 7).astype(np.float32), estimator=estimator) == pytest.approx(
            1, abs=1e-5
        )
    assert abs(mossa.cka(x, rng.normal(size=(30, 8)).astype(np.float32), estimator="debiased")) < 0.3


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"pool": "first"}, 2, "first"),
        ({"template": "alpaca"}, 2, "alpaca"),
        ({"template": "chat"}, 3, "chat template"),
        ({"max_tokens": 0}, 2, "max_tokens"),
        ({"prompts": "one text"}, 3, "list"),
        ({"prompts": ["a", 3]}, 3, "list"),
        ({"prompts": []}, 3, "no prompts"),
        ({"adapter": "nowhere"}, 3, "nowhere"),
    ],
)
def test_options_that_are_refused(model, change, code, words):
    given = {"prompts": TEXTS[:4]} | change
    with pytest.raises(Refusal, match=words) as caught:
        mossa.layer_states(model, given.pop("prompts"), **given)
    assert caught.value.code == code


def test_sides_that_do_not_fit(model, tiny, stories):
    with pytest.raises(Refusal, match="vocabulary") as caught:
        mossa.compare(model, "pretrained", str(stories), TEXTS)
    assert caught.value.code == 3
    with pytest.raises(Refusal, match="does not exist") as caught:
        mossa.compare(model, "pretrained", str(tiny.folder / "nowhere"), TEXTS)
    assert caught.value.code == 3


def test_too_few_prompts_are_undefined_not_wrong(model, tiny_adapters):
    table = mossa.compare(model, "pretrained", str(tiny_adapters[0][0]), TEXTS[:3])
    assert table.cka.isna().all() and table.undefined.str.contains("4").all()
