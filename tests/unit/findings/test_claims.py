"""Verdicts: correction for the number of claims, opposites, reservations, and too few units."""

import pytest
from scipy.stats import false_discovery_control

from mossa_jax.findings.claims import CLAIMS, Evidence, holm, judge, sizes_agree

UNMEASURED = Evidence("Nothing.", is_measured=False)


def verdicts(**evidence):
    evidence = {claim.name: UNMEASURED for claim in CLAIMS} | evidence
    return {finding["id"]: finding for finding in judge(evidence)}


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert max(holm({"a": 0.01, "b": 0.04}).values()) >= max(false_discovery_control([0.01, 0.04]))


def test_a_claim_pays_for_the_others():
    alone = verdicts(shift=Evidence("", {}, p=0.03))["shift"]
    beside = verdicts(shift=Evidence("", {}, p=0.03), transition=Evidence("", {}, p=0.5))["shift"]
    assert (alone["verdict"], beside["verdict"]) == ("supported", "undecided")
    assert beside["figures"]["p_adjusted"] == pytest.approx(0.06)


def test_a_significant_opposite_contradicts():
    finding = verdicts(unseen=Evidence("It is -0.4.", {}, p=0.002, direction=-1))["unseen"]
    assert finding["verdict"] == "contradicted" and "opposite" in finding["sentence"]


def test_a_reservation_keeps_a_claim_from_being_supported():
    finding = verdicts(shift=Evidence("", {}, p=0.001, reservations=["The biased estimator differs."]))["shift"]
    assert finding["verdict"] == "undecided" and "biased" in finding["sentence"]


def test_too_few_units_are_named_before_any_p():
    finding = verdicts(unseen=Evidence("", {"p": None}, too_few="1 cluster is too few"))["unseen"]
    assert finding["verdict"] == "too few" and finding["figures"]["p_adjusted"] is None


def test_with_few_units_the_last_claims_give_way():
    """Six units allow p = 0.031: one claim can pass, two cannot."""
    evidence = {name: Evidence("", {}, p=2**-5, least_p=2**-5) for name in ("transition", "shift", "specificity")}
    result = verdicts(**evidence)
    assert [result[name]["verdict"] for name in evidence] == ["supported", "too few", "too few"]


def test_estimators_must_agree_in_size():
    assert sizes_agree(0.3, 0.2) and sizes_agree(-0.3, -0.5) and sizes_agree(0.3, None)
    assert not sizes_agree(0.3, 0.0001) and not sizes_agree(0.3, -0.3) and not sizes_agree(0.1, 0.3)
