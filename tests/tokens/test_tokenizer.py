"""Prompts, templates, answers and truncation."""

import json

import pytest
from tiny_llama import copy_tokenizer

from mossa_jax.rundir import Refusal
from mossa_jax.tasks.suite import Example
from mossa_jax.tokens.tokenizer import encode_examples, encode_prompts, load_tokenizer

TEXTS = ["the big red mill", "a boat", "rain comes from the hills and the river goes under it"]


@pytest.fixture
def folder(tmp_path):
    copy_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture
def tokenizer(folder):
    return load_tokenizer(folder, "none", 1, (2,))


def add_bos_by_itself(folder):
    """Makes the stored tokenizer put id 1 in front whenever special tokens are asked for."""
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    name = next(token["content"] for token in stored["added_tokens"] if token["id"] == 1)
    stored["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [1], "tokens": [name]}},
    }
    path.write_text(json.dumps(stored))
    return name


def test_bos_stands_in_front_exactly_once(folder, tokenizer):
    plain = tokenizer.prompts(TEXTS)
    name = add_bos_by_itself(folder)
    eager = load_tokenizer(folder, "none", 1, (2,))
    assert eager.library(TEXTS[0]).input_ids[0] == 1  # it does add BOS by itself
    for prompts in (plain, eager.prompts(TEXTS), tokenizer.prompts([name + text for text in TEXTS])):
        assert prompts == plain
        assert all(ids[0] == 1 and ids.count(1) == 1 for ids in prompts)
    assert [tokenizer.library.decode(ids[1:]).strip() for ids in plain] == TEXTS
    without = load_tokenizer(folder, "none", None, (2,))
    assert without.bos == without.library.bos_token_id


def test_answers_end_in_eos_and_decode_to_the_text(tokenizer):
    for ids, text in zip(tokenizer.answers(TEXTS), TEXTS, strict=True):
        assert ids[-1] == 2 and ids.count(2) == 1 and 1 not in ids
        assert tokenizer.text([*ids, 2, 2]) == text
        assert tokenizer.text(ids[:-1]) == text
    assert tokenizer.text([2, 5, 6]) == ""


def test_templates(folder):
    llama2 = load_tokenizer(folder, "llama2", 1, (2,))
    library = llama2.library
    rendered = library.decode(llama2.prompts(["the mill"])[0][1:])
    assert rendered.lstrip().startswith("[INST] <<SYS>>") and rendered.rstrip().endswith("the mill [/INST]")
    with pytest.raises(Refusal, match="chat template") as caught:
        load_tokenizer(folder, "chat", 1, (2,))
    assert caught.value.code == 3
    config = json.loads((folder / "tokenizer_config.json").read_text())
    bos = library.convert_ids_to_tokens(1)
    config["chat_template"] = bos + "{% for m in messages %}ask {{ m.content }}{% endfor %} say"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ids = load_tokenizer(folder, "chat", 1, (2,)).prompts(["the mill"])[0]
    assert ids.count(1) == 1 and library.decode(ids[1:]).strip() == "ask the mill say"


def test_the_llama2_template_has_133_ids_before_the_content(stories):
    """Known of the Llama 2 vocabulary; a tokenizer of another size says nothing about it."""
    tokenizer = load_tokenizer(stories, "llama2", 1, (2,))
    if len(tokenizer.library) != 32000:
        pytest.skip(f"the tokenizer at hand has {len(tokenizer.library)} ids, not Llama 2's 32000")
    first, second = tokenizer.prompts(["zebra", "under"])
    shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert shared == 133


def test_no_tokenizer_and_no_eos_are_refused(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Refusal, match="tokenizer") as caught:
        load_tokenizer(empty, "none", 1, (2,))
    assert caught.value.code == 3


def test_long_pairs_are_cut_in_proportion(tokenizer):
    examples = [Example(" ".join(["mill"] * 30), " ".join(["boat"] * 10)), Example("a mill", "a boat")]
    prompt, answer = tokenizer.prompts([examples[0].inputs])[0], tokenizer.answers([examples[0].targets])[0]
    limit = 20
    encoded, cut = encode_examples(tokenizer, examples, limit)
    assert cut == 1
    share = len(answer) * limit // (len(prompt) + len(answer))
    assert 0 < share < len(answer)
    assert encoded[0].answer == answer[:share] and encoded[0].prompt == prompt[: limit - share]
    whole = tokenizer.prompts([examples[1].inputs])[0]
    assert encoded[1].prompt == whole and encoded[1].answer[-1] == 2
    # An answer keeps at least one id beside the longest prompt.
    tight, _ = encode_examples(tokenizer, [Example(" ".join(["mill"] * 90), "a")], 12)
    assert len(tight[0].answer) == 1 and len(tight[0].prompt) == 11


def test_prompts_are_cut_on_the_right(tokenizer):
    whole = tokenizer.prompts(TEXTS)
    found, cut = encode_prompts(tokenizer, TEXTS, 4)
    assert found == [ids[:4] for ids in whole] and cut == sum(len(ids) > 4 for ids in whole) > 0
    assert encode_prompts(tokenizer, TEXTS, 500) == (whole, 0)
    assert encode_prompts(tokenizer, [], 4) == ([], 0)
