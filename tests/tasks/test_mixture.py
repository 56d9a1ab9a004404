"""E's mixture: caps per cluster, held-out tasks, and which rows."""

import numpy as np
import pytest

from mossa_jax.tasks.mixture import mixture_counts, sample
from mossa_jax.tasks.suite import Suite, Task


def make_suite(clusters):
    return Suite("s", tuple(Task(name, cluster, lambda split: ()) for name, cluster in clusters.items()))


SUITE = make_suite({"a": "one", "b": "one", "c": "two", "d": "one", "e": "two"})
ROWS = {"a": 100, "b": 50, "c": 7, "d": 31, "e": 3}


def test_a_small_cluster_gives_all_and_a_large_one_its_cap():
    counts = mixture_counts(SUITE, ROWS, set(), 40)
    assert counts["c"] == 7 and counts["e"] == 3
    given = [counts[name] for name in "abd"]
    assert sum(given) == 40
    for name, count in zip("abd", given, strict=True):
        assert abs(count - 40 * ROWS[name] / 181) < 1  # in proportion, each within one row


def test_held_out_tasks_give_nothing_and_leave_room():
    counts = mixture_counts(SUITE, ROWS, {"a", "c", "e"}, 60)
    assert set(counts) == {"b", "d"} and sum(counts.values()) == 60


@pytest.mark.parametrize("cap", [1, 2, 3, 17, 180, 181, 500])
def test_the_cap_is_met_exactly(cap):
    counts = mixture_counts(SUITE, ROWS, set(), cap)
    for names in ("abd", "ce"):
        assert sum(counts[name] for name in names) == min(cap, sum(ROWS[name] for name in names))
        assert all(0 <= counts[name] <= ROWS[name] for name in names)


def test_rows_are_drawn_without_replacement_from_name_and_seed():
    first = sample("a", 100, 30, seed=1)
    assert len(set(first.tolist())) == 30 and first.min() >= 0 and first.max() < 100
    assert np.array_equal(first, np.sort(first)) and np.array_equal(first, sample("a", 100, 30, seed=1))
    assert not np.array_equal(first, sample("b", 100, 30, seed=1))
    assert not np.array_equal(first, sample("a", 100, 30, seed=2))
    assert sample("a", 5, 5, seed=1).tolist() == sample("a", 5, 9, seed=1).tolist() == [0, 1, 2, 3, 4]
    counts = np.bincount(np.concatenate([sample("a", 10, 5, seed=s) for s in range(400)]), minlength=10)
    assert counts.min() > 140  # about 200 each: no row is favoured
