"""Which items share a row."""

import numpy as np
import pytest

from mossa_jax.tokens.plan import plan_rows


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


def test_a_row_with_as_many_items_as_it_may_hold_is_closed():
    lengths = [1] * 100 + [9, 9, 8]
    free, capped = (rows_of(plan_rows(lengths, 30, most=most)[0]) for most in ((0, 0), (16, 0)))
    assert max(map(len, free)) > 16 and max(map(len, capped)) == 16
    assert sorted(item for row in capped for item in row) == list(range(103))
    assert sum(map(len, capped)) == 103 and len(capped) == -(-103 // 16)
    # Long rows have their own number.
    short, long = (rows_of(plan) for plan in plan_rows([*lengths, 31], 30, 60, most=(16, 5)))
    assert max(map(len, short)) == 16 and [len(row) for row in long] == [5]
