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


def test_a_tokenizer_without_bos_belongs_to_a_model_without_one(folder, tokenizer):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "bos_token"}))
    bare = load_tokenizer(folder, "none", 1, (2,))  # as Qwen: config.json names one, nothing was trained with it
    assert bare.prompts(TEXTS) == [ids[1:] for ids in tokenizer.prompts(TEXTS)]


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


@pytest.mark.parametrize("truncation", ["keep_end", "paper"])
def test_long_pairs_are_cut_in_proportion(tokenizer, truncation):
    examples = [
        Example(" ".join(["red mill", "river boats"] * 15), TEXTS[2]),
        Example("a mill", "a boat"),
    ]
    prompt, answer = tokenizer.prompts([examples[0].inputs])[0], tokenizer.answers([examples[0].targets])[0]
    limit = (len(prompt) + len(answer)) // 2
    encoded, cut = encode_examples(tokenizer, examples, limit, truncation)
    assert cut == 1
    share = len(answer) * limit // (len(prompt) + len(answer))
    assert 0 < share < len(answer)
    assert encoded[0].answer == answer[:share] and len(encoded[0].prompt) == limit - share
    if truncation == "paper":
        assert encoded[0].prompt == prompt[: limit - share]
    else:
        assert encoded[0].prompt[0] == 1 and encoded[0].prompt[-5:] == prompt[-5:]
    assert encoded[1].prompt == tokenizer.prompts([examples[1].inputs])[0] and encoded[1].answer[-1] == 2
    # An answer keeps at least one id beside the longest prompt.
    tight, _ = encode_examples(tokenizer, [Example(" ".join(["mill"] * 90), "a")], 12, truncation)
    assert len(tight[0].answer) == 1 and len(tight[0].prompt) == 11


def test_prompts_are_cut_on_the_right_as_in_the_paper(tokenizer):
    whole = tokenizer.prompts(TEXTS)
    found, cut = encode_prompts(tokenizer, TEXTS, 4, "paper")
    assert found == [ids[:4] for ids in whole] and cut == sum(len(ids) > 4 for ids in whole) > 0
    for truncation in ("keep_end", "paper"):
        assert encode_prompts(tokenizer, TEXTS, 500, truncation) == (whole, 0)
        assert encode_prompts(tokenizer, [], 4, truncation) == ([], 0)


def test_keeping_the_end_keeps_bos_and_the_templates_head(folder, tokenizer):
    whole = tokenizer.prompts([TEXTS[2]])[0]
    found, cut = encode_prompts(tokenizer, [TEXTS[2]], 8, "keep_end")
    assert cut == 1 and len(found[0]) == 8
    assert found[0][0] == 1 and found[0][-6:] == whole[-6:]
    llama2 = load_tokenizer(folder, "llama2", 1, (2,))
    first, second = llama2.prompts([" ".join(["mill"] * 60), "zebra"])
    head = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    limit = 2 * head + 10
    long = llama2.prompts([" ".join(["mill"] * (2 * head))])[0]
    short = encode_prompts(llama2, [" ".join(["mill"] * (2 * head))], limit, "keep_end")[0][0]
    assert len(long) > limit == len(short)
    assert short[: head - 2] == long[: head - 2] and short[-10:] == long[-10:]
