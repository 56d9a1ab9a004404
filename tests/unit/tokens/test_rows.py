"""Properties of packed rows, checked from the rows alone."""

import numpy as np
import pytest

from mossa_jax.tokens.encoded import Encoded, concatenate, in_memory
from mossa_jax.tokens.rows import pack_examples, pack_prompts, pack_text
from tests.support.packed_examples import all_rows, behind, random_examples


def segments_of(rows, row):
    """Each packed sequence of a row: (columns, ids); asserts that it lies in one piece and counts from zero."""
    found = []
    for segment in range(1, rows.segments[row].max() + 1):
        columns = np.flatnonzero(rows.segments[row] == segment)
        assert len(columns) and np.array_equal(columns, np.arange(columns[0], columns[-1] + 1))
        assert np.array_equal(rows.positions[row, columns], np.arange(len(columns)))
        found.append((columns, rows.tokens[row, columns].tolist()))
    return found


def check_rows(rows, examples):
    """Every example is in the rows once, whole, with its answer as its labels; returns the ids found."""
    by_ids = {tuple(e.prompt + e.answer): e.answer for e in examples}
    seen = []
    for row in range(len(rows)):
        labelled = rows.labels[row] >= 0
        columns, labels = rows.predict[row][labelled], rows.labels[row][labelled]
        assert len(set(columns.tolist())) == len(columns)
        assert np.array_equal(rows.tokens[row, columns + 1], labels)
        assert np.array_equal(rows.segments[row, columns + 1], rows.segments[row, columns])
        for at, ids in segments_of(rows, row):
            inside = np.isin(columns, at)
            seen.append(ids)
            assert by_ids[tuple(ids)] == labels[inside].tolist()
            assert np.array_equal(np.sort(columns[inside]), np.arange(at[-1] - inside.sum(), at[-1]))
        assert not rows.tokens[row][rows.segments[row] == 0].any()
        assert not rows.positions[row][rows.segments[row] == 0].any()
    return seen


@pytest.mark.parametrize("seed", range(5))
def test_every_example_appears_once_with_its_answer_as_labels(seed):
    examples = random_examples(40, seed)
    (packed,) = pack_examples(in_memory(examples), 48)
    rows = all_rows(packed)
    assert {array.dtype for array in vars(rows).values()} == {np.dtype(np.int32)}
    seen = check_rows(rows, examples)
    assert sorted(seen) == sorted(e.prompt + e.answer for e in examples)
    assert len(rows) < len(examples)
    assert sum(len(ids) for ids in seen) == (rows.segments > 0).sum()


@pytest.mark.parametrize("seed", range(3))
def test_long_examples_go_to_long_rows_whose_gaps_short_ones_fill(seed):
    examples = [*random_examples(30, seed, longest=10), *random_examples(6, seed + 9, longest=40)]
    lengths = [len(e.prompt + e.answer) for e in examples]
    short, long = pack_examples(in_memory(examples), 24, 60)
    seen = [check_rows(all_rows(packed), examples) for packed in (short, long)]
    assert sorted(seen[0] + seen[1]) == sorted(e.prompt + e.answer for e in examples)
    assert short.length == 24 and long.length == 60
    assert sorted(len(ids) for ids in seen[1] if len(ids) > 24) == sorted(n for n in lengths if n > 24)
    assert any(len(ids) <= 24 for ids in seen[1])
    (only,) = pack_examples(in_memory(random_examples(5, 0, longest=3)), 24, 60)
    assert only.length == 24
    with pytest.raises(ValueError, match=str(max(lengths))):
        pack_examples(in_memory(examples), 24, max(lengths) - 1)


def test_concatenated_and_selected_examples_keep_their_ids():
    first, second = random_examples(6, 1), random_examples(4, 2)
    both = concatenate([in_memory(first).select(np.array([4, 1])), in_memory(second).select(np.array([3, 0, 0]))])
    wanted = [first[4], first[1], second[3], second[0], second[0]]
    assert len(both) == 5
    assert both.gather(np.arange(5)).tolist() == [token for e in wanted for token in e.prompt + e.answer]
    assert [both.prompt(i).tolist() for i in range(5)] == [e.prompt for e in wanted]
    assert both.lengths.tolist() == [len(e.prompt + e.answer) for e in wanted]


