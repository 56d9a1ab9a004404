"""The variants of a layer profile, and its rows against sums by hand."""

import numpy as np
import pytest

from mossa_jax.function import profile
from mossa_jax.function.estimates import ratio
from mossa_jax.function.information import AnswerPairs, draw_swaps
from mossa_jax.tokens.encoded import Encoded, in_memory


def rows_of(layers=3, n=40, seed=0, gain=2.0):
    """Log probabilities in which every block that has an adapter adds to the own answer, and half of that to others."""
    rng = np.random.default_rng(seed)
    variants = profile.profile_variants(layers)
    items = np.arange(n) // 2
    lengths = rng.integers(1, 5, n)
    swaps = draw_swaps(items, (seed,), 1)
    own = [Encoded([1, 5], [7] * length) for length in lengths]
    pairs = AnswerPairs(in_memory([*own, *(own[other] for other in swaps[0])]), swaps, items)
    worth = rng.uniform(0.5, 1.5, (3, layers))
    worth[profile.BASE] = 0
    totals = np.asarray([worth[each.sources, np.arange(layers)].sum() for each in variants])[:, None]
    prompts = rng.uniform(0.5, 1.5, n)
    likelihoods = [
        (gain * part * totals * prompts - 9) * lengths[at] for part, at in ((1, slice(None)), (0.5, swaps[0]))
    ]
    likelihoods = np.concatenate(likelihoods, axis=1)
    return variants, pairs, likelihoods, profile.profile_rows(variants, pairs, likelihoods)


def test_variants_keep_the_blocks_that_their_names_say():
    variants = {(each.model, each.kept, each.layer): each.sources for each in profile.profile_variants(4)}
    assert len(variants) == 38
    assert variants["tuned", "upto", 0] == variants["control", "from", 5] == (0, 0, 0, 0)
    assert variants["tuned", "upto", 3] == (1, 1, 1, 0) and variants["control", "from", 3] == (0, 0, 2, 2)
    assert variants["control", "only", 2] == (0, 2, 0, 0)
    assert variants["tuned", "swap_upto", 1] == (2, 1, 1, 1) and variants["tuned", "swap_from", 4] == (1, 1, 1, 2)
    assert variants["tuned", "swap_upto", 0] == variants["tuned", "swap_from", 5] == variants["tuned", "from", 1]


@pytest.mark.parametrize(
    ("layers", "count", "cuts"), [(4, 0, [0, 1, 2, 3, 4]), (32, 4, [0, 8, 16, 24, 32]), (3, 9, [0, 1, 2, 3])]
)
def test_few_depths_are_an_even_choice(layers, count, cuts):
    assert profile.depths(layers, count) == cuts
    kept = {each.layer for each in profile.profile_variants(layers, count) if each.kept == "upto"}
    assert kept == set(profile.depths(layers, count))


def test_rows_are_sums_by_hand():
    variants, pairs, likelihoods, rows = rows_of()
    own, others = likelihoods[:, :40], likelihoods[:, 40:]
    nll = -own.sum(1) / pairs.lengths.sum()
    nats = (own - others).mean(1)
    at = {(row["model"], row["kept"], row["layer"]): number for number, row in enumerate(rows)}
    base = at["control", "from", 4]
    for number, (variant, row) in enumerate(zip(variants, rows, strict=True)):
        assert (row["model"], row["kept"], row["layer"]) == (variant.model, variant.kept, variant.layer)
        full = at[variant.model, "upto", 3]
        assert row["answer_nll"] == pytest.approx(nll[number]) and row["low"] <= row["answer_nll"] <= row["high"]
        assert row["cost"] == pytest.approx(nll[number] - nll[full], abs=1e-12)
        assert row["share_of_gain"] == pytest.approx((nll[base] - nll[number]) / (nll[base] - nll[full]))
        assert row["information"] == pytest.approx(nats[number], abs=1e-12)
        assert row["information_cost"] == pytest.approx(nats[full] - nats[number], abs=1e-12)
        share = (nats[number] - nats[base]) / (nats[full] - nats[base])
        assert row["share_of_information"] == pytest.approx(share, abs=1e-9) and row["n"] == 40
    full = rows[at["tuned", "upto", 3]]
    assert (full["share_of_gain"], full["cost"], full["share_of_information"], full["information_cost"]) == (1, 0, 1, 0)
    assert rows[base]["share_of_gain"] == rows[base]["share_of_information"] == 0
    # Costs are paired: their interval is that of the prompts' differences, which vary less than the losses themselves.
    number = at["tuned", "swap_upto", 2]
    swap, missing = rows[number], own[at["tuned", "upto", 3]] - own[number]
    paired = ratio(missing, pairs.lengths.astype(float), pairs.items)
    assert (swap["cost"], swap["cost_low"], swap["cost_high"]) == pytest.approx(paired)
    assert swap["information_cost_low"] < swap["information_cost"] < swap["information_cost_high"]


def test_a_share_of_no_gain_is_undefined():
    for gain, is_defined in ((2.0, True), (0.0, False), (-1.0, False)):
        *_, rows = rows_of(gain=gain)
        assert all(np.isfinite(row["share_of_gain"]) == is_defined for row in rows)
        assert all(np.isfinite(row["share_of_information"]) == is_defined for row in rows)
        assert all(np.isfinite([row["cost"], row["information_cost"]]).all() for row in rows)
