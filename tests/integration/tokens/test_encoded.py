"""Encoded splits: their content, their key in the cache, and what encodes them anew."""

import json
import logging
import os
import random
from dataclasses import replace

import numpy as np
import pytest

from mossa_jax.config import Tokens
from mossa_jax.errors import Refusal
from mossa_jax.tasks.suite import Example, Task
from mossa_jax.tokens.encoded import encode_split
from mossa_jax.tokens.permuted import permute_answers
from mossa_jax.tokens.tokenizer import cut_pair, cut_prompt, load_tokenizer
from tests.support.tiny_llama import copy_tokenizer

TOKENS = Tokens(max_tokens=16, row_length=16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tokenizer(tmp_path):
    copy_tokenizer(tmp_path)
    return load_tokenizer(tmp_path, "none", 1, (2,))


class Source:
    """A task whose readings are counted."""

    def __init__(self, rows):
        self.rows, self.readings = rows, 0

    def task(self):
        return Task("words", "one", self.read, digest=lambda split: json.dumps([vars(row) for row in self.rows]))

    def read(self, split):
        self.readings += 1
        yield from self.rows


def rows(count):
    return [Example(" ".join(["red mill"] * (1 + n % 9)), f"boat {n}", n % 3) for n in range(count)]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("count", [5, 2500])
def test_a_split_holds_every_row_cut_as_it_should_be(cache, tokenizer, split, count):
    source = Source(rows(count))
    found = encode_split(source.task(), split, tokenizer, TOKENS, 10_000)
    prompts = tokenizer.prompts([row.inputs for row in source.rows])
    answers = tokenizer.answers([row.targets for row in source.rows])
    examples = found.examples
    assert len(found) == len(examples) == count
    for item in [*range(min(count, 40)), count - 1]:
        if split == "test":
            wanted = cut_prompt(tokenizer, prompts[item], 16, "keep_end"), answers[item]
            long = len(prompts[item]) > 16
        else:
            wanted = cut_pair(tokenizer, prompts[item], answers[item], 16, "keep_end")
            long = len(prompts[item]) + len(answers[item]) > 16
        assert examples.prompt(item).tolist() == wanted[0]
        assert examples.gather([item]).tolist() == [*wanted[0], *wanted[1]]
        assert found.cut[item] == long
    assert found.cut.any() and not found.cut.all()
    assert found.templates.tolist() == [n % 3 for n in range(count)]


def test_rows_are_read_once_and_again_when_anything_changes(cache, tokenizer):
    source = Source(rows(30))
    first = encode_split(source.task(), "train", tokenizer, TOKENS, 100)
    again = encode_split(source.task(), "train", tokenizer, TOKENS, 100)
    assert source.readings == 1 and np.array_equal(again.examples.stores[0], first.examples.stores[0])
    assert not again.examples.stores[0].flags.writeable
    others = [
        encode_split(source.task(), "test", tokenizer, TOKENS, 100),
        encode_split(source.task(), "train", tokenizer, TOKENS, 20),
        encode_split(source.task(), "train", tokenizer, replace(TOKENS, max_tokens=12), 100),
        encode_split(source.task(), "train", tokenizer, replace(TOKENS, truncation="paper"), 100),
        encode_split(
            source.task(), "train", replace(tokenizer, template="llama2"), replace(TOKENS, max_tokens=99), 100
        ),
        encode_split(source.task(), "train", replace(tokenizer, bos=None), TOKENS, 100),
    ]
    source.rows = rows(31)
    others.append(encode_split(source.task(), "train", tokenizer, TOKENS, 100))
    assert source.readings == 8
    assert len(others[1]) == 20 and len(others[-1]) == 31


def test_a_draw_has_a_place_of_its_own_in_the_cache(cache, tokenizer):
    source = Source(rows(40))
    first, drawn, again, other = (
        encode_split(source.task(), "test", tokenizer, TOKENS, 40, seed) for seed in (None, (1, 2), (1, 2), (1, 3))
    )
    assert source.readings == 1 + 2 + 0 + 2
    lengths = [tuple(split.examples.answer_lengths + 100 * split.templates) for split in (first, drawn, again, other)]
    assert lengths[1] == lengths[2] and len({*lengths}) == 3 and len({tuple(sorted(row)) for row in lengths}) == 1


def test_items_come_from_the_source_or_are_guessed_in_test_prompts_alone(cache, tokenizer):
    passage = "the old boats go under that big red mill when rain comes from hills"
    about = [Example(f"{passage if n % 3 == 1 else ''} question {n} about the matter", "x") for n in range(9)]
    guess, plain = (encode_split(Source(about).task(), split, tokenizer, TOKENS, 9) for split in ("test", "train"))
    assert (guess.item_source, plain.item_source) == ("guessed", "rows")
    assert guess.items.tolist() == [0, 1, 2, 3, 1, 4, 5, 1, 6] and plain.items.tolist() == [*range(9)]
    named = [replace(row, item="a" if n in (0, 5) else "") for n, row in enumerate(about)]
    column = encode_split(Source(named).task(), "test", tokenizer, TOKENS, 9)
    assert column.item_source == "column" and column.items.tolist() == [0, 1, 2, 3, 4, 0, 5, 6, 7]
    apart = [replace(row, inputs=f"{n} boats") for n, row in enumerate(about)]
    assert encode_split(Source(apart).task(), "test", tokenizer, TOKENS, 9).item_source == "rows"


def test_a_failure_half_way_leaves_nothing_in_the_cache(cache, tokenizer):
    class Breaking(Source):
        def read(self, split):
            yield from super().read(split)
            raise Refusal(3, "row 31 is bad")

    with pytest.raises(Refusal, match="row 31"):
        encode_split(Breaking(rows(30)).task(), "train", tokenizer, TOKENS, 100)
    assert not list((cache / "tokens").glob("[!.]*")) and not list((cache / "tokens").glob("*.tmp"))
    with pytest.raises(Refusal, match="no test rows") as caught:
        encode_split(Source([]).task(), "test", tokenizer, TOKENS, 100)
    assert caught.value.code == 3


def test_bad_rows_are_recorded_with_the_split(cache, tokenizer):
    def read(split):
        task.bad_rows[split] = 2
        yield from rows(4)

    task = Task("words", "one", read)
    assert encode_split(task, "train", tokenizer, TOKENS, 9).bad_rows == 2
    fresh = Task("words", "one", lambda split: rows(4))
    assert encode_split(fresh, "train", tokenizer, TOKENS, 9).bad_rows == 2  # the same rows: found in the cache


@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_rows_are_encoded_again_to_the_same_bytes_with_one_line(cache, tokenizer, caplog, split):
    caplog.set_level(logging.INFO, "mossa_jax")
    source = Source(rows(40))

    def encode():
        found = encode_split(source.task(), split, tokenizer, TOKENS, 100)
        return [found.digest, *(array.tobytes() for array in (found.examples.stores[0], found.cut, found.keys))]

    whole = encode()
    (folder,) = (cache / "tokens").glob("[!.]*")
    original = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(original) == 9
    draw = random.Random(0)
    for name, content in original.items():
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        for damaged in (flipped, content[: len(content) // 2], b"", bytes(len(content)), content + b"x", None):
            (folder / name).unlink() if damaged is None else (folder / name).write_bytes(damaged)
            caplog.clear()
            assert encode() == whole, name
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == original, name
            (line,) = caplog.messages
            assert str(folder) in line and line.endswith("so it is made again")
    caplog.clear()
    readings = source.readings
    assert encode() == whole and source.readings == readings and not caplog.messages


def test_rows_of_many_splits_hold_no_open_file(cache, tokenizer):
    def descriptors():
        return len(os.listdir("/dev/fd"))

    kept = [encode_split(Source(rows(3)).task(), "train", tokenizer, TOKENS, 9)]
    before = descriptors()
    for number in range(4, 24):
        kept.append(encode_split(Source(rows(number)).task(), "train", tokenizer, TOKENS, 99))
        permute_answers(kept[-1], tokenizer, TOKENS, (number,))
    assert descriptors() == before
    assert all(split.examples.prompt(0).tolist() == kept[0].examples.prompt(0).tolist() for split in kept)
