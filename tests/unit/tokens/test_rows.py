"""Properties of packed rows, checked from the rows alone."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mossa_jax.config import Tokens
from mossa_jax.tokens.encoded import Encoded, Examples, in_memory, join
from mossa_jax.tokens.rows import (
    Packing,
    batch_index,
    batches_of,
    pack_examples,
    pack_prompts,
    pack_text,
    plan_rows,
    rows_per_batch,
    shared_prefix,
)


def random_examples(count, seed, longest=20):
    rng = np.random.default_rng(seed)
    draw = lambda size: rng.integers(3, 500, size).tolist()  # noqa: E731
    return [Encoded([1, *draw(rng.integers(0, longest))], [*draw(rng.integers(0, 8)), 2]) for _ in range(count)]


def all_rows(packed, **options):
    return packed.take(np.arange(len(packed)), **options)


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
def test_every_example_is_there_once_with_its_answer_as_labels(seed):
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


def test_joined_and_selected_examples_keep_their_ids():
    first, second = random_examples(6, 1), random_examples(4, 2)
    both = join([in_memory(first).select(np.array([4, 1])), in_memory(second).select(np.array([3, 0, 0]))])
    wanted = [first[4], first[1], second[3], second[0], second[0]]
    assert len(both) == 5
    assert both.gather(np.arange(5)).tolist() == [token for e in wanted for token in e.prompt + e.answer]
    assert [both.prompt(i).tolist() for i in range(5)] == [e.prompt for e in wanted]
    assert both.lengths.tolist() == [len(e.prompt + e.answer) for e in wanted]


@pytest.mark.parametrize("long", [0, 90])
def test_prompts_end_where_ends_says(long):
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
    batches = rows.batches(8)
    assert {len(batch) for batch in batches} == {8}
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


def behind(prefix, examples):
    """The examples with `prefix` in front of their prompts."""
    return [Encoded([*prefix, *example.prompt], example.answer) for example in examples]


@pytest.mark.parametrize("seed", range(4))
def test_the_shared_prefix_is_the_longest_that_all_prompts_begin_with(seed):
    rng = np.random.default_rng(seed)
    own = [Encoded([*rng.integers(3, 6, rng.integers(1, 9)).tolist()], [7, 2]) for _ in range(5 + 3 * seed)]
    prefix = [1, *rng.integers(3, 500, 30).tolist()]
    examples = behind(prefix, own)
    columns = zip(*[e.prompt for e in examples], strict=False)
    common = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))
    wanted = min(common, min(len(e.prompt) for e in examples) - 1)
    assert wanted >= len(prefix) or min(len(e.prompt) for e in own) == 1
    assert shared_prefix(in_memory(examples)) == wanted
    # The ids of one list lie in several stores, and in any order.
    parts = [in_memory(examples[:3]).select(np.array([2, 0, 1])), in_memory(examples[3:])]
    assert shared_prefix(join(parts)) == wanted


def test_one_prompt_among_very_many_shortens_the_shared_prefix(tmp_path):
    count, prefix, size = 60_000, 40, 60
    ids = np.random.default_rng(0).integers(3, 500, (count, size)).astype(np.int32)
    ids[:, :prefix] = ids[0, :prefix]
    ids[:, prefix] = np.arange(count) % 2
    ids.tofile(tmp_path / "ids")

    def examples(flat):
        lengths = np.full(count, size // 2, np.int32)
        return Examples((flat,), np.zeros(count, np.int64), np.arange(count) * size, lengths + 12, lengths - 12)

    mapped = np.memmap(tmp_path / "ids", np.int32, "r+")
    assert shared_prefix(examples(mapped)) == prefix
    mapped[31_337 * size + 25] += 1
    assert shared_prefix(examples(mapped)) == 25
    mapped[59_999 * size + 8] += 1  # eight of sixty ids are not worth it
    assert shared_prefix(examples(mapped)) == 0


def test_a_shared_prefix_must_be_worth_it_and_leave_every_prompt_an_id():
    def found(prefix, rest, answer):
        return shared_prefix(in_memory([Encoded([9] * prefix + [n] * rest, [2] * answer) for n in (3, 4, 5)]))

    assert found(15, 60, 25) == 0 and found(16, 60, 24) == 16  # above 15 of 100 ids, answers included
    same = [Encoded([9] * length, [2]) for length in (6, 5, 8)]
    assert shared_prefix(in_memory(same)) == 4
    assert shared_prefix(in_memory([Encoded([9], [2]), Encoded([9, 9, 9, 9], [2])])) == 0
    assert shared_prefix(in_memory([])) == 0


@pytest.mark.parametrize("long", [0, 90])
def test_shared_ids_stand_once_at_the_head_of_every_row(long):
    prefix = [1, 501, 502, 503, 504, 505]
    size = len(prefix)
    own = random_examples(40, 4) + ([Encoded(list(range(7, 77)), [5, 2])] if long else [])
    kinds = pack_examples(in_memory(behind(prefix, own)), 40, long, shared=size)
    assert [packed.length for packed in kinds] == [40, 90][: len(kinds)] and len(kinds) == 1 + bool(long)
    alone = pack_examples(in_memory(own), 40 - size, long and long - size)
    seen = []
    for packed, apart in zip(kinds, alone, strict=True):
        rows, without = all_rows(packed), all_rows(apart)
        assert packed.shared == size and packed.width == apart.width
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
        pack_examples(in_memory([Encoded(list(range(40)), [2])]), 40, shared=size)


@pytest.mark.parametrize("long", [0, 90])
def test_ids_that_prompts_share_stand_in_no_row(long):
    prefix = [1, 501, 502, 503]
    prompts = [e.prompt for e in behind(prefix, random_examples(50, 9))] + ([[*prefix, *range(9, 80)]] if long else [])
    kinds = pack_prompts(prompts, 40, long, shared=len(prefix))
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


def rows_of(plan):
    assert len(plan) == len(plan.counts)
    return [part.tolist() for part in np.split(plan.items, np.cumsum(plan.counts)[:-1])] if len(plan) else []


@pytest.mark.parametrize("seed", range(4))
def test_bins_hold_every_item_once_and_no_more_than_fits(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 31, 200).tolist()
    rows, none = (rows_of(plan) for plan in plan_rows(lengths, 30))
    assert none == [] and sorted(item for row in rows for item in row) == list(range(200))
    loads = [sum(lengths[item] for item in row) for row in rows]
    assert max(loads) <= 30
    # The proven bound of this family of rules, 11/9 of the optimum plus one, with the volume as the optimum's bound.
    assert len(rows) <= 11 / 9 * max(sum(lengths) / 30, sum(length > 15 for length in lengths)) + 1
    assert rows == rows_of(plan_rows(lengths, 30)[0])
    for wrong in ([31], [0], [5, 31, 7]):
        with pytest.raises(ValueError, match=str(max(wrong))):
            plan_rows(wrong, 30)
    short, long = (rows_of(plan) for plan in plan_rows([*lengths, 31, 47], 30, 50))
    assert sorted(item for row in (*short, *long) for item in row) == list(range(202))
    assert len(long) == 2 and all(sum(([*lengths, 31, 47])[item] for item in row) <= 50 for row in long)


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


def test_long_batches_lie_evenly_among_short_ones_and_every_row_comes_equally_often():
    batches = batches_of([12, 6], 4, 100, 200, seed=(3,))  # batches of 4 short and of 2 long rows: 3 + 3 an epoch
    assert batches.sizes == (4, 2) and batches.per_epoch == 6
    steps = [batches.at(step) for step in range(12)]
    assert [kind for kind, _ in steps] == [0, 1] * 6
    for kind, rows in ((0, 12), (1, 6)):
        shown = np.concatenate([index for here, index in steps if here == kind])
        assert np.bincount(shown, minlength=rows).tolist() == [2] * rows
    uneven = batches_of([100, 3], 4, 100, 200)
    kinds = np.asarray([uneven.at(step)[0] for step in range(53)])  # two epochs
    assert kinds.sum() == 3 and np.diff(np.flatnonzero(kinds)).min() >= 17
    assert {batches_of([0, 5], 4, 100, 200).at(step)[0] for step in range(9)} == {1}
    plain = batches_of([12], 4, 100, seed=(3,))
    assert all(plain.at(step)[0] == 0 for step in range(9))
    assert np.array_equal(plain.at(7)[1], batch_index(12, 4, (3,), 7))


def same_rows(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_a_configuration_says_how_examples_are_packed():
    prefix = list(range(1, 12))
    own = [*random_examples(30, 4), Encoded(list(range(7, 77)), [5, 2])]
    examples = in_memory(behind(prefix, own))
    packing = Packing.of(Tokens(max_tokens=90, row_length=40, long_row_length=90))
    assert packing == Packing(40, 90, True)
    for may_share, share_prefix in ((True, True), (True, False), (False, True)):
        shared = shared_prefix(examples) if may_share and share_prefix else 0
        packed = replace(packing, share_prefix=share_prefix).examples(examples, may_share)
        wanted = pack_examples(examples, 40, 90, shared)
        assert [rows.length for rows in packed] == [40, 90] and packed[0].shared == shared
        assert all(same_rows(all_rows(rows), all_rows(other)) for rows, other in zip(packed, wanted, strict=True))


@pytest.mark.parametrize("may_share", [True, False])
def test_packed_prompts_carry_the_prefix_that_stands_in_no_row(may_share):
    prefix = list(range(1, 12))
    prompts = [e.prompt for e in behind(prefix, random_examples(50, 9))]
    packed = Packing(40).prompts(prompts, may_share)
    shared = shared_prefix(in_memory(Encoded(ids, []) for ids in prompts)) if may_share else 0
    assert packed.prefix.dtype == np.int32 and packed.prefix.tolist() == prefix[:shared] and bool(shared) == may_share
    assert packed.max_own == max(map(len, prompts)) - shared
    wanted = pack_prompts(prompts, 40, 0, shared)
    assert all(same_rows(rows, other) for rows, other in zip(packed.rows, wanted, strict=True))


def test_fitting_rows_hold_the_longest_prompt_and_little_more():
    assert [Packing.fitting([[1], [1] * size]).row_length for size in (1, 64, 65, 200)] == [64, 64, 128, 256]
    assert Packing.fitting([[1] * 65]) == Packing(128, 0, True)


def test_a_batch_of_long_rows_has_as_many_positions_as_one_of_short_rows():
    assert rows_per_batch(8, 128, 128) == 8 and rows_per_batch(8, 128, 512) == 2
    assert rows_per_batch(8, 128, 500) == 2 and rows_per_batch(2, 128, 512) == 1
