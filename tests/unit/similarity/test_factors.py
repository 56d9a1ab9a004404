"""The split of CKA by factors: exact against float64 definitions, right on planted mixtures, silent without effect."""

import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.similarity import UndefinedSimilarity, compare_states, reference
from mossa_jax.similarity.factor_sums import PAIRS, WITHIN
from mossa_jax.similarity.factors import split_states
from mossa_jax.similarity.intervals import jackknife_error
from mossa_jax.similarity.projections import FACTORS, Factor, factor_design, span
from tests.support.planted_factors import (
    N,
    factors_of,
    labels,
    one_hot,
    planted,
    raw_parts,
    within_by_definition,
)


def split(states, levels, items=None, permutations=19, **options):
    states = jnp.asarray(states)
    valid = options.pop("valid", np.ones(states.shape[2], bool))
    return split_states(states, valid, factors_of(levels), items=items, permutations=permutations, **options)


def related_case(seed=0, rows=48):
    """Small states whose rows share items, with everything mixed: [3, 2, n, 20]."""
    rng = np.random.default_rng(seed)
    levels = {"template": rng.integers(0, 3, rows), "answer": rng.integers(0, 5, rows)}
    levels["item"] = np.sort(rng.integers(0, 20, rows))
    common = sum(rng.normal(size=(1, 2, each.max() + 1, 20))[:, :, each] for each in levels.values())
    return common + rng.normal(size=(1, 2, rows, 20)) + rng.normal(size=(3, 2, rows, 20)) + 2, levels


def test_parts_are_those_of_the_definition_and_sum_to_the_debiased_cka():
    states, levels = related_case()
    padded = np.full((3, 2, 60, 20), 1e30, np.float32)
    slots = np.sort(np.random.default_rng(1).permutation(60)[:48])
    padded[:, :, slots] = states
    padded[2, 1, slots[5], 3] = np.nan
    spread = {name: np.zeros(60, int) for name in levels}
    for name, each in levels.items():
        spread[name][slots] = each
    valid = np.isin(np.arange(60), slots)
    got = split(padded, spread, spread["item"], valid=valid)
    rows = np.delete(np.arange(48), 5)
    levels, states = {name: each[rows] for name, each in levels.items()}, states[:, :, rows].astype(np.float32)
    whole = compare_states(jnp.asarray(states), np.ones(47, bool), PAIRS, items=levels["item"])
    assert (got.n, got.units) == (47, len(np.unique(levels["item"])))
    np.testing.assert_allclose(got.whole, whole.value[..., 1], atol=1e-6)
    np.testing.assert_allclose(got.part.sum(2), got.whole, atol=1e-6)
    np.testing.assert_allclose(got.chance.sum(2), 0, atol=1e-6)
    columns = [one_hot(levels[name]) for name in ("template", "answer", "item")]
    designs = [np.concatenate(columns[: count + 1], 1) for count in range(3)]
    for p, (a, b) in enumerate(PAIRS):
        for k in range(2):
            raw = raw_parts(states[a, k], states[b, k], designs, levels["item"])
            np.testing.assert_allclose(got.part[p, k] + got.chance[p, k], raw, atol=2e-6)


@pytest.mark.parametrize(
    "shares",
    [
        {"template": 0.3, "answer": 0.4, "rest": 0.3},
        {"template": 0.6, "answer": 0.1, "rest": 0.3},
        {"template": 0.05, "answer": 0.9, "rest": 0.05},
        {"template": 0.2, "answer": 0.3, "item": 0.3, "rest": 0.2},
    ],
)
def test_planted_mixtures_are_recovered_within_three_hundredths(shares):
    rng = np.random.default_rng(3)
    levels = labels(rng, items=107 if "item" in shares else None)
    got = split(planted(rng, levels, shares, layers=2), levels, levels.get("item"))
    truth = [shares.get(name, np.nan) for name in FACTORS]
    np.testing.assert_allclose(got.whole, 1, atol=1e-6)
    np.testing.assert_allclose(got.part.mean(1), np.tile(truth, (2, 1)), atol=0.03)
    np.testing.assert_allclose(np.nansum(got.part, 2), got.whole, atol=1e-6)
    assert (got.p[..., [name in shares for name in FACTORS[:-1]] + [False]] == 1 / 20).all()


def test_many_levels_take_nothing_by_their_number():
    """Answers of four prompts each, in wide states with private noise: projections hold a quarter of the rest."""
    rng = np.random.default_rng(4)
    levels = labels(rng, answers=80)
    shares = {"template": 0.3, "answer": 0.3, "rest": 0.4}
    got = split(planted(rng, levels, shares, layers=3, private=0.3), levels)
    relative = got.part.mean(1) / got.whole.mean(1)[:, None]
    np.testing.assert_allclose(relative[:, [0, 1, 3]], np.tile([0.3, 0.3, 0.4], (2, 1)), atol=0.03)
    assert (got.chance[:, :, 1] > 0.03).all()


