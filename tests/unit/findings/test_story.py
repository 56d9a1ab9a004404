"""The result in three sentences and the line of each claim: grammar, numbers, and nothing beyond the verdicts."""

import copy
import re

import numpy as np
import pytest

from mossa_jax.benchmarks.planted_findings import FLAN_SIZES
from mossa_jax.findings import competence_sentence
from mossa_jax.findings.headlines import headline, in_words
from mossa_jax.findings.shapes import SHAPES
from mossa_jax.findings.story import tell_story
from tests.support.planted_report import report_change, report_inputs, report_scores, report_table


def analysis_of(incompetent=(), change=False, scored=True, table=None, **table_options):
    table = report_table(**table_options) if table is None else table
    scores = {"scores": report_scores(table, incompetent)} if scored else {}
    return report_inputs(table, change=report_change(table) if change else None, **scores).analysis


def away(table):
    """Turns a planted rise into a fall of the same size."""
    rows = table.experimental.isin(["tuned", "tuned.seed1"]) & (table.control == table.task)
    return table.assign(cka=table.cka.where(~rows, 1.1 - table.cka))


PLANTED = {
    "a transition": lambda: analysis_of(("t05", "t06"), change=True),
    "as large as FLAN": lambda: analysis_of(sizes=FLAN_SIZES, layers=32, breaks=(9, 15), held_out=1),
    "one layer": lambda: analysis_of(breaks=(4, 5)),
    "a drift": lambda: analysis_of(breaks=(1, 8)),
    "no change": lambda: analysis_of(breaks=None),
    "a fall": lambda: analysis_of(table=away(report_table())),
    "one cluster": lambda: analysis_of(sizes=(4,), held_out=0),
    "one task": lambda: analysis_of(sizes=(1,), held_out=0),
    "three layers": lambda: analysis_of(layers=3, breaks=(1, 2)),
    "nothing held out": lambda: analysis_of(held_out=0),
    "no scores": lambda: analysis_of(scored=False),
    "nobody competent": lambda: analysis_of(tuple(report_table().task.unique())),
    "one competent": lambda: analysis_of(tuple(report_table().task.unique()[1:])),
    "nothing defined": lambda: analysis_of(table=report_table().assign(cka=np.nan, undefined="no variance")),
}


@pytest.fixture(scope="module", params=list(PLANTED))
def planted(request):
    return PLANTED[request.param]()


@pytest.fixture(scope="module")
def rise():
    return PLANTED["a transition"]()


def shift_of(analysis):
    return next(finding for finding in analysis["findings"] if finding["id"] == "shift")


def with_shift(analysis, verdict, **figures):
    """Returns the story of the same run with another verdict on the upper half."""
    analysis = copy.deepcopy(analysis)
    finding = shift_of(analysis)
    finding["verdict"] = verdict
    finding["figures"] |= figures
    return tell_story(analysis)


def test_every_result_has_three_sentences_of_sound_grammar(planted):
    story = planted["summary"]
    assert list(story) == ["found", "certainty", "threats"]
    for sentence in story.values():
        assert sentence[0].isupper() and sentence.endswith(".") and not sentence.endswith("..")
        assert not re.search(r"nan|None|\s\s|\( |,,|;;|,\s*\.|\b1 (tasks|clusters|claims|specialists)\b", sentence)
        assert not re.search(r"(?<![\d.])1 (are|have)\b|\b([02-9]|\d\d+) (is|has) ", sentence.replace("0 is", ""))


def test_numbers_of_the_story_are_those_of_the_findings(planted):
    shift, text = planted["shift"], " ".join(planted["summary"].values())
    if shift["mean"] is not None:
        assert f"{abs(shift['mean']):.3f} CKA" in text
    if shift["low"] is not None:
        assert f"{shift['low']:+.3f} to {shift['high']:+.3f} over {shift['n_units']} clusters" in text


def test_the_story_states_as_facts_only_what_the_verdicts_say(planted):
    verdicts, found = {each["id"]: each["verdict"] for each in planted["findings"]}, planted["summary"]["found"]
    assert ("nearer to" in found) == (verdicts["shift"] == "supported")
    assert ("away from" in found) == (verdicts["shift"] == "contradicted")
    assert ("stays up to the last layer" in found) == (verdicts["transition"] == "supported")


