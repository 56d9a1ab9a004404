"""The one value for packing, and which ids all prompts share."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mossa_jax.config import Tokens
from mossa_jax.tokens.encoded import Encoded, Examples, in_memory, join
from mossa_jax.tokens.packing import Packing, shared_prefix
from mossa_jax.tokens.rows import pack_examples, pack_prompts
from tests.support.packed_examples import all_rows, behind, random_examples


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
        assert [rows.length for rows in packed] == [40, 90] and packed[0].prefix_length == shared
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
