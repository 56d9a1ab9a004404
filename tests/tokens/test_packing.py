"""Properties of packed rows, checked from the rows alone."""

import numpy as np
import pytest

from mossa_jax.tokens.packing import batch_index, first_fit_decreasing, pack_examples, pack_prompts, pack_text
from mossa_jax.tokens.tokenizer import Encoded


def random_examples(count, seed, longest=20):
    rng = np.random.default_rng(seed)
    draw = lambda size: rng.integers(3, 500, size).tolist()  # noqa: E731
    return [Encoded([1, *draw(rng.integers(0, longest))], [*draw(rng.integers(0, 8)), 2]) for _ in range(count)]


def segments_of(rows, row):
    """Each packed sequence of a row: (columns, ids); asserts that it lies in one piece and counts from zero."""
    found = []
    for segment in range(1, rows.segments[row].max() + 1):
        columns = np.flatnonzero(rows.segments[row] == segment)
        assert len(columns) and np.array_equal(columns, np.arange(columns[0], columns[-1] + 1))
        assert np.array_equal(rows.positions[row, columns], np.arange(len(columns)))
        found.append((columns, rows.tokens[row, columns].tolist()))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_example_is_there_once_with_its_answer_as_labels(seed):
    examples = random_examples(40, seed)
    rows = pack_examples(examples, 48)
    assert {array.dtype for array in vars(rows).values()} == {np.dtype(np.int32)}
    seen, answers = [], []
    for row in range(len(rows)):
        labelled = rows.labels[row] >= 0
        columns, labels = rows.predict[row][labelled], rows.labels[row][labelled]
        assert len(set(columns.tolist())) == len(columns)
        assert np.array_equal(rows.tokens[row, columns + 1], labels)
        assert np.array_equal(rows.segments[row, columns + 1], rows.segments[row, columns])
        for at, ids in segments_of(rows, row):
            inside = np.isin(columns, at)
            seen.append(ids)
            answers.append(labels[inside].tolist())
            assert np.array_equal(np.sort(columns[inside]), np.arange(at[-1] - inside.sum(), at[-1]))
        assert not rows.tokens[row][rows.segments[row] == 0].any()
    assert sorted(seen) == sorted(e.prompt + e.answer for e in examples)
    by_ids = {tuple(e.prompt + e.answer): e.answer for e in examples}
    assert all(by_ids[tuple(ids)] == answer for ids, answer in zip(seen, answers, strict=True))
    assert len(rows) < len(examples)
    assert sum(len(ids) for ids in seen) == (rows.segments > 0).sum()


def test_prompts_end_where_ends_says():
    prompts = [e.prompt for e in random_examples(50, 9)]
    rows = pack_prompts(prompts, 40)
    seen = []
    for row in range(len(rows)):
        found = {int(columns[-1]): ids for columns, ids in segments_of(rows, row)}
        here = rows.ids[row] >= 0
        assert set(rows.ends[row][here].tolist()) == set(found)
        for end, item in zip(rows.ends[row][here], rows.ids[row][here], strict=True):
            assert found[int(end)] == prompts[item]
            seen.append(int(item))
    assert sorted(seen) == list(range(50))
    batches = rows.batches(8)
    assert {len(batch) for batch in batches} == {8}
    assert sorted(np.concatenate([b.ids.ravel() for b in batches if b.ids.size]).tolist())[-50:] == list(range(50))
    assert (np.concatenate([b.ids for b in batches])[len(rows) :] == -1).all()


def test_whole_documents_learn_every_token_but_the_first():
    documents = [[1, 5, 6, 2], [1, 7, 2], [1], list(range(1, 30))]
    rows = pack_text(documents, 10)
    wanted = sorted([5, 6, 2, 7, 2, *range(2, 11)])
    assert sorted(rows.labels[rows.labels >= 0].tolist()) == wanted


def test_more_room_for_answers_changes_no_label():
    rows = pack_examples(random_examples(9, 3), 48)
    wide = rows.with_answers(rows.labels.shape[1] + 5)
    assert (wide.labels[:, -5:] == -1).all() and np.array_equal(wide.labels[:, :-5], rows.labels)
    part = rows.take(np.array([1, 1, 0]))
    assert np.array_equal(part.tokens, rows.tokens[[1, 1, 0]])


@pytest.mark.parametrize("seed", range(4))
def test_bins_hold_every_item_once_and_no_more_than_fits(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 31, 200).tolist()
    rows = first_fit_decreasing(lengths, 30)
    assert sorted(item for row in rows for item in row) == list(range(200))
    loads = [sum(lengths[item] for item in row) for row in rows]
    assert max(loads) <= 30
    # The proven bound of this family of rules, 11/9 of the optimum plus one, with the volume as the optimum's bound.
    assert len(rows) <= 11 / 9 * max(sum(lengths) / 30, sum(length > 15 for length in lengths)) + 1
    assert rows == first_fit_decreasing(lengths, 30)
    for wrong in ([31], [0]):
        with pytest.raises(ValueError, match=str(wrong[0])):
            first_fit_decreasing(wrong, 30)


def test_batches_run_through_one_permutation_after_another():
    rows, batch = 10, 4
    flat = np.concatenate([batch_index(rows, batch, (7, 2), step) for step in range(15)])
    epochs = flat.reshape(-1, rows)
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)
    assert np.array_equal(batch_index(rows, batch, (7, 2), 11), flat[44:48])  # pure: no step before is needed
    assert not np.array_equal(batch_index(rows, 10, (8, 2), 0), epochs[0])
    # A batch larger than the task goes round several times.
    assert sorted(np.bincount(batch_index(3, 8, (1,), 0), minlength=3).tolist()) == [2, 3, 3]
