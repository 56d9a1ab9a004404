"""Which prompts belong together: planted passages and wordings are found, templates join nothing."""

import random

import numpy as np
import pytest

from mossa_jax.tasks.items import guess_items, items_of


def text(rng, words):
    return " ".join(f"w{rng.randrange(4000)}" for _ in range(words))


def pairs(items):
    return {(a, b) for a in range(len(items)) for b in range(a) if items[a] == items[b]}


def planted(passages, questions, words, templates):
    """Returns prompts in random order, and the passage of each."""
    rng = random.Random(0)
    wordings = [(text(rng, rng.randrange(3, 15)), text(rng, rng.randrange(2, 13))) for _ in range(templates)]
    rows = []
    for passage in range(passages):
        content = text(rng, words)
        for _ in range(questions):
            before, after = rng.choice(wordings)
            rows.append((f"{before} {content} {after} {text(rng, rng.randrange(6, 13))}?", passage))
    rng.shuffle(rows)
    return [prompt for prompt, _ in rows], [passage for _, passage in rows]


@pytest.mark.parametrize(
    ("passages", "questions", "words", "templates"),
    [(48, 5, 15, 1), (48, 5, 200, 10), (24, 10, 30, 10), (4, 5, 120, 1), (8, 30, 120, 10)],
)
def test_questions_about_one_passage_are_one_item(passages, questions, words, templates):
    prompts, truth = planted(passages, questions, words, templates)
    matches, wanted = pairs(guess_items(prompts)), pairs(truth)
    assert len(matches & wanted) >= 0.9 * len(wanted)
    assert len(matches - wanted) <= 0.01 * len(wanted)


def test_templates_and_short_or_monotonous_texts_join_nothing():
    rng = random.Random(1)
    instruction = text(rng, 60)
    prompts = [f"{instruction} {text(rng, 30)} {'0 ' * 40}" for _ in range(40)]
    assert len(set(guess_items(prompts).tolist())) == 40
    assert guess_items(["one two", "one two", ""]).tolist() == [0, 1, 2]
    assert guess_items([]).shape == (0,)


def test_rare_wordings_of_a_small_task_join_nothing():
    prompts, _ = planted(passages=60, questions=1, words=60, templates=10)
    assert len(set(guess_items(prompts).tolist())) == 60


def test_a_chain_of_shared_phrases_is_no_giant_item():
    rng = random.Random(2)
    phrases = [text(rng, 12) for _ in range(201)]
    items = guess_items([f"{phrases[n]} {phrases[n + 1]}" for n in range(200)])
    assert np.bincount(items).max() <= 12


def test_named_items_are_numbered_and_rows_without_one_stand_alone():
    assert items_of(["b", "", "a", "b", ""]).tolist() == [0, 1, 2, 0, 3]
