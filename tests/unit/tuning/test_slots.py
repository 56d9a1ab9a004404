"""The plan of slots: every model once, never two models in a slot, and few empty steps."""

from itertools import permutations

import numpy as np
import pytest

from mossa_jax.tasks.flan_names import select
from mossa_jax.tuning.slots import plan_slots


def check(plan, steps):
    assert (plan.stop - plan.start).tolist() == list(steps)
    taken = np.zeros((plan.steps, plan.slots), int)
    for slot, start, stop in zip(plan.slot, plan.start, plan.stop, strict=True):
        taken[start:stop, slot] += 1
    assert taken.max() == 1
    assert plan.utilisation == pytest.approx(taken.mean())
    for step in range(plan.steps):
        models = plan.at(step)
        assert (models >= 0).tolist() == taken[step].astype(bool).tolist()
        for slot, model in enumerate(models):
            assert model < 0 or (plan.slot[model] == slot and plan.start[model] <= step < plan.stop[model])


@pytest.mark.parametrize("seed", range(4))
def test_every_model_is_trained_once_and_no_slot_holds_two(seed):
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 40, 17).tolist()
    check(plan_slots(steps, 5), steps)
    check(plan_slots(steps[:3], 5), steps[:3])
    check(plan_slots([1], 1), [1])
    again = plan_slots(steps, 5)
    assert np.array_equal(again.start, plan_slots(steps, 5).start) and np.array_equal(
        again.slot, plan_slots(steps, 5).slot
    )


def test_places_after_the_last_slot_are_always_empty():
    plan = plan_slots([5, 3, 4, 2], 3)
    for step in range(plan.steps):
        models = plan.at(step, 8)
        assert models.shape == (8,) and models[:3].tolist() == plan.at(step).tolist() and (models[3:] == -1).all()
    assert plan.at(0, 2).shape == (3,)


def test_the_plan_is_within_grahams_bound_of_the_best():
    rng = np.random.default_rng(0)
    for _ in range(20):
        steps = rng.integers(1, 12, 6).tolist()

        def length(order, slots=2, steps=steps):
            ends = [0] * slots
            for model in order:
                ends[ends.index(min(ends))] += steps[model]
            return max(ends)

        best = min(length(order) for order in permutations(range(6)))  # some order of this rule is optimal
        assert plan_slots(steps, 2).steps <= (4 / 3 - 1 / 6) * best + 1e-9


@pytest.mark.parametrize("slots", [8, 16])
def test_flans_sixty_tasks_keep_the_slots_full(slots):
    """Steps in proportion to rows (three epochs, sixteen rows per step), none above 30,000 rows."""
    steps = [-(-3 * min(task.rows, 30_000) // 16) for task in select("paper") if task.cluster != "misc"]
    assert len(steps) == 60
    plan = plan_slots(steps, slots)
    assert (plan.at(plan.steps // 2) >= 0).all()
    assert plan.utilisation >= 0.9