def test_a_factor_without_effect_has_no_part_and_an_even_p_value():
    rng = np.random.default_rng(5)
    levels = labels(rng, rows=160, items=80)
    effects = {name: each for name, each in levels.items() if name != "item"}
    # The models share templates and answers alone; what is left is each one's own.
    states = planted(rng, effects, {"template": 0.5, "answer": 0.5}, layers=40, private=0.15)
    got = split(states, levels, levels["item"], permutations=39)
    for f in (2, 3):
        part = got.part[0, :, f]
        assert abs(part.mean()) < 3 * part.std() / np.sqrt(40) + 1e-3
        # The error of each part is the spread of the parts.
        assert jackknife_error(got.part_replicates[0, :, f]).mean() == pytest.approx(part.std(), rel=0.35)
    assert 0.35 < got.p[0, :, 2].mean() < 0.65
    assert (got.p[0, :, :2] == 1 / 40).all()


def test_errors_are_those_of_a_jackknife_by_brute_force():
    rng = np.random.default_rng(6)
    levels = labels(rng, rows=60, templates=3, answers=4)
    states = planted(rng, levels, {"template": 0.3, "answer": 0.4, "rest": 0.3}, private=0.1, rest_width=8)
    got = split(states, levels)
    values = []
    for left_out in range(60):
        rows = np.delete(np.arange(60), left_out)
        values.append(split(states[:, :, rows], {name: each[rows] for name, each in levels.items()}).part[1, 0])
    brute = jackknife_error(np.stack(values, 1))[[0, 1, 3]]
    np.testing.assert_allclose(jackknife_error(got.part_replicates[1, 0])[[0, 1, 3]], brute, rtol=0.15)


def test_cka_within_levels_is_that_of_the_definition():
    states, levels = related_case(seed=2, rows=36)
    states = states.astype(np.float32)
    got = split(states, levels, levels["item"])
    designs = {
        "none": np.ones((36, 1)),
        "template": one_hot(levels["template"]),
        "answer": one_hot(levels["answer"]),
        "both": np.concatenate([one_hot(levels["template"]), one_hot(levels["answer"])], 1),
    }
    assert (got.within_undefined == "").all()
    for w, name in enumerate(WITHIN):
        for p, (a, b) in enumerate(PAIRS):
            value = within_by_definition(states[a, 0], states[b, 0], designs[name], levels["item"])
            assert got.within[w, p, 0] == pytest.approx(value, abs=2e-5)


def test_within_none_is_the_debiased_cka_with_its_error():
    states, levels = related_case(seed=3)
    got = split(states.astype(np.float32), levels, levels["item"])
    plain = compare_states(jnp.asarray(states, jnp.float32), np.ones(48, bool), PAIRS, items=levels["item"])
    np.testing.assert_allclose(got.within[0], plain.value[..., 1], atol=1e-6)
    error = jackknife_error(plain.replicates[:, :, 1])
    np.testing.assert_allclose(jackknife_error(got.within_replicates[0]), error, rtol=0.1)


def test_within_the_answer_only_what_answers_do_not_say_counts():
    rng = np.random.default_rng(7)
    levels = labels(rng, answers=40)
    states = planted(rng, levels, {"template": 0.01, "answer": 0.6, "rest": 0.39}, layers=2)
    # The control shares answers with the base, and E the rest as well.
    wide = states.shape[3] - 200
    states[0, :, :, wide - 24 : wide] = rng.normal(size=(2, N, 24)) * 0.39**0.25 / 24**0.25
    got = split(states, levels)
    none, answer = got.within[WITHIN.index("none")], got.within[WITHIN.index("answer")]
    assert (none[0] > 0.5).all() and (none[1] > 0.99).all()
    assert np.abs(answer[0].mean()) < 0.04 and (answer[1] > 0.99).all()
    # Within permuted answers nothing is taken out, whatever their number.
    shuffled = split(states, levels | {"answer": rng.permutation(levels["answer"])})
    np.testing.assert_allclose(shuffled.within[WITHIN.index("answer")], none, atol=0.03)


