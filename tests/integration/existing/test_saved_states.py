"""States with their rows, as tables and files: nothing changes on the way, and a probe reads them."""

import dataclasses
import runpy

import numpy as np
import pandas as pd
import pytest

import mossa_jax as mossa
from mossa_jax.config import Config, Tasks
from mossa_jax.errors import Refusal
from mossa_jax.existing.saved import STATES
from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from tests.support.tiny_llama import random_texts

LAYERS = ["embed", "1", "2", "3", "final_norm"]


@pytest.fixture(scope="module")
def model(tiny):
    return mossa.load_model(str(tiny.folder))


@pytest.fixture(scope="module")
def examples():
    """Twelve rows; the first word of a prompt decides the answer."""
    texts = random_texts(12, seed=5)
    return [
        mossa.Example(f"{'yes' if row % 2 else 'no'} {text}", "ab"[row % 2], template=row % 3, item=f"item {row // 2}")
        for row, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def prompts(examples):
    return [example.inputs for example in examples]


@pytest.mark.parametrize("name", ["states.parquet", "states"])
@pytest.mark.parametrize("pool", ["last", "tokens"])
def test_states_come_back_bit_by_bit_with_their_rows(model, examples, prompts, tmp_path, name, pool):
    states = mossa.layer_states(model, prompts, pool=pool)
    mossa.save_states(tmp_path / name, states, examples, task="words", model="base")
    found, rows = mossa.load_states(tmp_path / name)
    assert list(found) == LAYERS
    assert all(found[layer].dtype == np.float32 and np.array_equal(found[layer], states[layer]) for layer in LAYERS)
    owner = states.prompt if pool == "tokens" else np.arange(12)
    assert rows.prompt.tolist() == owner.tolist()
    assert set(rows.task) == {"words"} and set(rows.model) == {"base"}
    for column in ("inputs", "targets", "template", "item"):
        assert rows[column].tolist() == [getattr(examples[prompt], column) for prompt in owner]
    assert ("token" in rows) == (pool == "tokens")


def test_pandas_and_safetensors_read_the_files_by_themselves(model, examples, prompts, tmp_path):
    from safetensors.numpy import load_file

    states = mossa.layer_states(model, prompts)
    mossa.save_states(tmp_path / "states.parquet", states, examples)
    table = pd.read_parquet(tmp_path / "states.parquet")
    assert np.array_equal(np.stack(table[STATES + "2"]), states["2"])
    assert table.targets.tolist() == [example.targets for example in examples]
    mossa.save_states(tmp_path / "folder", states, examples)
    assert np.array_equal(load_file(tmp_path / "folder/states.safetensors")["2"], states["2"])


def test_saved_folders_are_compared_as_live_models_are(model, tiny_adapters, prompts, examples, tmp_path):
    folder = str(tiny_adapters[0][0])
    for name, adapter in (("base", None), ("tuned", folder)):
        mossa.save_states(tmp_path / name, mossa.layer_states(model, prompts, adapter=adapter), examples, model=name)
    saved = mossa.compare_saved(str(tmp_path / "base"), str(tmp_path / "tuned"))
    live = mossa.compare(model, "pretrained", folder, prompts)
    assert saved.layer.tolist() == live.layer.tolist()
    np.testing.assert_allclose(saved[["cka", "low", "high"]], live[["cka", "low", "high"]], atol=1e-6)


def test_folders_of_other_prompts_are_not_compared(model, prompts, examples, tmp_path):
    states = mossa.layer_states(model, prompts)
    mossa.save_states(tmp_path / "one", states, examples)
    mossa.save_states(tmp_path / "other", states, examples[::-1])
    with pytest.raises(Refusal, match="row 0") as caught:
        mossa.compare_saved(str(tmp_path / "one"), str(tmp_path / "other"))
    assert caught.value.code == 3


def test_a_probe_finds_in_the_table_what_the_prompts_say(model, tmp_path):
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    texts = random_texts(120, seed=9)
    # The label is the prompt's last word, so a probe of last tokens must find it, and one of shuffled labels must not.
    labels = rng.integers(0, 2, 120)
    examples = [
        mossa.Example(f"{text} {'yes' if label else 'no'}", str(label))
        for text, label in zip(texts, labels, strict=True)
    ]
    states = mossa.layer_states(model, [example.inputs for example in examples])
    mossa.save_states(tmp_path / "states.parquet", states, examples, task="words")
    table = pd.read_parquet(tmp_path / "states.parquet")
    x, y = np.stack(table[STATES + "1"]), table.targets.to_numpy()
    probe = linear.LogisticRegression(max_iter=2000)
    assert probe.fit(x[:80], y[:80]).score(x[80:], y[80:]) > 0.95
    assert probe.fit(x[:80], rng.permutation(y[:80])).score(x[80:], y[80:]) < 0.8


def test_examples_that_are_not_as_many_as_prompts_are_refused(model, prompts, examples):
    states = mossa.layer_states(model, prompts)
    with pytest.raises(Refusal, match="11 examples and states of 12 prompts") as caught:
        mossa.states_table(states, examples[:11])
    assert caught.value.code == 3


def test_a_table_stands_beside_states_that_know_no_examples(model, prompts):
    table = mossa.states_table(mossa.layer_states(model, prompts), model="base")
    assert list(table) == ["model", "prompt", *(STATES + layer for layer in LAYERS)]


@pytest.mark.parametrize("name", ["nothing", "other.parquet", "text.parquet"])
def test_what_holds_no_states_is_refused(tmp_path, name):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(Refusal, match=name) as caught:
        mossa.load_states(tmp_path / name)
    assert caught.value.code == 3


@pytest.mark.parametrize("order", ["sample", "first"])
def test_a_task_has_the_rows_that_a_run_takes(tiny_config, tmp_path, order):
    config = runpy.run_path(str(tiny_config))["get_config"]()
    config.tasks = dataclasses.replace(config.tasks, test_order=order, max_test=7)
    run_folder = pipeline.open_run(config, str(tmp_path / "run"))
    try:
        run = pipeline.Run(config, run_folder, Stop())
        for task in run.suite.tasks:
            for split in ("train", "test"):
                found = mossa.load_task(config, task.name, split)
                encoded = run.encoded(task, split)
                wanted = [run.tokenizer.text(encoded.examples.prompt(row)) for row in range(len(encoded))]
                assert len(found) == len(wanted) and (split == "train" or len(found) == 7)
                # A run cuts the beginnings of long prompts.
                assert all(row.inputs.endswith(text) for row, text in zip(found, wanted, strict=True))
    finally:
        run_folder.close()


def test_a_published_config_is_found_by_name_and_a_file_by_its_path(root):
    by_name = mossa.load_task("demo", "sentiment_surprise", limit=5)
    by_path = mossa.load_task(root / "configs/demo.py", "sentiment_surprise", limit=5)
    by_value = mossa.load_task(Config(tasks=Tasks(suite="miniature")), "sentiment_surprise", limit=5)
    assert by_name == by_path == by_value and len(by_name) == 5
    assert all(example.inputs and example.targets and example.template >= 0 and example.item for example in by_name)


@pytest.mark.parametrize(
    ("config", "name", "split", "words"),
    [
        ("demos", "sentiment_surprise", "test", "config demos: no such file; did you mean demo"),
        ("demo", "sentiment_suprise", "test", "no task 'sentiment_suprise'.*sentiment_surprise"),
        ("demo", "sentiment_surprise", "dev", "split 'dev'"),
    ],
)
def test_names_that_do_not_exist_are_refused(config, name, split, words):
    with pytest.raises(Refusal, match=words) as caught:
        mossa.load_task(config, name, split)
    assert caught.value.code == 2


def test_a_file_without_a_configuration_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(Refusal, match=r"empty.py: has no get_config\(\)") as caught:
        mossa.load_task(tmp_path / "empty.py", "anything")
    assert caught.value.code == 2