@pytest.mark.parametrize("long", [0, 90])
def test_ends_holds_the_last_column_of_each_prompt(long):
    prompts = [e.prompt for e in random_examples(50, 9)] + ([list(range(1, 80))] if long else [])
    kinds = pack_prompts(prompts, 40, long)
    assert len(kinds) == (2 if long else 1)
    seen = []
    for rows in kinds:
        for row in range(len(rows)):
            found = {int(columns[-1]): ids for columns, ids in segments_of(rows, row)}
            here = rows.ids[row] >= 0
            assert set(rows.ends[row][here].tolist()) == set(found)
            for end, item in zip(rows.ends[row][here], rows.ids[row][here], strict=True):
                assert found[int(end)] == prompts[item]
                seen.append(int(item))
    assert sorted(seen) == list(range(len(prompts)))
    rows = kinds[0]
    sizes = [8] * (len(rows) // 8) + [5, 5]
    batches = rows.batches(sizes)
    assert [len(batch) for batch in batches] == sizes
    assert (np.concatenate([b.ids for b in batches])[len(rows) :] == -1).all()
    assert np.array_equal(np.concatenate([b.tokens for b in batches])[: len(rows)], rows.tokens)


def test_whole_documents_learn_every_token_but_the_first():
    documents = [[1, 5, 6, 2], [1, 7, 2], [1], list(range(1, 30))]
    rows = all_rows(pack_text(documents, 10))
    wanted = sorted([5, 6, 2, 7, 2, *range(2, 11)])
    assert sorted(rows.labels[rows.labels >= 0].tolist()) == wanted


def test_more_room_for_answers_changes_no_label():
    (packed,) = pack_examples(in_memory(random_examples(9, 3)), 48)
    rows = all_rows(packed)
    wide = all_rows(packed, width=packed.width + 5)
    assert (wide.labels[:, -5:] == -1).all() and np.array_equal(wide.labels[:, :-5], rows.labels)
    part = packed.take(np.array([1, 1, 0]))
    assert np.array_equal(part.tokens, rows.tokens[[1, 1, 0]])


@pytest.mark.parametrize("long", [0, 90])
def test_shared_ids_stand_once_at_the_head_of_every_row(long):
    prefix = [1, 501, 502, 503, 504, 505]
    size = len(prefix)
    own = random_examples(40, 4) + ([Encoded(list(range(7, 77)), [5, 2])] if long else [])
    kinds = pack_examples(in_memory(behind(prefix, own)), 40, long, prefix_length=size)
    assert [packed.length for packed in kinds] == [40, 90][: len(kinds)] and len(kinds) == 1 + bool(long)
    alone = pack_examples(in_memory(own), 40 - size, long and long - size)
    seen = []
    for packed, apart in zip(kinds, alone, strict=True):
        rows, without = all_rows(packed), all_rows(apart)
        assert packed.prefix_length == size and packed.width == apart.width
        assert (rows.tokens[:, :size] == prefix).all() and (rows.segments[:, :size] == -1).all()
        assert (rows.positions[:, :size] == np.arange(size)).all()
        # Behind them stands what stands in rows that are shorter by so many, positions counting on.
        assert np.array_equal(rows.tokens[:, size:], without.tokens)
        assert np.array_equal(rows.segments[:, size:], without.segments)
        assert np.array_equal(rows.positions[:, size:], np.where(without.segments > 0, without.positions + size, 0))
        assert np.array_equal(rows.labels, without.labels)
        assert np.array_equal(rows.predict, np.where(without.labels >= 0, without.predict + size, 0))
        seen += check_rows(without, own)
        assert {array.dtype for array in vars(rows).values()} == {np.dtype(np.int32)}
    assert sorted(seen) == sorted(e.prompt + e.answer for e in own)
    with pytest.raises(ValueError, match="35"):
        pack_examples(in_memory([Encoded(list(range(40)), [2])]), 40, prefix_length=size)


@pytest.mark.parametrize("long", [0, 90])
def test_ids_that_prompts_share_stand_in_no_row(long):
    prefix = [1, 501, 502, 503]
    prompts = [e.prompt for e in behind(prefix, random_examples(50, 9))] + ([[*prefix, *range(9, 80)]] if long else [])
    kinds = pack_prompts(prompts, 40, long, prefix_length=len(prefix))
    seen = []
    for rows in kinds:
        assert (rows.segments >= 0).all()
        for row, column in zip(*np.nonzero(rows.ids >= 0), strict=True):
            end, item = rows.ends[row, column], rows.ids[row, column]
            here = np.flatnonzero(rows.segments[row] == rows.segments[row, end])
            assert here[-1] == end and [*prefix, *rows.tokens[row, here]] == prompts[item]
            assert rows.positions[row, here].tolist() == list(range(4, len(prompts[item])))
            seen.append(item)
    assert sorted(seen) == list(range(len(prompts))) and len(kinds) == 1 + bool(long)
    assert sum(len(rows) for rows in kinds) < sum(len(rows) for rows in pack_prompts(prompts, 40, long))