def test_planted_results_are_told_as_they_were_planted():
    found = {name: PLANTED[name]()["summary"]["found"] for name in ("a transition", "a fall", "a drift", "no change")}
    assert "nearer to the tasks' own specialists" in found["a transition"]
    assert "builds up in layers 4 to 5 of 8" in found["a transition"]
    assert "away from the tasks' own specialists" in found["a fall"]
    assert SHAPES["drift"].partition(":")[0] in found["a drift"]
    assert "not shown to change" in found["no change"] and "within 0.05 of zero" in found["no change"]


def test_an_undecided_change_is_no_fact(rise):
    found = with_shift(rise, "undecided", p_adjusted=0.3)["found"]
    assert "is not shown to change" in found and "nearer" not in found
    found = with_shift(rise, "undecided", p_adjusted=0.001)["found"]
    assert "with a reservation" in found and "nearer" not in found
    assert "over too few units to test" in with_shift(rise, "too few")["found"]


def test_certainty_counts_verdicts_units_and_specialists(rise):
    certainty = rise["summary"]["certainty"]
    assert certainty.startswith("Of the 4 primary claims, 3 are supported and 1 has too few units;")
    assert "20 of 22 specialists are shown to use their prompts" in certainty
    assert f"({shift_of(rise)['headline']['p']} for the number of claims)" in certainty


def test_threats_name_what_the_run_lacks(rise):
    assert "9 clusters" in rise["summary"]["threats"] and "held out" in rise["summary"]["threats"]
    lacking = copy.deepcopy(rise)
    lacking["ceiling"]["measured"] = False
    lacking["variance"] = [row | {"reason": "E has one seed"} for row in rise["variance"]]
    lacking["shift"]["n_units"] = 12
    for finding in lacking["findings"]:
        if finding["id"] == "shift":
            finding["qualifications"] = ["5 of its 17 tasks have few prompts"]
    threats = tell_story(lacking)["threats"]
    assert "no ceiling" in threats and "E has one seed" in threats and "clusters" not in threats
    assert threats.startswith("5 of the 17 tasks have few prompts;")


def test_more_threats_than_fit_are_counted(rise):
    many = copy.deepcopy(rise)
    shift_of(many)["qualifications"] = [f"reason {number}" for number in range(8)]
    assert "further reservations below" in tell_story(many)["threats"]


def test_a_run_of_idle_specialists_says_so_and_no_more():
    analysis = PLANTED["nobody competent"]()
    assert "none is shown to use its prompts" in analysis["summary"]["found"]
    assert "None of the 22 specialists" in competence_sentence(analysis["competence"])


def test_each_claim_has_its_line(rise):
    lines = {finding["id"]: finding["headline"] for finding in rise["findings"]}
    shift, fit = rise["shift"], rise["sections"]["fit"]
    low, high = f"{shift['low']:+.3f}", f"{shift['high']:+.3f}"
    assert lines["shift"]["figure"] == f"{shift['mean']:+.3f} CKA" and lines["shift"]["detail"] == f"[{low}, {high}]"
    assert lines["shift"]["units"] == f"{shift['n_units']} clusters, {shift['n_tasks']} tasks"
    assert lines["shift"]["p"] == "p = 0.012 corrected"
    before, after = fit["before"]["level"], fit["after"]["level"]
    assert in_words(lines["transition"]).startswith(f"{before:+.3f} to {after:+.3f} CKA in layers 4 to 5, 9 clusters")
    assert lines["clusters"]["detail"] == "of the spread of tasks lies between clusters"
    assert lines["gain"] == {"figure": "-", "detail": "", "units": "", "p": ""}


def test_lines_name_one_unit_and_one_layer():
    level = {"level": 0.1}
    fit = {"start": {"layer": 4}, "end": {"layer": 4}, "before": level, "after": level}
    figures = {"fit": fit, "p_adjusted": 0.0001, "n_units": 1, "n_tasks": 1, "unit": "tasks"}
    assert in_words(headline("transition", figures)) == "+0.100 to +0.100 CKA in layer 4, 1 task, p < 0.001 corrected"
    assert in_words(headline("ability", {"rho": -0.5})) == "-0.50 partial rank correlation"
    carried = {"mean": 0.27, "low": 0.12, "high": 0.41}
    part = {"rise": {"carried": carried, "share_of_layers": 0.625}, "top": None}
    assert in_words(headline("gain", {"by_change": part})) == "27 % [12 to 41 %] of the gain in 62 % of the layers"
