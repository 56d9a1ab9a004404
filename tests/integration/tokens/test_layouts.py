"""Leading ids and chat templates of public families' tokenizers, against the tokenizers of transformers."""

import pytest
from transformers import AutoTokenizer

from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import read_architecture
from mossa_jax.tokens.tokenizer import load_tokenizer
from tests.support.model_folder_cases import CHATS
from tests.support.model_folders import TEXTS, torch_ids
from tests.support.tiny_llama import write_model
from tests.support.tokenizer_layouts import FAMILIES, edit, llama

TYPES = {"Mistral": "mistral", "Qwen 2.5": "qwen2", "Qwen 3": "qwen3"}
STRANGE = [*TEXTS, "", " a", "zebra \u00e9 \u5317 x_1", "one\ntwo  three"]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_a_family_equal_those_of_transformers(family, tmp_path):
    FAMILIES[family](tmp_path)
    edit(tmp_path, "config.json", model_type=TYPES.get(family, "llama"))
    expected = AutoTokenizer.from_pretrained(tmp_path)(STRANGE).input_ids
    assert load_tokenizer(tmp_path, "none", 1, (2,)).prompts(STRANGE) == expected


@pytest.mark.parametrize("said", [None, True, False])
def test_pieces_of_sentencepiece_get_the_models_bos_unless_their_settings_say_no(said, tmp_path):
    llama(tmp_path, bos=False)
    edit(tmp_path, "tokenizer_config.json", add_bos_token=said)
    bare = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, add_special_tokens=False).input_ids
    front = [] if said is False else [1]
    assert load_tokenizer(tmp_path, "none", 1, (2,)).prompts(TEXTS) == [front + ids for ids in bare]


@pytest.mark.parametrize("name", [name for name, case in CHATS.items() if not case.refusal])
def test_chat_prompts_equal_those_of_transformers(name, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        llama(folder)
        edit(folder, "config.json", model_type="llama")
    CHATS[name].write(ours)
    (CHATS[name].oracle or CHATS[name].write)(theirs)
    tokenizer = load_tokenizer(ours, "chat", 1, (2,))
    assert tokenizer.prompts(TEXTS) == torch_ids(theirs, "chat")
    assert tokenizer.record == load_tokenizer(ours, "chat", 1, (2,)).record


def test_an_answer_ends_in_the_tokenizers_eos_where_generation_stops_there(tmp_path):
    llama(tmp_path)
    edit(tmp_path, "config.json", model_type="llama")
    own = AutoTokenizer.from_pretrained(tmp_path).eos_token_id
    for stops, end in (((9, own, 8), own), ((9, 8), 9), ((), own)):
        tokenizer = load_tokenizer(tmp_path, "none", 1, stops)
        ids = tokenizer.answers(["the mill"])[0]
        assert ids[-1] == end
        # Whatever follows the first stop of a generated answer is no part of it.
        assert all(tokenizer.text([*ids[:-1], stop, *ids]) == tokenizer.text(ids) == "the mill" for stop in stops)


def test_a_model_without_eos_has_prompts_and_no_answers(tmp_path):
    FAMILIES["plain bytes"](tmp_path)
    edit(tmp_path, "tokenizer_config.json", eos_token=None)
    edit(tmp_path, "config.json", model_type="llama")
    tokenizer = load_tokenizer(tmp_path, "none", None, ())
    assert tokenizer.prompts(TEXTS) and tokenizer.text(tokenizer.prompts(TEXTS)[0]) == TEXTS[0]
    with pytest.raises(Refusal, match="no EOS") as caught:
        tokenizer.answers(TEXTS)
    assert caught.value.code == 3


def test_ids_are_checked_against_the_embedding_where_a_text_has_them(tmp_path):
    llama(tmp_path)
    edit(tmp_path, "config.json", model_type="llama")
    largest = max(max(ids) for ids in load_tokenizer(tmp_path, "none", 1, (2,)).prompts(TEXTS))
    assert load_tokenizer(tmp_path, "none", 1, (2,), largest + 1).prompts(TEXTS)
    tight = load_tokenizer(tmp_path, "none", 1, (2,), largest)
    for encode in (tight.prompts, tight.answers):
        with pytest.raises(Refusal, match=f"has id {largest}.*{largest} rows") as caught:
            encode(TEXTS)
        assert caught.value.code == 3
    assert tight.prompts(["t"])


def test_stops_of_generation_config_come_before_those_of_config(tmp_path):
    write_model(tmp_path)
    edit(tmp_path, "generation_config.json", eos_token_id=[7, 5])
    assert read_architecture(tmp_path).eos == (7, 5)
    edit(tmp_path, "generation_config.json", eos_token_id=None)
    assert read_architecture(tmp_path).eos == (2,)
