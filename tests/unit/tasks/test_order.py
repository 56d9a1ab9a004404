"""Which rows a run takes: the first ones, or a seeded draw from the whole split."""

import dataclasses

from mossa_jax.config import Config, Tasks
from mossa_jax.tasks.order import draw_seed, take_rows
from mossa_jax.tasks.suite import Example, Task

TASK = Task("sorted", "one", lambda split: (Example(str(n), "x") for n in range(1000)))


def numbers(limit, seed):
    return [int(row.inputs) for row in take_rows(TASK, "test", limit, seed)]


def test_a_draw_is_a_sample_of_the_whole_split_and_so_are_its_first_rows():
    draw = numbers(200, (0, 1))
    assert len(set(draw)) == 200 and draw == numbers(200, (0, 1)) != numbers(200, (0, 2))
    assert 350 < sum(draw[:50]) / 50 < 650 and 350 < sum(draw) / 200 < 650
    assert sorted(numbers(5000, (3,))) == list(range(1000))


def test_first_takes_the_first_rows_and_training_rows_are_never_drawn():
    assert numbers(3, None) == [0, 1, 2]
    config = Config(tasks=Tasks(test_order="first"))
    assert draw_seed(config, TASK, "test") is None and draw_seed(Config(), TASK, "train") is None


def test_the_seed_follows_the_run_and_the_task():
    seeds = {
        draw_seed(Config(seed=seed), dataclasses.replace(TASK, name=name), "test") for seed in (0, 1) for name in "ab"
    }
    assert len(seeds) == 4
