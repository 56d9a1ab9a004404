"""The shapes of a run's passes: their number does not grow with the number of tasks, and every task fits them."""

import dataclasses

import numpy as np
import pytest

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.states.shapes import pass_shapes, row_slots
from mossa_jax.tokens.packing import PackedSizes, Packing
from tests.support.tiny_llama import random_prompts

MESH = mesh_lib.single_device()
LONG = 512


def random_sizes(count, seed, lengths=(256,), may_share=True):
    """Sizes of `count` tasks of 24 to 610 prompts; every other one shares a prefix."""
    rng = np.random.default_rng(seed)
    tasks = []
    for number in range(count):
        prompts = int(rng.integers(24, 611))
        per_row = int(rng.integers(1, 17))
        rows = {length: (-(-prompts // per_row), per_row) for length in lengths}
        prefix = int(rng.integers(30, 200)) if may_share and number % 2 else 0
        tasks.append(PackedSizes(prompts, rows, prefix, int(rng.integers(20, 257))))
    return tasks


def programs(shapes):
    return [
        (rows.length, rows.prompts, size, shape.prefix_length)
        for shape in shapes
        for rows in shape.rows
        for size in rows.batches
    ]


@pytest.mark.parametrize("may_share", [True, False])
@pytest.mark.parametrize("count", [2, 12, 60, 240])
def test_programs_do_not_grow_with_tasks(count, may_share):
    for seed in range(3):
        tasks = random_sizes(count, seed, may_share=may_share)
        shapes = pass_shapes(tasks, MESH, 64, 256)
        assert len(programs(shapes)) <= 2
        (kept,) = {shape.kept for shape in shapes}
        assert len(kept) <= 2 and kept[-1] == max(row_slots(task.prompts, 1) for task in tasks)
        for task in tasks:
            (shape,) = [shape for shape in shapes if bool(shape.prefix_length) == bool(task.prefix)]
            assert [other for other in shapes if other.fits(task)] == [shape]
            (rows,) = shape.rows
            assert shape.prefix_length >= task.prefix and rows.prompts >= task.rows[256][1]
            assert shape.max_own == 0 or shape.max_own >= task.max_own
            assert sum(rows.batches_of(task.rows[256][0])) >= task.rows[256][0]
            assert task.prompts <= shape.kept_for(task.prompts) <= kept[-1]
        padded = sum(
            sum(shape.rows[0].batches_of(task.rows[256][0]))
            for task in tasks
            for shape in shapes
            if bool(shape.prefix_length) == bool(task.prefix)
        )
        assert padded < 1.35 * sum(task.rows[256][0] for task in tasks)


def test_two_lengths_of_rows_have_at_most_two_programs_each():
    shapes = pass_shapes(random_sizes(60, 0, lengths=(256, LONG)), MESH, 64, 256)
    for length, most in ((256, 64), (LONG, 32)):
        sizes = [size for program_length, _, size, _ in programs(shapes) if program_length == length]
        assert len(sizes) == 2 and max(sizes) <= most


def test_a_single_list_keeps_shapes_that_fit_it():
    packed = Packing(64).prompts(random_prompts(300), may_share=False)
    (shape,) = pass_shapes([packed.sizes], MESH, 32, 64)
    assert packed.sizes.prompts == 300 and shape.kept == (384,) and len(programs([shape])) == 1
    (rows,) = shape.rows
    assert sum(rows.batches_of(len(packed.rows[0]))) < 1.15 * len(packed.rows[0])


def test_rows_of_very_short_prompts_are_closed_early():
    (rows,) = Packing(512).prompts([[1, 2, number] for number in range(3, 403)], may_share=False).rows
    assert rows.ids.shape == (13, 32)


@pytest.mark.parametrize(
    "change",
    [{"prompts": 129}, {"rows": {64: (1, 1)}}, {"rows": {256: (3, 9)}}, {"prefix": 33}, {"prefix": 0}, {"max_own": 65}],
)
def test_a_list_that_is_larger_than_the_shapes_does_not_fit(change):
    sizes = PackedSizes(100, {256: (30, 8)}, 32, 64)
    (shape,) = pass_shapes([sizes], MESH, 64, 256)
    assert shape.fits(sizes) and not shape.fits(dataclasses.replace(sizes, **change))
