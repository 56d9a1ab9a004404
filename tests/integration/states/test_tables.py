"""Tables of the comparison of two models, against torch states and a float64 CKA; and planted structure."""

import numpy as np
import pytest

import mossa_jax as mossa
from tests.support.float64_cka import ESTIMATORS
from tests.support.tiny_llama import LAYERS, NAMES, random_texts, torch_model, torch_states, write_adapter, write_model

TEXTS = random_texts(24, seed=5)


@pytest.fixture(scope="module")
def model(tiny):
    return mossa.load_model(str(tiny.folder))


def reference_states(reference, model, texts, pool):
    """Layer name -> [n, D], every prompt alone through torch."""
    states = torch_states(reference, model.tokenizer().prompts(texts))
    pooled = {"last": lambda layer: layer[-1], "mean": lambda layer: layer.mean(0)}[pool]
    return {name: np.stack([pooled(prompt[name]) for prompt in states]) for name in model.architecture.state_names()}


def assert_table_equals(table, first, second, tolerance=1e-4):
    assert list(table.columns) == ["layer", "estimator", "cka", "low", "high", "n", "undefined"]
    assert list(table.layer) == [name for name in first for _ in ESTIMATORS]
    for row in table.itertuples():
        assert row.undefined == ""
        wanted = ESTIMATORS[row.estimator](first[row.layer], second[row.layer])
        assert row.cka == pytest.approx(wanted, abs=tolerance), (row.layer, row.estimator)
        assert row.low <= row.cka <= row.high


def cka_of(table, estimator="biased"):
    return table[table.estimator == estimator].set_index("layer").cka


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_every_cell_equals_torch_states_and_float64(model, tiny, tiny_adapters, pool):
    (first, torch_first), (second, torch_second) = tiny_adapters
    states = [reference_states(r, model, TEXTS, pool) for r in (tiny.torch_model, torch_first, torch_second)]
    table = mossa.compare(model, "pretrained", str(first), TEXTS, pool=pool)
    assert_table_equals(table, states[0], states[1])
    assert set(table.n) == {len(TEXTS)}
    values = cka_of(table)
    assert values["1"] < 0.999 and abs(values["3"] - values["final_norm"]) > 1e-3
    assert_table_equals(mossa.compare(model, str(first), str(second), TEXTS, pool=pool), states[1], states[2])


def test_a_whole_model_of_another_width(model, tiny, tmp_path):
    other = write_model(tmp_path / "wide", seed=9, hidden=48)
    table = mossa.compare(model, "pretrained", str(other.folder), TEXTS)
    states = [reference_states(r, model, TEXTS, "last") for r in (tiny.torch_model, other.torch_model)]
    assert_table_equals(table, *states)


@pytest.mark.parametrize("first_changed", [1, 2, 3])
def test_states_below_the_first_adapter_are_the_same(model, tiny, tmp_path, first_changed):
    """Random adapters in blocks from `first_changed` on; blocks are counted from 1, as layer names are."""
    layers = list(range(first_changed - 1, LAYERS))
    for seed, name in enumerate(("one", "two")):
        write_adapter(tiny.folder, tmp_path / name, seed=seed, layers=layers)
    same = NAMES[:first_changed]
    for experimental in ("pretrained", str(tmp_path / "one")):
        table = mossa.compare(model, experimental, str(tmp_path / "two"), TEXTS)
        for estimator in ESTIMATORS:
            values = cka_of(table, estimator)
            assert all(values[name] == pytest.approx(1, abs=1e-6) for name in same)
            assert all(values[name] < 0.999 for name in NAMES if name not in same)


def test_a_layer_without_variance_is_undefined_with_a_reason(model, tiny_adapters):
    texts = [f"{text} mill" for text in TEXTS]
    table = mossa.compare(model, "pretrained", str(tiny_adapters[0][0]), texts)
    embed = table[table.layer == "embed"]
    assert embed.undefined.str.contains("no variance").all()
    assert embed[["cka", "low", "high"]].isna().all(axis=None)
    assert (table[table.layer != "embed"].undefined == "").all()
    assert table[table.layer != "embed"].cka.notna().all()


def test_trained_model_equals_torch_states(stories, tmp_path):
    adapter = write_adapter(stories, tmp_path / "adapter", seed=1, std=0.08)
    model = mossa.load_model(str(stories))
    states = [reference_states(r, model, TEXTS, "last") for r in (torch_model(stories), adapter)]
    assert_table_equals(mossa.compare(model, "pretrained", str(tmp_path / "adapter"), TEXTS), *states)
