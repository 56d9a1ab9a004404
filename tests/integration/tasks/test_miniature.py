"""The miniature suite: what it promises about its tasks, splits, answers, text and tokenizer."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mossa_jax.tasks.miniature import HELD_OUT, TOKENIZER, miniature, pretraining_text, world
from mossa_jax.tasks.miniature.build_tokenizer import build
from mossa_jax.tasks.miniature.recipes import RECIPES
from mossa_jax.tasks.suite import SPLITS

# Tasks whose item stays the same when what the prompt shows changes places.
_UNORDERED = (
    "sentiment_review",
    "commonsense_next",
    "commonsense_use",
    "summary_topic",
    "paraphrase_synonym",
    "misc_odd_word",
)
NAMES = [recipe.name for recipe in RECIPES]
_DIGEST = """
import hashlib
from mossa_jax.tasks.miniature import miniature, pretraining_text
digest = hashlib.sha256()
for task in miniature(seed=3, train=16, validation=8, test=16).tasks:
    for split in ("train", "validation", "test"):
        for row in task.examples(split):
            digest.update(f"{task.name} {row}".encode())
digest.update("".join(pretraining_text(seed=3, documents=200)).encode())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def suite():
    return miniature()


@pytest.fixture(scope="module")
def by_name(suite):
    return {task.name: task for task in suite.tasks}


@pytest.fixture(scope="module")
def text():
    return pretraining_text()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


