"""The public Python API: states by prompt, options, and refusals."""

import copy
import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from mossa_jax.processes.stop import Stop
from mossa_jax.run import models, pipeline
from mossa_jax.similarity import reference as float64
from tests.support.tiny_llama import VOCAB, WORDS, distance, random_texts, torch_states, write_adapter
from tests.support.tokenizer_layouts import edit

# Far more than fit into one row, of very different lengths, so that packing reorders them.
TEXTS = [" ".join(random_texts(1 + number % 5, seed=number)) for number in range(40)]


@pytest.fixture(scope="module")
def model(tiny):
    return mossa.load_model(str(tiny.folder))


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_row_i_is_prompt_i(model, tiny, tiny_adapters, pool):
    # The model has 96 positions; BOS and the end are kept.
    prompts = [ids if len(ids) <= 96 else [ids[0], *ids[-95:]] for ids in model.tokenizer().prompts(TEXTS)]
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


@pytest.mark.parametrize("truncation", ["keep_end", "paper"])
def test_prompts_are_cut_where_truncation_says(model, tiny, truncation):
    texts = [" ".join(random_texts(30, seed=seed)) for seed in range(3)]
    whole = model.tokenizer().prompts(texts)
    assert min(map(len, whole)) > 96
    prompts = [[ids[0], *ids[-19:]] if truncation == "keep_end" else ids[:20] for ids in whole]
    wanted = np.stack([prompt["3"].mean(0) for prompt in torch_states(tiny.torch_model, prompts)])
    states = mossa.layer_states(model, texts, pool="mean", max_tokens=20, truncation=truncation)
    assert distance(states["3"], wanted) < 2e-5
    tokens = mossa.layer_states(model, texts, pool="tokens", max_tokens=20, truncation=truncation)
    assert tokens.token.tolist() == [number for ids in prompts for number in ids]


def test_without_a_bound_prompts_are_cut_to_the_positions_of_the_model(model):
    long = [" ".join(random_texts(30))]
    whole, bound = mossa.layer_states(model, long), mossa.layer_states(model, long, max_tokens=96)
    assert np.array_equal(whole["3"], bound["3"])


def test_one_warning_counts_the_prompts_that_are_cut(model, caplog):
    with caplog.at_level(logging.WARNING, "mossa_jax"):
        mossa.layer_states(model, ["a river", " ".join(random_texts(30))] * 2, max_tokens=9)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("2 of 4 prompts are longer than 9 tokens and lose the beginning of their content")
    assert "96 positions" in message
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mossa_jax"):
        mossa.layer_states(model, ["a river"], max_tokens=9)
    assert not caplog.records


@pytest.mark.parametrize("truncation", ["keep_end", "paper"])
def test_states_of_a_runs_cut_prompts_can_be_had_again(tiny_run, tmp_path, caplog, truncation):
    config, folder = copy.deepcopy(tiny_run[0]), tmp_path / "run"
    config.tokens.max_tokens, config.tokens.truncation = 16, truncation
    pipeline.open_run(config, str(folder)).close()
    shutil.copytree(tiny_run[1] / "adapters", folder / "adapters")
    texts = [example.inputs for example in mossa.load_task(config, "copy_first")]
    bound = {"max_tokens": config.tokens.max_tokens, "truncation": config.tokens.truncation}
    with caplog.at_level(logging.WARNING, "mossa_jax"):
        model = mossa.load_model(config.base)
        adapter = str(folder / "adapters/copy_first")
        states = mossa.layer_states(model, texts, adapter=adapter, **bound)
    assert "10 of 12 prompts are longer" in caplog.text
    run_folder = pipeline.open_run(config, str(folder))
    try:
        run = pipeline.Run(config, run_folder, Stop())
        (task,) = [task for task in run.suite.tasks if task.name == "copy_first"]
        encoded = run.encoded(task, "test")
        ids = [encoded.examples.prompt(row) for row in range(len(encoded))]
        kept = models.model_states(run, ["copy_first"], ids)
    finally:
        run_folder.close()
    for layer, name in enumerate(kept.names):
        assert distance(states[name], np.asarray(kept.states)[0, layer, : len(texts)]) < 1e-6, name


def test_cells_of_a_run_can_be_had_again(tiny_run):
    config, folder = tiny_run
    examples = mossa.load_task(config, "last_word")
    adapters = folder / "adapters"
    table = mossa.compare(
        config.base, str(adapters / "tuned"), str(adapters / "last_word"), [example.inputs for example in examples],
        max_tokens=config.tokens.max_tokens, items="guess", permutations=config.compare.permutations, seed=config.seed,
        templates=[example.template for example in examples],
    )  # fmt: skip
    cells = pd.read_parquet(folder / "results/cka.parquet")
    cells = cells[(cells.experimental == "tuned") & (cells.control == "last_word") & (cells.task == "last_word")]
    for column in ("cka", "null_mean", "p"):
        np.testing.assert_allclose(table[column].to_numpy(), cells[column].to_numpy(), atol=2e-6, err_msg=column)
    assert table.undefined.tolist() == cells.undefined.tolist()


def token_rows(model, texts, **options):
    """All tokens' states, layer name -> [tokens, D], in float64."""
    return {
        name: rows.astype(np.float64) for name, rows in mossa.layer_states(model, texts, "tokens", **options).items()
    }