def test_a_continuous_answer_is_a_factor():
    rng = np.random.default_rng(8)
    levels = labels(rng)
    columns = rng.normal(size=(N, 6))
    states = planted(rng, levels, {"template": 0.3, "rest": 0.3})[..., :40]
    answer = columns / 6**0.25 * 0.4**0.25
    states = np.concatenate([states, np.broadcast_to(answer, (3, 1, N, 6))], 3).astype(np.float32)
    factors = {"template": Factor(labels=levels["template"]), "answer": Factor(columns=columns)}
    got = split_states(jnp.asarray(states), np.ones(N, bool), factors, permutations=19)
    np.testing.assert_allclose(got.part[:, 0, [0, 1, 3]], np.tile([0.3, 0.4, 0.3], (2, 1)), atol=0.04)
    assert (got.p[:, 0, 1] == 0.05).all()
    assert (got.within[WITHIN.index("answer"), 0] > 0.99).all()


def test_a_factor_with_as_many_levels_as_rows_is_named_and_left_out():
    rng = np.random.default_rng(9)
    levels = labels(rng, rows=60)
    levels["answer"] = np.arange(60)
    got = split(planted(rng, levels, {"template": 0.5, "rest": 0.5}), levels)
    assert got.design.notes["answer"] == "as many answers as prompts: it cannot be told from the rest"
    assert np.isnan(got.part[:, :, 1]).all() and np.isnan(got.p[:, :, 1]).all()
    np.testing.assert_allclose(np.nansum(got.part, 2), got.whole, atol=1e-6)
    assert set(got.within_undefined[WITHIN.index("answer")].ravel()) == {got.design.notes["answer"]}
    assert np.isnan(got.within[WITHIN.index("both")]).all()


def test_one_level_has_no_part_and_an_unknown_factor_has_none_to_tell():
    rng = np.random.default_rng(10)
    levels = labels(rng, rows=60)
    states = planted(rng, levels, {"answer": 0.5, "rest": 0.5})
    got = split(states, {"template": np.zeros(60, int), "answer": levels["answer"]})
    assert (got.part[:, :, 0] == 0).all() and np.isnan(got.part[:, :, 2]).all()
    assert got.design.notes == {"template": "one template", "item": "no item is known"}
    assert np.isfinite(got.within[WITHIN.index("both")]).all()


def test_an_answer_that_follows_from_the_template_is_no_factor_beside_it():
    template = np.arange(60) % 6
    design = factor_design(factors_of({"template": template, "answer": template // 2}), np.ones(60, bool))
    assert design.notes["answer"] == "answer follows from template"
    assert design.degrees == {"template": 5, "answer": 0, "item": 0, "rest": 54}


def test_spaces_are_orthonormal_projections_on_all_columns():
    rng = np.random.default_rng(11)
    levels = {"template": rng.integers(0, 4, 50), "answer": rng.integers(0, 9, 50), "item": rng.integers(0, 20, 50)}
    factors = [factor.select(np.ones(50, bool)) for factor in factors_of(levels).values()]
    space = span(factors, 50)
    columns = np.concatenate([one_hot(each) for each in levels.values()], 1)
    assert space.degrees == np.linalg.matrix_rank(columns) - 1
    vectors = rng.normal(size=(50, 3))
    np.testing.assert_allclose(space.project(vectors), vectors - residual_of(vectors, columns), atol=1e-10)


def residual_of(vectors, columns):
    return vectors - columns @ np.linalg.lstsq(columns, vectors, rcond=None)[0]


def test_a_state_without_variance_is_undefined_with_its_reason():
    rng = np.random.default_rng(12)
    levels = labels(rng, rows=60, templates=3, answers=4)
    states = planted(rng, levels, {"template": 0.5, "rest": 0.5})
    states[0] = 5.0
    got = split(states, levels)
    assert got.within_undefined[0, 0, 0] == "no variance in a" and np.isnan(got.part[0]).all()
    assert got.within_undefined[0, 1, 0] == "" and np.isfinite(got.whole[1]).all()


def test_fewer_than_four_items_are_too_few():
    rng = np.random.default_rng(13)
    levels = labels(rng, rows=60, templates=3, answers=4)
    with pytest.raises(UndefinedSimilarity, match="3 items; at least 4"):
        split(planted(rng, levels, {"template": 0.5, "rest": 0.5}), levels, np.arange(60) % 3)


def test_the_same_call_gives_the_same_bytes():
    states, levels = related_case(seed=14)
    first, second = (split(states.astype(np.float32), levels, levels["item"], seed=5) for _ in range(2))
    for name in ("part", "part_replicates", "p", "within"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


def test_the_reference_agrees_on_the_whole():
    states, levels = related_case(seed=15)
    states = states.astype(np.float32)
    got = split(states, levels)
    assert got.whole[0, 1] == pytest.approx(reference.debiased(states[0, 1], states[2, 1]), abs=1e-6)
