"""E's mixture: caps per cluster, rates, held-out tasks, and which rows."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from mossa_jax.config import Tasks
from mossa_jax.tasks.mixture import mixture_counts, sample, share
from mossa_jax.tasks.suite import Suite, Task


def make_suite(clusters):
    return Suite("s", tuple(Task(name, cluster, lambda split: ()) for name, cluster in clusters.items()))


SUITE = make_suite({"a": "one", "b": "one", "c": "two", "d": "one", "e": "two"})
ROWS = {"a": 100, "b": 50, "c": 7, "d": 31, "e": 3}


def capped(cap, held_out=()):
    return mixture_counts(replace(SUITE, held_out=held_out), ROWS, Tasks(max_per_cluster=cap))


def test_a_small_cluster_contributes_all_rows_and_a_large_one_its_cap():
    counts = capped(40)
    assert list(counts) == list("abcde")
    assert counts["c"] == 7 and counts["e"] == 3
    # 40 x (100, 50, 31) / 181 = 22.099, 11.050, 6.851: the largest remainder is d's
    assert [counts[name] for name in "abd"] == [22, 11, 7]


def test_held_out_tasks_contribute_nothing_and_leave_room():
    counts = capped(60, held_out=("a", "c", "e"))
    assert counts == {"b": 37, "d": 23}  # 60 x (50, 31) / 81 = 37.04, 22.96


@pytest.mark.parametrize("cap", [1, 2, 3, 17, 180, 181, 500])
def test_the_cap_is_met_exactly(cap):
    counts = capped(cap)
    for names in ("abd", "ce"):
        assert sum(counts[name] for name in names) == min(cap, sum(ROWS[name] for name in names))
        assert all(0 <= counts[name] <= ROWS[name] for name in names)


def test_proportional_counts_no_task_above_the_rate():
    chosen = Tasks(mixture="proportional", max_rate=50)
    assert mixture_counts(SUITE, ROWS, chosen) == {"a": 50, "b": 50, "c": 7, "d": 31, "e": 3}
    counts = mixture_counts(SUITE, ROWS, replace(chosen, mixture_rows=1410))
    assert counts == {"a": 500, "b": 500, "c": 70, "d": 310, "e": 30}  # ten times as much: rows come again
    assert sum(mixture_counts(SUITE, ROWS, replace(chosen, mixture_rows=100)).values()) == 100


def test_equal_gives_every_task_the_same_number():
    assert mixture_counts(SUITE, ROWS, Tasks(mixture="equal")) == dict.fromkeys("abcde", 3)
    held = replace(SUITE, held_out=("e",))
    assert mixture_counts(held, ROWS, Tasks(mixture="equal", mixture_rows=42)) == {"a": 11, "b": 11, "c": 10, "d": 10}


def test_shares_stay_exact_where_floating_point_would_not():
    weights = [3 * 10**15 + 1, 10**15 - 1, 0, 2]
    parts = share(weights, 10**15)
    assert sum(parts) == 10**15 and parts[2] == 0
    exact = [Fraction(weight * 10**15, sum(weights)) for weight in weights]
    assert all(abs(part - wanted) < 1 for part, wanted in zip(parts, exact, strict=True))
    assert share([0, 0], 0) == [0, 0]


def test_rows_are_drawn_without_replacement_from_name_and_seed():
    first = sample("a", 100, 30, seed=1)
    assert len(set(first.tolist())) == 30 and first.min() >= 0 and first.max() < 100
    assert np.array_equal(first, np.sort(first)) and np.array_equal(first, sample("a", 100, 30, seed=1))
    assert not np.array_equal(first, sample("b", 100, 30, seed=1))
    assert not np.array_equal(first, sample("a", 100, 30, seed=2))
    assert sample("a", 5, 5, seed=1).tolist() == [0, 1, 2, 3, 4]
    counts = np.bincount(np.concatenate([sample("a", 10, 5, seed=s) for s in range(400)]), minlength=10)
    assert counts.min() > 140  # about 200 each: no row is favoured
    twice = np.bincount(sample("a", 10, 23, seed=1), minlength=10)
    assert sorted(twice.tolist()) == [2] * 7 + [3] * 3