def test_pool_all_makes_every_token_a_row(model, tiny_adapters):
    (first, second), texts = [str(folder) for folder, _ in tiny_adapters], TEXTS[:12]
    table = mossa.compare(model, first, second, texts, pool="all")
    sides = [token_rows(model, texts, adapter=adapter) for adapter in (first, second)]
    assert list(table.columns) == ["layer", "estimator", "cka", "low", "high", "n", "undefined"]
    assert set(table.n) == {len(sides[0]["1"])} and table.low.isna().all() and table.high.isna().all()
    for row in table.itertuples():
        wanted = getattr(float64, row.estimator)(sides[0][row.layer], sides[1][row.layer])
        assert row.cka == pytest.approx(wanted, abs=2e-6), (row.layer, row.estimator)


def test_several_lists_of_prompts_give_one_table(model, tiny_adapters):
    adapter, lists = str(tiny_adapters[0][0]), {"first": TEXTS[:9], "second": TEXTS[9:]}
    table = mossa.compare(model, "pretrained", adapter, lists, pool="mean")
    assert list(table.columns)[:2] == ["prompts", "layer"] and table.prompts.unique().tolist() == list(lists)
    for name, texts in lists.items():
        alone = mossa.compare(model, "pretrained", adapter, texts, pool="mean")
        rows = table[table.prompts == name].drop(columns="prompts").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, alone, atol=2e-6)


def test_permutations_add_p_and_q(model, tiny, tmp_path):
    # Blocks below the adapter are the same on both sides, which is no test.
    write_adapter(tiny.folder, tmp_path / "upper", layers=[2])
    items = [number // 2 for number in range(40)]
    table = mossa.compare(
        model, "pretrained", str(tmp_path / "upper"), TEXTS, permutations=99, items=items, pool="mean"
    )
    assert list(table.columns)[5:] == ["n", "null_mean", "p", "q", "undefined"]
    assert set(table[table.q.isna()].layer) == {"embed", "1", "2"} and (table.p == 0.01).all()
    assert (table.q.dropna() == 0.01).all()
    plain = mossa.compare(model, "pretrained", str(tmp_path / "upper"), TEXTS, items=items, pool="mean")
    pd.testing.assert_frame_equal(table.drop(columns=["null_mean", "p", "q"]), plain)


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


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"pool": "first"}, 2, "last, mean, all"),
        ({"truncation": "right"}, 2, "keep_end, paper"),
        ({"permutations": -1}, 2, "permutations=-1"),
        ({"seed": -1}, 2, "seed=-1"),
        ({"pool": "all", "permutations": 9}, 2, "keeps no rows"),
        ({"pool": "all", "items": [1] * 8}, 2, "every token a row"),
        ({"items": "guessed"}, 2, "guess"),
        ({"items": [1, 2]}, 3, "each of 8 rows"),
        ({"templates": ["a"] * 8}, 3, "whole numbers"),
        ({"prompts": {}}, 3, "no lists"),
        ({"prompts": {"a": TEXTS[:8], "b": "text"}}, 3, "list of texts"),
        ({"prompts": {"a": TEXTS[:8]}, "items": {"b": [1] * 8}}, 3, "'b'"),
        ({"prompts": {"a": TEXTS[:8]}, "items": [1] * 8}, 3, "by the same names"),
        ({"control": "whole", "pool": "all"}, 2, "whole models"),
    ],
)
def test_options_of_a_comparison_that_are_refused(model, tiny, tiny_adapters, change, code, words):
    given = {"control": str(tiny_adapters[0][0]), "prompts": TEXTS[:8]} | change
    given["control"] = str(tiny.folder) if given["control"] == "whole" else given["control"]
    with pytest.raises(Refusal, match=words) as caught:
        mossa.compare(model, "pretrained", **given)
    assert caught.value.code == code and "\n" not in str(caught.value)


def test_a_model_and_states_print_as_one_line(model):
    count = sum(leaf.size for leaf in jax.tree.leaves(model.state))
    assert repr(model) == (f"Model({model.name!r}: llama, 3 layers x width 32, {count:,} parameters, float32, 1 x cpu)")
    tokens = mossa.layer_states(model, ["a river", "the mill stands"], pool="tokens")
    rows = len(tokens["1"])
    assert repr(tokens) == f"TokenStates(5 layers x {rows} tokens of 2 prompts x width 32)"


def test_vocabularies_need_to_agree_on_the_prompts_alone(model, tiny, tmp_path):
    """A model with one more token, as after tuning; one with too few rows; one that reads the prompts otherwise."""
    wider = pathlib.Path(shutil.copytree(tiny.folder, tmp_path / "wider"))
    stored = load_file(wider / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        stored[name] = np.concatenate([stored[name], np.ones((1, 32), np.float32)])
    save_file(stored, wider / "model.safetensors", {"format": "pt"})
    edit(wider, "config.json", vocab_size=VOCAB + 1)
    expected = mossa.compare(model, "pretrained", str(tiny.folder), TEXTS[:8])
    pd.testing.assert_frame_equal(mossa.compare(model, "pretrained", str(wider), TEXTS[:8]), expected)
    other = pathlib.Path(shutil.copytree(tiny.folder, tmp_path / "other"))
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    pieces = vocabulary["model"]["vocab"]
    pieces[3:] = pieces[:2:-1]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    narrower = pathlib.Path(shutil.copytree(tiny.folder, tmp_path / "narrower"))
    stored = load_file(narrower / "model.safetensors")
    stored |= {name: stored[name][:40] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(stored, narrower / "model.safetensors", {"format": "pt"})
    edit(narrower, "config.json", vocab_size=40)
    for side, words in ((other, "prompt . has other ids"), (narrower, "40 rows")):
        with pytest.raises(Refusal, match=words) as caught:
            mossa.compare(model, "pretrained", str(side), [" ".join(WORDS), *TEXTS[:8]])
        assert caught.value.code == 3


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
