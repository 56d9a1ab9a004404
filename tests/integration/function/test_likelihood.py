"""Log probabilities of given answers, against torch one pair at a time, and what the measures make of them."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.function import information as measure
from mossa_jax.function import likelihood
from mossa_jax.function.likelihood import AskedPrompts, ContinuationShape, log_likelihoods
from mossa_jax.llama.adapters import stack, zero_adapter
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.states import PassConfig
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.packing import Packing
from tests.support.processes import together
from tests.support.tiny_llama import VOCAB, torch_model, write_adapter, write_family

CONFIG = PassConfig("last", 3, Packing(32, 48))


def examples(count=12, seed=0, shared=(), vocab=VOCAB):
    """Pairs of random ids, EOS last; `shared` follows BOS in every prompt."""
    rng = np.random.default_rng(seed)
    draw = lambda size: rng.integers(3, vocab, size).tolist()  # noqa: E731
    return [Encoded([1, *shared, *draw(rng.integers(2, 9))], [*draw(rng.integers(0, 5)), 2]) for _ in range(count)]


def torch_likelihoods(reference, pairs):
    """Returns log p of each answer, by a float64 softmax over the logits of each pair alone."""
    torch = pytest.importorskip("torch")
    values = []
    for pair in pairs:
        with torch.no_grad():
            logits = reference(torch.tensor([[*pair.prompt, *pair.answer]])).logits[0].double()
        scores = torch.log_softmax(logits[len(pair.prompt) - 1 : -1], dim=-1)
        values.append(float(scores[np.arange(len(pair.answer)), pair.answer].sum()))
    return np.asarray(values)


@pytest.mark.parametrize(("shared", "head_tokens"), [((), 1_024), (tuple(range(5, 17)), 1_024), ((), 6)])
def test_likelihoods_of_several_adapters_equal_torch(tiny, tiny_adapters, monkeypatch, shared, head_tokens):
    monkeypatch.setattr(likelihood, "HEAD_TOKENS", head_tokens)
    model = load_model(str(tiny.folder))
    pairs = [*examples(shared=shared), Encoded([1, *range(3, 41)], [7, 2])]
    adapters = stack(
        model.architecture, [{}, *(load_adapter(folder, model.architecture) for folder, _ in tiny_adapters)]
    )
    ours = log_likelihoods(model, adapters, in_memory(pairs), CONFIG)
    wanted = [torch_likelihoods(each, pairs) for each in (tiny.torch_model, *(torch for _, torch in tiny_adapters))]
    assert ours.shape == (3, 13) and ours.dtype == np.float64
    np.testing.assert_allclose(ours, wanted, rtol=2e-5)


def test_common_shapes_change_nothing_and_share_a_program(tiny, tiny_adapters):
    model = load_model(str(tiny.folder))
    arch = model.architecture
    adapters = stack(arch, [{}, load_adapter(tiny_adapters[0][0], arch)])
    lists = [in_memory(examples(count, seed)) for seed, count in enumerate((5, 30, 17))]
    shape = ContinuationShape.of(map(AskedPrompts.of, lists), arch, CONFIG, mesh_lib.single_device())
    programs = (likelihood.read_rows, likelihood.branch_losses)
    before = [program._cache_size() for program in programs]
    common = [log_likelihoods(model, adapters, pairs, CONFIG, shape) for pairs in lists]
    # A full batch, and a smaller one for what full ones leave.
    assert all(0 < program._cache_size() - count <= 2 for program, count in zip(programs, before, strict=True))
    for pairs, ours in zip(lists, common, strict=True):
        np.testing.assert_allclose(ours, log_likelihoods(model, adapters, pairs, CONFIG), rtol=1e-5)


def test_equal_pairs_are_read_once(tiny):
    model = load_model(str(tiny.folder))
    few = examples(7, seed=5)
    # The same ids with another end of the prompt are another pair.
    moved = Encoded([*few[0].prompt, *few[0].answer[:1]], few[0].answer[1:] or [2])
    order = [0, 3, 0, 1, 6, 7, 6, 2, 5, 4, 3]
    pairs = in_memory([[*few, moved][index] for index in order])
    asked = AskedPrompts.of(pairs)
    assert len(asked.prompts) == 8 == sum(map(len, asked.answers))
    (once,) = log_likelihoods(model, zero(model), in_memory([*few, moved]), CONFIG)
    (ours,) = log_likelihoods(model, zero(model), pairs, CONFIG)
    np.testing.assert_allclose(ours, once[order], rtol=1e-5)
    assert ours[0] == ours[2] and len(set(ours)) == 8


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "phi3", "granite", "phi3_longrope"])
def test_families_with_windows_caps_and_scalings_of_their_own_equal_torch(family, tmp_path):
    """Prompts are several windows long: in a windowed block an answer sees the end of its prompt alone."""
    tiny, rng = write_family(tmp_path / family, family), np.random.default_rng(1)
    model = load_model(str(tiny.folder))
    # With LongRoPE pairs stay within the original length, 24.
    sizes = (2, 6, 9) if family == "phi3_longrope" else (2, 11, 24, 33)
    prompts = [[1, *rng.integers(3, VOCAB, size).tolist()] for size in sizes]
    answers = [[*rng.integers(3, VOCAB, size).tolist(), 2] for size in (1, 6, 11)]
    pairs = [Encoded(prompt, answer) for answer in answers for prompt in prompts]
    (ours,) = log_likelihoods(model, zero(model), in_memory(pairs), PassConfig("last", 3, Packing(64)))
    np.testing.assert_allclose(ours, torch_likelihoods(torch_model(tiny.folder), pairs), rtol=5e-5)


def test_a_prompt_is_read_once_whatever_the_number_of_its_answers(tiny, monkeypatch):
    """Eight answers of many ids to each of few prompts: more turns behind the prompts, no further reading."""
    model, rng = load_model(str(tiny.folder)), np.random.default_rng(3)
    prompts = [[1, *rng.integers(3, VOCAB, 6).tolist()] for _ in range(5)]
    answers = [[*rng.integers(3, VOCAB, size).tolist(), 2] for size in (0, 1, 5, 9, 13, 2, 7, 11)]
    pairs = [Encoded(prompt, answer) for answer in answers for prompt in prompts]
    calls = dict.fromkeys(("read_rows", "branch_losses"), 0)
    for name in calls:
        program = getattr(likelihood, name)

        def count(*arguments, name=name, program=program):
            calls[name] += 1
            return program(*arguments)

        monkeypatch.setattr(likelihood, name, count)
    (ours,) = log_likelihoods(model, zero(model), in_memory(pairs), CONFIG)
    np.testing.assert_allclose(ours, torch_likelihoods(tiny.torch_model, pairs), rtol=2e-5)
    assert calls["read_rows"] == 1 and calls["branch_losses"] > 3


def test_measures_of_a_real_model_equal_a_count_by_hand(stories, tmp_path):
    torch_models = [torch_model(stories), write_adapter(stories, tmp_path, seed=1)]
    model = load_model(str(stories))
    tokenizer, arch = model.tokenizer("none"), model.architecture
    texts = [f"Once there was a {word}. The {word} was" for word in "cat dog bird fish boy girl tree car".split()]
    answers = "big and red|sad|happy.|a very good friend|lost|hungry|tall|fast".split("|")
    prompts, targets = tokenizer.prompts(texts), tokenizer.answers(answers)
    encoded = in_memory(Encoded(p, a) for p, a in zip(prompts, targets, strict=True))
    pairs = measure.make_pairs(tokenizer, encoded, np.arange(8), max_tokens=64, truncation="keep_end", seed=(0,))
    assert len(pairs.swaps) == 4 and len(pairs.pairs) == 40
    adapters = stack(arch, [{}, load_adapter(tmp_path, arch)])
    ours = log_likelihoods(model, adapters, pairs.pairs, PassConfig("last", 4, Packing(64)))
    for likelihoods, reference in zip(ours, torch_models, strict=True):
        own = torch_likelihoods(reference, [Encoded(p, a) for p, a in zip(prompts, targets, strict=True)])
        others = [
            torch_likelihoods(reference, [Encoded(p, targets[j]) for p, j in zip(prompts, swap, strict=True)])
            for swap in pairs.swaps
        ]
        nll, bits = measure.answer_nll(pairs, likelihoods), measure.information(pairs, likelihoods)
        assert nll.value == pytest.approx(-own.sum() / sum(map(len, targets)), rel=1e-5)
        assert bits.value == pytest.approx(own.mean() - np.mean(others), abs=1e-4)
        assert nll.low < nll.value < nll.high and bits.low < bits.value < bits.high


def test_a_prompt_is_cut_once_for_all_of_its_answers(tiny):
    tokenizer = load_model(str(tiny.folder)).tokenizer("none")
    long_prompt, long_answer = Encoded([1, *range(3, 40)], [9, 8, 2]), Encoded([1, 5], [*([6] * 40), 2])
    encoded = in_memory([*examples(9, seed=4), long_prompt, long_answer])
    pairs = measure.make_pairs(tokenizer, encoded, np.arange(11), max_tokens=16, truncation="keep_end", seed=(0,))
    assert pairs.pairs.lengths.max() == 16 and pairs.lengths[10] == 15
    for prompt in range(11):
        versions = {tuple(pairs.pairs.prompt(prompt + 11 * swap)) for swap in range(1 + len(pairs.swaps))}
        assert len(versions) == 1
    # Both keep BOS, and the long prompt its end.
    assert pairs.pairs.prompt(9)[0] == 1 and pairs.pairs.prompt(9)[-1] == 39


def test_an_untrained_model_knows_nothing_of_random_answers(tiny):
    model = load_model(str(tiny.folder))
    encoded, items = in_memory(examples(60, seed=8)), np.arange(60)
    pairs = measure.make_pairs(model.tokenizer("none"), encoded, items, max_tokens=32, truncation="keep_end", seed=(0,))
    (likelihoods,) = log_likelihoods(model, zero(model), pairs.pairs, CONFIG)
    value, low, high = measure.information(pairs, likelihoods)
    assert low < 0 < high and value != 0 and likelihoods.std() > 1


def zero(model):
    """The base alone, as a stack of adapters."""
    return stack(model.architecture, [zero_adapter(model.architecture)])


def test_a_model_that_cannot_see_its_prompt_has_exactly_none(tiny):
    """Without the outputs of attention a token sees itself alone; answers begin after the same last id."""
    model = load_model(str(tiny.folder))
    state = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "o_proj" in jax.tree_util.keystr(path) else leaf, model.state
    )
    blind = dataclasses.replace(model, state=state)
    closed = in_memory(Encoded([*example.prompt, 11], example.answer) for example in examples(30, seed=2))
    pairs = measure.make_pairs(
        model.tokenizer("none"), closed, np.arange(30), max_tokens=32, truncation="keep_end", seed=(0,)
    )
    values = [
        measure.information(pairs, log_likelihoods(each, zero(model), pairs.pairs, CONFIG)[0]).value
        for each in (blind, model)
    ]
    assert values[0] == 0 and abs(values[1]) > 1e-3


@pytest.mark.parametrize("meshes", ["2,2,2", pytest.param("1,8,1 4,1,2", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(tiny, tiny_adapters, root, tmp_path, meshes):
    model = load_model(str(tiny.folder))
    arch = model.architecture
    adapters = stack(arch, [{}, *(load_adapter(folder, arch) for folder, _ in tiny_adapters), {}])
    pairs = examples(20, seed=6)
    columns = {}
    for name in ("prompt", "answer"):
        lists = [list(getattr(pair, name)) for pair in pairs]
        columns[f"{name}s"] = np.asarray([ids + [-1] * (20 - len(ids)) for ids in lists])
    flat = {f"{target}.{side}": leaf for target, update in adapters.items() for side, leaf in update.items()}
    np.savez(tmp_path / "inputs.npz", **columns, **flat)
    script = root / "tests/support/likelihoods_on_meshes.py"
    arguments = [tiny.folder, tmp_path / "inputs.npz", tmp_path / "result.npy", meshes]
    together([[sys.executable, script, *arguments]], root, 8, tmp_path)
    alone = log_likelihoods(model, adapters, in_memory(pairs), PassConfig("last", 4, Packing(32)))
    for ours in np.load(tmp_path / "result.npy"):
        np.testing.assert_allclose(ours, alone, rtol=2e-5)
    assert np.abs(alone[1] - alone[0]).min() > 1e-3
