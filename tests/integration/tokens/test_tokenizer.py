"""Prompts, templates, answers and truncation."""

import json
import os
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from mossa_jax.errors import Refusal
from mossa_jax.tasks.miniature import miniature
from mossa_jax.tokens.tokenizer import cut_pair, cut_prompt, encode_prompts, load_tokenizer
from tests.support.paths import SHARED
from tests.support.tiny_llama import copy_tokenizer

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


def test_bos_comes_first_exactly_once(folder, tokenizer):
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


def test_each_template_gives_its_own_prompt(folder):
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


# Meta's layout of a Llama 2 conversation, for `apply_chat_template` as the independent encoder.
LLAMA2_CHAT = (
    "{{ bos_token }}[INST] <<SYS>>\n{{ messages[0]['content'] }}\n<</SYS>>\n\n{{ messages[1]['content'] }} [/INST]"
)


def real_prompts(count):
    """Prompts of the real tasks where they are at hand, and of the miniature elsewhere."""
    files = sorted((SHARED / "data/instructions/test").glob("*.jsonl"))
    if files:
        per_file = -(-count // len(files))
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()[:per_file]]
        return [json.loads(line)["inputs"] for line in lines][:count]
    tasks = miniature(train=8, test=10).tasks
    return [row.inputs for task in tasks for row in task.examples("test")][:count]


def test_llama2_prompts_equal_those_of_transformers(folder):
    from transformers.models.llama.tokenization_llama import DEFAULT_SYSTEM_PROMPT

    stories = SHARED / "models/stories260K"
    folders = [folder, *([stories] if stories.exists() else []), *llama2_tokenizers()]
    texts = real_prompts(200)
    assert len(set(texts)) == 200
    for place in folders:
        ours = load_tokenizer(place, "llama2", 1, (2,))
        library = AutoTokenizer.from_pretrained(str(place))
        system = {"role": "system", "content": DEFAULT_SYSTEM_PROMPT}
        for text, ids in zip(texts, ours.prompts(texts), strict=True):
            messages = [system, {"role": "user", "content": text}]
            rendered = library.apply_chat_template(messages, chat_template=LLAMA2_CHAT, tokenize=False)
            # The authors encode what stands behind BOS by itself, so that it begins as any text does.
            assert ids == [1, *library.encode(rendered.removeprefix(library.bos_token), add_special_tokens=False)]
        closing = library("a [/INST]", add_special_tokens=False).input_ids[-1]
        limit, answer = 4 * len(ours.head) // 3 + 40, ours.answers(["red mill"])[0]
        joined = [" ".join(texts[start : start + 40]) for start in range(len(texts))]
        for whole in ours.prompts([*texts, *joined]):
            for short in (
                cut_pair(ours, whole, answer, limit, "keep_end")[0],
                cut_prompt(ours, whole, limit, "keep_end"),
            ):
                assert len(short) == len(whole) or limit - len(answer) <= len(short) <= limit < len(whole) + len(answer)
                assert short[: len(ours.head)] == [*ours.head] and short[-1] == closing
            # The paper's cut loses the closing marker wherever it cuts: nothing else is promised.
            assert cut_prompt(ours, whole, limit, "paper") == whole[:limit]
        assert encode_prompts(ours, joined, limit, "keep_end")[1] > 100


def llama2_tokenizers():
    """A folder with Llama 2's own tokenizer, where the environment names one."""
    return [os.environ["MOSSA_LLAMA2_TOKENIZER"]] if "MOSSA_LLAMA2_TOKENIZER" in os.environ else []


def test_the_llama2_template_has_133_ids_before_the_content():
    """Known of the Llama 2 vocabulary; a tokenizer of another size says nothing about it."""
    if not llama2_tokenizers():
        pytest.skip("MOSSA_LLAMA2_TOKENIZER names no folder with Llama 2's tokenizer")
    tokenizer = load_tokenizer(llama2_tokenizers()[0], "llama2", 1, (2,))
    assert len(tokenizer.library) == 32000
    assert len(tokenizer.head) == 133
    prompts = tokenizer.prompts(real_prompts(200))
    assert {tuple(ids[-4:]) for ids in prompts} == {(518, 29914, 25580, 29962)}
    assert {tuple(ids[:133]) for ids in prompts} == {tokenizer.head}


def test_the_record_differs_between_templates_and_is_checked(folder, tokenizer):
    llama2 = load_tokenizer(folder, "llama2", 1, (2,))
    assert tokenizer.record["text"] == "{content}"
    assert llama2.record["name"] == "llama2" and llama2.record["text"].startswith("[INST] <<SYS>>")
    assert len({tokenizer.record["digest"], llama2.record["digest"]}) == 2
    assert replace(tokenizer, bos=None).record["digest"] != tokenizer.record["digest"]
    assert len({t.identity for t in (tokenizer, llama2, load_tokenizer(folder, "none", 1, (3,)))}) == 3
    tokenizer.check_record(None, "x")
    tokenizer.check_record(dict(tokenizer.record), "x")
    with pytest.raises(Refusal, match="llama2") as caught:
        tokenizer.check_record(llama2.record, "adapter 'x'")
    assert caught.value.code == 3 and "adapter 'x'" in str(caught.value)
    with pytest.raises(Refusal, match="another version"):
        tokenizer.check_record({**tokenizer.record, "digest": "0"}, "x")


def test_a_chat_template_that_prints_the_date_gives_the_same_prompt_every_day(folder):
    path = folder / "tokenizer_config.json"
    stored = json.loads(path.read_text())
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%H:%M:%S.%f') %}{% endif %}"
    stored["chat_template"] = dated + "{{ date_string }} {{ messages[0]['content'] }}"
    path.write_text(json.dumps(stored))
    first, second = (load_tokenizer(folder, "chat", 1, (2,)) for _ in range(2))
    assert first.record == second.record and "2024" in first.record["text"]


def test_no_tokenizer_and_no_eos_are_refused(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Refusal, match="tokenizer") as caught:
        load_tokenizer(empty, "none", 1, (2,))
    assert caught.value.code == 3


@pytest.mark.parametrize("truncation", ["keep_end", "paper"])
def test_long_pairs_are_cut_in_proportion(tokenizer, truncation):
    prompt = tokenizer.prompts([" ".join(["red mill", "river boats"] * 15)])[0]
    answer = tokenizer.answers([TEXTS[2]])[0]
    limit = (len(prompt) + len(answer)) // 2
    short, part = cut_pair(tokenizer, prompt, answer, limit, truncation)
    share = len(answer) * limit // (len(prompt) + len(answer))
    assert 0 < share < len(answer)
    assert part == answer[:share] and len(short) == limit - share
    if truncation == "paper":
        assert short == prompt[: limit - share]
    else:
        assert short[0] == 1 and short[-5:] == prompt[-5:]
    assert cut_pair(tokenizer, prompt, answer, len(prompt) + len(answer), truncation) == (prompt, answer)
    # An answer keeps at least one id beside the longest prompt.
    tight = cut_pair(tokenizer, tokenizer.prompts([" ".join(["mill"] * 90)])[0], answer[-2:], 12, truncation)
    assert len(tight[1]) == 1 and len(tight[0]) == 11


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
