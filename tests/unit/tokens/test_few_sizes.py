"""Few sizes that serve many lists: never more than two, and the best of those."""

import itertools

import numpy as np
import pytest

from mossa_jax.tokens.few_sizes import batch_sizes, batches_of, size_for, two_sizes


@pytest.mark.parametrize("seed", range(6))
def test_two_sizes_are_those_of_the_least_work(seed):
    rng = np.random.default_rng(seed)
    needs = (32 * rng.integers(1, 30, rng.integers(1, 60))).tolist()

    def work(sizes):
        return sum(size_for(need, sizes) ** 2 for need in needs)

    sizes = two_sizes(needs, lambda size: size**2)
    assert len(sizes) <= 2 and list(sizes) == sorted(sizes) and sizes[-1] == max(needs)
    best = min(work(sorted({size, max(needs)})) for size in needs)
    assert work(sizes) == best or (len(sizes) == 1 and best > 0.95 * work(sizes))


def test_a_second_size_must_be_worth_its_program():
    assert two_sizes([100] * 20 + [96], float) == (100,)
    assert two_sizes([100, *[20] * 20], float) == (20, 100)
    assert size_for(30, (20, 100)) == 100 and size_for(101, (20, 100)) == 101


@pytest.mark.parametrize("rows", [1, 3, 10, 64, 65, 70, 129, 1000])
def test_a_single_list_gets_full_batches_of_its_own(rows):
    (size,) = batch_sizes([rows], 64, 1)
    batches = batches_of(rows, (size,))
    assert set(batches) == {size} and len(batches) == -(-rows // 64) and sum(batches) < 1.25 * rows + 1
    assert batch_sizes([rows], 64, 12)[0] % 12 == 0


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_batches_hold_all_rows_and_waste_less_than_one_full_size(seed, multiple):
    rng = np.random.default_rng(seed)
    rows = np.exp(rng.uniform(np.log(2), np.log(600), 40)).astype(int).tolist()
    computed = {}
    for count in (1, 2):
        sizes = batch_sizes(rows, 64, multiple, count)
        assert len(sizes) <= count and all(size % multiple == 0 and 0 < size <= 64 for size in sizes)
        assert list(sizes) == sorted(sizes, reverse=True)
        batches = [batches_of(number, sizes) for number in rows]
        assert all(sum(each) >= number and set(each) <= set(sizes) for each, number in zip(batches, rows, strict=True))
        computed[count] = sum(map(sum, batches))
    full = sum(-(-number // 64) * 64 for number in rows)
    assert computed[2] <= computed[1] < full
    assert computed[2] < 1.3 * sum(rows)


def test_sizes_do_not_depend_on_the_order_of_lists_or_on_empty_ones():
    rows = [24, 3, 60, 250, 17, 0, 101]
    for count, order in itertools.product((1, 2), (rows[::-1], [*rows, 0, 0], sorted(rows))):
        assert batch_sizes(order, 32, 2, count) == batch_sizes(rows, 32, 2, count)
