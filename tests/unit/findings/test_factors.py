"""What similarity is made of, over units: parts of the change, and the claim within the answer."""

import numpy as np
import pytest

from mossa_jax.findings.claims import CLAIMS, CONTRADICTED, SUPPORTED, TOO_FEW, Evidence, judge
from mossa_jax.findings.factors import defined_tasks, find_factors, parts_sentence, within_evidence
from mossa_jax.findings.json_types import to_json_types
from mossa_jax.findings.units import estimate
from mossa_jax.similarity.projections import FACTORS
from tests.support.planted_factor_tables import tables

HALF = ["3", "4"]


def judged(**evidence):
    """The findings by name, if nothing else was measured."""
    others = {claim.name: Evidence("", is_measured=False) for claim in CLAIMS}
    return {finding["id"]: finding for finding in judge(others | evidence)}


def found(incompetent=(), **options):
    return to_json_types(find_factors(tables(**options), incompetent, HALF, 0, 500))


def test_parts_of_the_change_are_means_over_clusters_and_sum_to_it():
    result = found()
    parts = {name: result["parts"][name]["change"] for name in FACTORS}
    assert parts["template"]["mean"] == pytest.approx(-0.05) and parts["rest"]["mean"] == pytest.approx(0.03)
    assert parts["answer"]["n_units"] == 9
    own = tables()["factors"]
    own = own[(own.factor == "answer") & (own.layer == "4") & (own.experimental == "tuned") & ~own.held_out]
    expected = estimate(own.change.to_numpy(), list(own.cluster), (0,), 500)
    assert parts["answer"]["mean"] == pytest.approx(expected["mean"])
    assert parts["answer"]["low"] == pytest.approx(expected["low"])
    # The item is known nowhere, so it has no part.
    assert parts["item"]["mean"] is None
    assert parts_sentence(result).startswith("The change of +0.4")
    assert "answer +0.5" in parts_sentence(result) and "template -0.050, rest +0.030" in parts_sentence(result)


def test_a_factor_that_one_task_does_not_tell_apart_is_no_part_of_its_change():
    these = tables()
    rows = (these["factors"].factor == "rest") & (these["factors"].task == "t0")
    these["factors"].loc[rows, ["cka", "change"]] = np.nan
    result = find_factors(these, [], HALF, 0, 500)
    assert result["parts"]["rest"]["change"]["mean"] == pytest.approx(0.03 * 8 / 9)
    assert result["parts"]["rest"]["pretrained"]["n_tasks"] == 9


@pytest.mark.parametrize(("change", "verdict"), [(0.2, SUPPORTED), (-0.2, CONTRADICTED)])
def test_the_claim_follows_the_change_within_the_answer(change, verdict):
    evidence = within_evidence(found(within_change=change))
    finding = judged(within_answer=evidence)["within_answer"]
    assert finding["verdict"] == verdict
    assert (
        f"{change:+.1f}"[:4] in finding["sentence"] and "all prompts of these tasks it is +0.5" in finding["sentence"]
    )


def test_incompetent_and_held_out_tasks_carry_nothing():
    result = found(incompetent=["t0", "t1", "t2"])
    assert result["within"]["answer"]["change"]["n_tasks"] == 6 and result["n_tasks"] == 6
    result = found(incompetent=["t0", "t1", "t2", "t3"])
    assert judged(within_answer=within_evidence(result))["within_answer"]["verdict"] == TOO_FEW


def test_free_text_and_undefined_tasks_are_left_out_with_their_reasons():
    result = found(kinds={"t1": "embedding", "t2": "first token"}, reasons={"t3": "one answer"})
    assert result["left_out"] == {"t1": "too few prompts have equal answers", "t3": "one answer"}
    assert result["within"]["answer"]["change"]["n_tasks"] == 7
    assert [row["task"] for row in result["task_changes"]] == ["t0", "t2", "t4", "t5", "t6", "t7", "t8"]


def test_without_templates_the_claim_is_measured_all_the_same():
    result = found(within_change=0.2, template=False)
    assert result["within"]["answer"]["change"]["n_tasks"] == 9
    evidence = within_evidence(result)
    assert evidence.is_measured and "template" not in evidence.sentence
    assert defined_tasks(tables(template=False)["within"])[1] == {}


def test_without_the_tables_nothing_is_measured():
    result = to_json_types(find_factors({}, [], HALF))
    assert result == {"measured": False} and parts_sentence(result) == ""
    assert not within_evidence(result).is_measured
    result = found(incompetent=[f"t{task}" for task in range(9)])
    assert not result["measured"] and not within_evidence(result).is_measured
