"""Rows that share items: values, jackknife, null and template error against float64 definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mossa_jax.errors import Refusal
from mossa_jax.similarity import UndefinedSimilarity, cka, compare_states, null, reference
from mossa_jax.similarity.changes import interval_of, paired_changes

PAIRS = [(0, 2), (1, 2)]
# Items of 1 to 4 rows, mixed; 40 rows. Ids are not in the order of the rows.
ITEMS = np.random.default_rng(0).permutation(np.repeat(np.arange(17)[::-1] * 3 + 5, [1, 4, 2, 3] * 4 + [1])[:40])


def related_states(layers=2, models=3, d=24, seed=0, items=ITEMS):
    """[models, layers, n, d] float32 with an offset; rows of one item are near each other."""
    rng = np.random.default_rng(seed)
    slot = np.unique(items, return_inverse=True)[1]
    own = rng.normal(size=(models, layers, slot.max() + 1, d))[:, :, slot]
    common = rng.normal(size=(1, layers, len(items), d))
    return (own + common + rng.normal(size=(models, layers, len(items), d)) + 3).astype(np.float32)


def by_definition(states, items, pair, layer, name):
    x, y = (states[m, layer].astype(np.float64) for m in pair)
    return reference.biased(x, y) if name == "biased" else reference.debiased_by_items(x, y, items)


def test_with_one_row_per_item_the_reference_is_the_unbiased_one():
    x, y = related_states()[:2, 0]
    assert reference.debiased_by_items(x, y, np.arange(40)) == pytest.approx(reference.debiased(x, y), abs=1e-12)


def test_values_and_replicates_are_those_of_the_definitions():
    states = related_states()
    # Padding in between and a row that is not finite in one model.
    padded = np.full((3, 2, 50, 24), 1e30, np.float32)
    slots = np.sort(np.random.default_rng(1).permutation(50)[:40])
    padded[:, :, slots] = states
    padded[1, 1, slots[7], 0] = np.nan
    items = np.full(50, 11)
    items[slots] = ITEMS
    found = compare_states(padded, np.isin(np.arange(50), slots), PAIRS, items=items)
    rows = np.delete(np.arange(40), 7)
    states, kept = states[:, :, rows], ITEMS[rows]
    assert (found.n, found.dropped, found.units) == (39, 1, len(np.unique(kept)))
    assert (found.undefined == "").all()
    for p, pair in enumerate(PAIRS):
        for k in range(2):
            for e, name in enumerate(("biased", "debiased")):
                value = by_definition(states, kept, pair, k, name)
                assert found.value[p, k, e] == pytest.approx(value, abs=1e-6)
                values, _ = reference.item_jackknife(states[pair[0], k], states[pair[1], k], kept, name)
                np.testing.assert_allclose(found.replicates[p, k, e], values, atol=2e-6)
    assert (found.low < found.value).all() and (found.value < found.high).all()


def test_ids_that_are_all_different_change_nothing():
    states = related_states()
    plain = compare_states(states, np.ones(40, bool), PAIRS, permutations=20)
    single = compare_states(states, np.ones(40, bool), PAIRS, permutations=20, items=[f"id{i}" for i in range(40)])
    for name in ("value", "low", "high", "null_mean", "p", "replicates"):
        np.testing.assert_array_equal(getattr(single, name), getattr(plain, name))
    assert single.units == plain.units == 40 and plain.repairing == "rows"
    values = reference.jackknife(states[0, 0], states[2, 0], "debiased")[0]
    np.testing.assert_allclose(plain.replicates[0, 0, 1], values, atol=1e-6)


def test_bfloat16_states_with_items():
    states = jnp.asarray(related_states(1), jnp.bfloat16)
    found = compare_states(states, np.ones(40, bool), PAIRS, items=ITEMS)
    assert found.value[0, 0, 1] == pytest.approx(
        by_definition(np.asarray(states, np.float64), ITEMS, (0, 2), 0, "debiased"), abs=1e-6
    )


def test_items_exchange_whole_and_within_templates():
    # Five items of three templates, four of two, three rows alone.
    items = np.concatenate([np.repeat(np.arange(5), 3), np.repeat(np.arange(5, 9), 2), [9, 10, 11]])
    templates = np.concatenate([np.tile([2, 0, 1], 5), np.tile([0, 1], 4), [0, 0, 2]])
    valid = np.ones(27, bool)
    valid[26] = False
    repairing = null.repairing_of(valid, items, templates)
    assert repairing.name == "items within templates"
    ranks = null.draw_ranks(valid, 400, 0, repairing)
    partners = np.asarray(null.permutations(jnp.asarray(ranks), jnp.asarray(valid)))[:, :26]
    assert (np.sort(partners, 1) == np.arange(26)).all()
    assert (templates[partners] == templates[:26]).all()
    pair = items[:26, None] == items[None, :26]
    drawn = items[partners]
    assert ((drawn[:, :, None] == drawn[:, None, :]) == pair).all()
    # Every item meets all items like it, equally often.
    assert abs((drawn[:, :15:3] == 0).mean(0) - 0.2).max() < 0.08
    names = [null.repairing_of(valid, *a).name for a in ((None, None), (None, templates), (items, None))]
    assert names == ["rows", "rows within templates", "items"]
    assert null.repairing_of(valid, None, np.arange(26 + 1)).name == "none"


def test_p_of_items_counts_as_the_definition_does():
    states = related_states(1, seed=3)
    templates = np.arange(40) % 2
    valid = np.ones(40, bool)
    found = compare_states(states, valid, [(0, 1)], permutations=60, seed=5, items=ITEMS, templates=templates)
    repairing = null.repairing_of(valid, ITEMS, templates)
    ranks = jnp.asarray(null.draw_ranks(valid, 60, 5, repairing))
    x, y = states[:2, 0].astype(np.float64)
    for e, name in enumerate(("biased", "debiased")):
        draws = [
            by_definition(np.stack([x, y[p]])[:, None], ITEMS, (0, 1), 0, name)
            for p in np.asarray(null.permutations(ranks, jnp.asarray(valid)))
        ]
        assert found.null_mean[0, 0, e] == pytest.approx(np.mean(draws), abs=2e-6)
        reached = np.sum(np.array(draws) >= found.value[0, 0, e] - 1e-6)
        assert 0 < reached < 60 and found.p[0, 0, e] == pytest.approx((1 + reached) / 61)


def test_what_cannot_be_said_is_not_said():
    states = related_states(1)
    valid = np.ones(40, bool)
    half = compare_states(states, valid, PAIRS, items=np.where(np.arange(40) < 20, 0, np.arange(40)))
    assert (half.undefined[..., 1] == "one item has half of the rows or more").all()
    assert np.isfinite(half.value[..., 0]).all() and (half.undefined[..., 0] == "").all()
    few = compare_states(states, valid, PAIRS, items=np.arange(40) % 3)
    assert (few.undefined == "3 items; at least 4 are needed").all()
    # Without one item another would have half of the rows: a value, but no jackknife.
    near = np.repeat(np.arange(5), [15, 12, 5, 4, 4])
    found = compare_states(states, valid, PAIRS, items=near)
    assert np.isfinite(found.value).all() and np.isnan(found.replicates[..., 1, :]).all()
    assert (found.low[..., 1] == -1).all() and (found.high[..., 1] == 1).all()
    # 2 items of each size can be exchanged: too few re-pairings for a p-value.
    none = compare_states(states, valid, PAIRS, permutations=30, items=np.repeat(np.arange(4), [10, 10, 9, 11]))
    assert none.repairing == "none" and np.isnan(none.p).all() and np.isfinite(none.value).all()
    with pytest.raises(Refusal, match=r"items have shape \[3\]; give one for each of 40 rows"):
        compare_states(states, valid, PAIRS, items=[1, 2, 3])
    with pytest.raises(Refusal, match="templates are float64"):
        compare_states(states, valid, PAIRS, templates=np.zeros(40))


def test_template_error_is_the_brute_force_jackknife():
    states = related_states(1)
    templates = np.arange(40) % 4
    found = compare_states(states, np.ones(40, bool), PAIRS, items=ITEMS, templates=templates)
    values = [
        by_definition(states[:, :, templates != t], ITEMS[templates != t], (0, 2), 0, "debiased") for t in range(4)
    ]
    error = np.sqrt(3 / 4 * np.square(values - np.mean(values)).sum())
    assert found.template_error[0, 0, 1] == pytest.approx(error, abs=2e-6)
    for unknown in (np.where(templates == 0, -1, templates), templates % 2, None):
        without = compare_states(states, np.ones(40, bool), PAIRS, items=ITEMS, templates=unknown)
        assert np.isnan(without.template_error).all()


def test_a_change_has_the_error_of_the_differences():
    found = compare_states(related_states(), np.ones(40, bool), PAIRS, items=ITEMS)
    change = paired_changes(found, [1], [0])
    values = found.replicates[1] - found.replicates[0]
    m = found.units
    error = np.sqrt((m - 1) / m * np.square(values - values.mean(-1, keepdims=True)).sum(-1))
    np.testing.assert_allclose(change.error[0], error)
    np.testing.assert_allclose(change.value[0], found.value[1] - found.value[0])
    # Another variance widens the interval; one with few degrees of freedom widens it more.
    wide = interval_of(change.value, change.error, change.degrees, [(0.01, 100)])
    wider = interval_of(change.value, change.error, change.degrees, [(0.01, 2)])
    assert (wide[0] < change.low).all() and (wider[0] < wide[0]).all() and (wide[2] > change.p).all()


def test_interval_of_is_students():
    low, high, p = interval_of(np.array([0.3, 0.0]), np.array([0.1, 0.0]), 9)
    assert [low[0], high[0]] == pytest.approx([0.3 - 0.2262157, 0.3 + 0.2262157], abs=1e-6)
    assert p[0] == pytest.approx(0.0149, abs=1e-4) and np.isnan(p[1])
    # Welch's two samples, variances of the means 0.01 and 0.04 with 9 and 4 degrees of freedom.
    effective = 0.05**2 / (0.01**2 / 9 + 0.04**2 / 4)
    assert interval_of(0.3, 0.1, 9, [(0.04, 4)])[2] == pytest.approx(2 * stats.t.sf(0.3 / 0.05**0.5, effective))


@pytest.mark.parametrize("d", [24, 8], ids=["rows", "features"])
def test_cka_of_two_arrays_with_items(d):
    x, y = related_states(d=d)[:2, 0]
    y = np.concatenate([y, y[:, :3] ** 2], 1)
    names = [f"passage {i}" for i in ITEMS]
    assert cka(x, y, items=names) == pytest.approx(reference.debiased_by_items(x, y, ITEMS), abs=1e-6)
    assert cka(x, y, "biased", items=names) == pytest.approx(reference.biased(x, y), abs=1e-6)
    assert cka(x, y, items=np.arange(40)) == cka(x, y) != pytest.approx(cka(x, y, items=names), abs=1e-3)
    with pytest.raises(UndefinedSimilarity, match="one item has half of the rows"):
        cka(x, y, items=np.minimum(np.arange(40), 20))
    with pytest.raises(Refusal, match="items name 2 items; give at least 4"):
        cka(x, y, items=np.arange(40) % 2)
