"""The order of blocks: replayed by hand, it gives every variant its own sequence of adapters."""

import numpy as np
import pytest

from mossa_jax.function import profile
from mossa_jax.function.variant_schedule import choose_lanes, distinct_sources, make_schedule, schedule_size


def replay(schedule, layers):
    """Runs a schedule on tuples that record whose adapter each block had; lanes of a turn read before any writes."""
    slots = {0: ()}
    for layer in range(layers):
        for turn in range(schedule.bounds[layer], schedule.bounds[layer + 1]):
            states = [slots.get(slot, ()) for slot in schedule.read[turn]]
            for state, slot, source in zip(states, schedule.write[turn], schedule.source[turn], strict=True):
                slots[slot] = (*state, source)
    return [slots[slot] for slot in schedule.slot_of]


@pytest.mark.parametrize(("layers", "lanes"), [(1, 1), (3, 1), (3, 4), (8, 3), (8, 16), (32, 7)])
def test_every_variant_gets_its_own_sequence_of_adapters(layers, lanes):
    variants = profile.sources(profile.profile_variants(layers))
    schedule = make_schedule(variants, schedule_size(variants, lanes))
    assert replay(schedule, layers) == [tuple(row) for row in variants]
    distinct = len(np.unique(variants, axis=0))
    assert len(set(schedule.slot_of)) == distinct == max(8 * layers - 7, 3)
    # Shared states leave half of the blocks that separate passes would run.
    assert schedule.steps == (4 * layers**2 - 3 * layers + 2 if layers > 1 else 3)
    assert schedule.slot_of.max() < schedule.size.slots - 1 and schedule.size.slots % lanes == 0


def test_random_variants_are_replayed_too():
    rng = np.random.default_rng(0)
    variants = rng.integers(0, 4, (50, 6))
    for lanes in (1, 2, 5):
        schedule = make_schedule(variants, schedule_size(variants, lanes))
        assert replay(schedule, 6) == [tuple(row) for row in variants]


def test_equal_sources_fit_the_size_of_different_ones():
    variants = profile.sources(profile.profile_variants(8))
    size = schedule_size(variants, 3)
    merged = np.where(variants == profile.CONTROL, profile.TUNED, variants)
    schedule = make_schedule(merged, size)
    assert schedule.size == size and schedule.bounds[-1] < size.turns
    assert replay(schedule, 8) == [tuple(row) for row in merged]


def test_lanes_are_rarely_idle():
    variants = profile.sources(profile.profile_variants(32))
    for most in (1, 4, 16):
        lanes = choose_lanes(variants, most)
        schedule = make_schedule(variants, schedule_size(variants, lanes))
        assert most // 2 < lanes <= most
        assert schedule.size.turns * lanes <= 1.04 * schedule.steps


def test_sources_are_the_same_where_their_updates_are():
    rng = np.random.default_rng(1)
    adapters = {
        target: {
            "a": rng.standard_normal((3, 4, 5, 2), np.float32),
            "b": rng.standard_normal((3, 4, 2, 5), np.float32),
            "scale": np.ones((3, 4), np.float32),
        }
        for target in ("q_proj", "v_proj")
    }
    for update in adapters.values():
        update["scale"][0] = 0  # the base: nothing, whatever a and b are
        update["b"][1, 1] = 0  # another way of nothing
        for leaf in update.values():
            leaf[2, 3] = leaf[1, 3]
    adapters["q_proj"]["b"][2, 1] = 0
    assert distinct_sources(adapters).tolist() == [[0, 0, 0, 0], [1, 0, 1, 1], [2, 2, 2, 1]]