def test_the_suite_has_its_clusters_and_held_out_tasks(suite):
    clusters = suite.clusters()
    assert suite.name == "miniature"
    assert len(suite.tasks) == 24 and len(clusters) == 12
    assert all(len(tasks) == 2 for tasks in clusters.values())
    assert len({task.name for task in suite.tasks}) == 24
    assert len(suite.held_out) >= 2 and suite.held_out == HELD_OUT
    held_clusters = [task.cluster for task in suite.tasks if task.name in suite.held_out]
    assert len(held_clusters) == len(suite.held_out)
    assert len(set(held_clusters)) == len(held_clusters), "a held-out task's sister must stay in the mixture"


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_distinct_and_use_every_template(by_name, name):
    task = by_name[name]
    recipe = next(recipe for recipe in RECIPES if recipe.name == name)
    assert len(set(recipe.templates)) == 10
    for split, count in zip(SPLITS, (512, 64, 256), strict=True):
        rows = task.examples(split)
        assert len(rows) == count
        assert {row.template for row in rows} == set(range(10))
        assert len({row.inputs for row in rows}) == count, "a prompt stands twice"
        assert all(row.targets == row.targets.strip() != "" for row in rows)
        assert all(row.inputs == row.inputs.strip() for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_neither_prompt_nor_item(by_name, name):
    prompts = {split: {row.inputs for row in by_name[name].examples(split)} for split in SPLITS}
    # What the prompt shows, whatever the wording, names the item independently of Item.key.
    recipe = next(recipe for recipe in RECIPES if recipe.name == name)
    items = {split: {_shown(recipe, row) for row in by_name[name].examples(split)} for split in SPLITS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not prompts[one] & prompts[other]
        assert not items[one] & items[other]


def _shown(recipe, row):
    """What identifies `row`'s item, in any order, read back from the prompt by its template's own pattern."""
    pattern, seen = "", set()
    for literal, field in re.findall(r"([^{}]*)(?:\{(\w+)\})?", recipe.templates[row.template]):
        pattern += re.escape(literal)
        if field:
            pattern += f"(?P={field})" if field in seen else f"(?P<{field}>.+?)"
            seen.add(field)
    fields = re.fullmatch(pattern, row.inputs).groupdict()
    if recipe.name == "summary_topic":
        fields.pop("name", None)  # whoever wrote of three words, they stay the same three words
    if recipe.name == "summary_headline":  # colour and state are details that a headline leaves out
        return re.findall(r"In the (\w+) (\w+), who was \w+, found a \w+ (\w+)\.", row.inputs)[0]
    if recipe.name in _UNORDERED:
        return tuple(sorted(fields.values()))
    return tuple(fields[field] for field in sorted(fields))


def test_rows_ignore_counts_and_follow_the_seed():
    def keys(**how):
        return {row.inputs for row in miniature(**how).tasks[6].examples("test")}

    assert keys(test=16) <= keys(test=64)
    assert keys(seed=1, test=64) != keys(test=64)


@pytest.mark.parametrize("name", NAMES)
def test_no_item_changes_split_with_the_seed(by_name, name):
    other = {task.name: task for task in miniature(seed=9, test=128).tasks}[name]
    assert not {row.inputs for row in other.examples("test")} & {row.inputs for row in by_name[name].examples("train")}


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_dominates(by_name, name):
    for split in ("train", "test"):
        rows = by_name[name].examples(split)
        (answer, count), *_ = Counter(row.targets for row in rows).most_common(1)
        assert count <= 0.6 * len(rows), f"{answer!r} is {count} of {len(rows)}"


def test_rows_are_the_same_under_any_hash_seed():
    digests = set()
    for hash_seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    here = hashlib.sha256()
    for task in miniature(seed=3, train=16, validation=8, test=16).tasks:
        for split in SPLITS:
            for row in task.examples(split):
                here.update(f"{task.name} {row}".encode())
    here.update("".join(pretraining_text(seed=3, documents=200)).encode())
    assert digests == {here.hexdigest() + "\n"}


def test_rows_are_drawn_once_per_suite():
    first, other = (miniature(train=4, validation=4, test=4).tasks[0] for _ in range(2))
    for one, again in zip(first.rows("test"), first.rows("test"), strict=True):
        assert one is again
    assert first.examples("test") == other.examples("test") != first.examples("train")
    assert first.examples("test")[0] is not other.examples("test")[0]
    assert first.fingerprint("test") == other.fingerprint("test") != first.fingerprint("train")


def _rows(by_name, name):
    return [row for split in SPLITS for row in by_name[name].examples(split)]


def _words(text):
    return re.findall(r"[A-Za-z]+", text)


def _told_facts(text, values):
    """Town -> the values told of it: those that share a sentence, or a document, with it most often."""
    told = {town: Counter() for town in world.TOWNS}
    for document in text:
        words = set(_words(document))
        for town in words & told.keys():
            told[town].update(words & set(values))
    return told


@pytest.mark.parametrize(("name", "values"), [("facts_country", world.COUNTRIES), ("facts_craft", world.CRAFTS)])
def test_facts_are_what_the_text_tells(by_name, text, name, values):
    told = _told_facts(text, values)
    for row in _rows(by_name, name):
        (town,) = set(_words(row.inputs)) & set(world.TOWNS)
        assert set(told[town]) == {row.targets}, row
        assert told[town][row.targets] >= 20


def test_reading_answers(by_name):
    for row in _rows(by_name, "reading_who"):
        ((owner, thing),) = re.findall(r"(\w+) has a \w+ (\w+) in the \w+\.", row.inputs)
        assert re.findall(r"who has the (\w+)\?", row.inputs) == [thing] and row.targets == owner
    for row in _rows(by_name, "reading_where"):
        ((name, place),) = re.findall(r"(\w+) saw a \w+ \w+ in the (\w+)\.", row.inputs)
        assert re.findall(r"where is (\w+)\?", row.inputs) == [name] and row.targets == place


def test_reasoning_answers(by_name):
    for name, told, ask, acts in (
        ("reasoning_will", r"([A-Z]\w+) is (\w+) in the", r"what will (\w+) do\?", world.NEXT_ACTION),
        ("reasoning_can", r"(\w+) has the (\w+) in the", r"what can (\w+) do\?", world.USE_OF),
    ):
        for row in _rows(by_name, name):
            ((who, what),) = re.findall(told, row.inputs)
            assert re.findall(ask, row.inputs) == [who] and row.targets == acts[what]


def test_inference_answers(by_name):
    categories, sides = set(world.CATEGORIES), {"inside", "outside"}
    for row in _rows(by_name, "inference_category"):
        words = _words(row.inputs)
        (noun,) = set(words) & set(world.NOUNS)
        (claimed,) = set(words) & categories
        people = set(words) & set(world.PEOPLE)
        right = noun in world.CATEGORIES[claimed]
        assert row.targets == ("maybe" if len(people) == 2 else "yes" if right else "no")
    for row in _rows(by_name, "inference_place"):
        words = set(_words(row.inputs))
        (place,), (claimed,) = words & set(world.PLACES), words & sides
        right = (place in world.OUTSIDE) == (claimed == "outside")
        assert row.targets == ("maybe" if len(words & set(world.PEOPLE)) == 2 else "yes" if right else "no")


def test_paraphrase_answers(by_name):
    pairs = {frozenset(pair) for pair in world.SYNONYMS}
    for row in _rows(by_name, "paraphrase_synonym"):
        shown = re.findall(r"The (\w+) \w+ ran", row.inputs)
        assert row.targets == ("yes" if frozenset(shown) in pairs else "no")
    for row in _rows(by_name, "paraphrase_exchange"):
        ((giver, taker),) = re.findall(r"(\w+) gave (\w+)", row.inputs)
        ((goal, source),) = re.findall(r"(\w+) got the \w+ from (\w+)", row.inputs)
        assert row.targets == ("yes" if (giver, taker) == (source, goal) else "no")


@pytest.mark.parametrize("language", ["Tavi", "Rund"])
def test_translations_follow_the_told_dictionary(by_name, text, language):
    told = dict(re.findall(r"word for (\w+) is (\w+)", " ".join(d for d in text if d.startswith(f"In {language} "))))
    assert sorted(told) == sorted(world.SPOKEN) and len(set(told.values())) == len(told)
    for row in _rows(by_name, f"translation_{language.lower()}"):
        back = {made_up: english for english, made_up in told.items()}
        english = [back[word] for word in row.targets.split()]
        phrase = english[::-1] if language == "Tavi" else english
        assert " ".join(phrase) in row.inputs


def test_translation_of_rund_is_rare_in_the_text(text):
    share = {language: sum(language in document for document in text) / len(text) for language in ("Tavi", "Rund")}
    assert share["Rund"] < 0.02 and share["Tavi"] > 3 * share["Rund"]


def test_test_prompts_are_not_in_the_text(suite, text):
    # A passage may be told there as well; what is asked about it never is.
    told = "\n".join(text)
    for task in suite.tasks:
        for row in task.examples("test")[::4]:
            assert row.inputs not in told


def test_templates_do_not_leak(by_name):
    for recipe in RECIPES:
        answers = Counter(row.targets for row in by_name[recipe.name].examples("train"))
        if len(answers) > 3:
            literal = {word for template in recipe.templates for word in _words(re.sub(r"\{\w+\}", " ", template))}
            assert not literal & set(answers), recipe.name


def test_tokenizer_ids_and_round_trip(suite, text, tokenizer):
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert 600 <= len(tokenizer) <= 1000
    rows = [row for task in suite.tasks for row in task.examples("test")]
    texts = [row.inputs for row in rows] + [row.targets for row in rows] + text[:4000]
    for string, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert not set(ids) & {0, 1, 2}, string
        # Besides words and marks, a mark that stands alone ("name = Tom") keeps its space as a token.
        pieces = re.findall(r"\w+|[^\w\s]|(?:^| )(?=[^\w\s])", string)
        assert len(ids) == len(pieces), "a word is more than one token"
        assert tokenizer.decode(ids).strip() == string
        assert len(ids) <= 40


def test_the_tokenizer_spells_unknown_words(tokenizer):
    ids = tokenizer("Zanzibar costs $42, \\o/").input_ids
    assert 0 not in ids and tokenizer.decode(ids).strip() == "Zanzibar costs $42, \\o/"


def test_tokenizer_loads_as_a_fast_one_and_rebuilds():
    shipped = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    rebuilt = build()
    assert shipped.get_vocab() == rebuilt.get_vocab()
    assert json.loads((TOKENIZER / "tokenizer.json").read_text()) == json.loads(rebuilt.to_str())
