"""The findings at the terminal."""

import pytest

from mossa_jax.findings.warnings import RunWarning
from mossa_jax.run.summary import summary

COMPETENCE = {"measured": True, "competent": ["a"], "incompetent": ["b", "c"], "few": True}
LEAD = (
    "Fewer than half of the specialists are shown to use their prompts: 1 of 3 specialists is shown to use its "
    "prompts; all findings rest on the tasks of these alone."
)
PLACES = {"page": "runs/x/report.html", "variants": []}


def finding(verdict, title, sentence, family="primary", qualifications=()):
    more = {"family": family, "qualifications": list(qualifications)}
    return {"verdict": verdict, "title": title, "sentence": sentence, **more}


def in_words(findings, width=None, warnings=(), **places):
    report = {"competence": COMPETENCE, "findings": findings, "warnings": list(warnings), **PLACES, **places}
    return summary(report, width).split("\n")


def test_the_summary_says_first_how_many_specialists_are_competent_and_names_the_exploratory_claims():
    findings = [
        finding("contradicted", "First", "One. More of it on the page."),
        finding("supported", "Second", f"{LEAD} Two.", "exploratory"),
        finding("undecided", "Sixth", "Nothing is known.", "exploratory"),
        finding("too few", "Fifth", "Two are too few."),
        finding("not measured", "Third", "No reason of interest."),
        finding("not measured", "Fourth", "None."),
    ]
    lines = in_words(findings, 500)
    assert lines[1].startswith("Findings in short (change: the tuned model's CKA with a task's specialist minus")
    assert lines[2] == LEAD
    assert lines[3:8] == ["[contradicted] First: One.", "[supported] Second (exploratory): Two.", "[undecided] Sixth",
                          "[too few] Fifth",
                          "[not measured] Third; Fourth"]  # fmt: skip
    assert lines[-1] == "Report: runs/x/report.html"
    places = ["Report: runs/x/report.html", "Variants beside the first results: a=1; b=2"]
    assert in_words(findings, 500, variants=["a=1", "b=2"])[-2:] == places


def test_what_qualifies_a_finding_stands_beside_its_verdict_and_late_warnings_above():
    early = RunWarning("few_steps_of_e", "fewer than 20 steps for E: 11; it shows nothing")
    late = RunWarning(
        "idle_base", "tasks whose prompts the base is not shown to use: a to e; it says little", tuple("abcde")
    )
    findings = [finding("contradicted", "First", "One.", qualifications=["E took few steps", "its one task is cut"])]
    lines = in_words(findings, 500, [early.record(), late.record()])
    assert lines[1].startswith("warning: tasks whose prompts the base is not shown to use: a, b, c and 2 more; raise")
    assert [lines[0], lines[2]] == ["", ""] and lines[3].startswith("Findings in short")
    assert lines[5] == "[contradicted] (but E took few steps) First: One."


def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(monkeypatch):
    sentence = "In layers 5 to 8, tuned minus pre-trained CKA is +0.554 [+0.411, +0.696] on average over 9 clusters."
    findings = [finding("supported", "First", f"{sentence} The rest.")]
    # The path of the report stays whole, to be copied.
    lines = in_words(findings, 60)[:-1]
    assert max(map(len, lines)) <= 60
    assert sentence in " ".join(" ".join(lines).split()) and "The rest" not in " ".join(lines)
    # The columns of the terminal where there is one; a file has 120.
    monkeypatch.setenv("COLUMNS", "50")
    assert 50 < max(map(len, in_words(findings)[:-1])) <= 120
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert max(map(len, in_words(findings)[:-1])) <= 50


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        ("The curve is a drift: from +0.148 to +0.554 in layers 2 to 5.", "Where it begins is open."),
        ("It is +0.554 [+0.411, +0.696].", "Two seeds reach 0.914."),
        ("Over 9 clusters (17 tasks).", "E stands at 84 %."),
    ],
)
def test_a_sentence_ends_where_a_reader_ends_it(first, rest):
    findings = [finding("undecided", "Title", f"{first} {rest}")]
    lines = in_words(findings, 900)
    assert lines[3] == f"[undecided] Title: {first}"
