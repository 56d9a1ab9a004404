"""The findings at the terminal."""

from mossa_jax.findings.warnings import RunWarning
from mossa_jax.run.summary import summary

STORY = {"found": "Layers 4 to 5 change.", "certainty": "One claim is supported.", "threats": "E has one seed."}
LEAD = [
    "",
    "What was found: Layers 4 to 5 change.",
    "How sure it is: One claim is supported.",
    "What could change it: E has one seed.",
    "",
]
PLACES = {"page": "runs/x/report.html", "variants": []}


def finding(verdict, title, figure="+0.1 CKA", family="primary", qualifications=(), units="9 clusters", p=""):
    line = {"figure": figure, "detail": "[0, 1]", "units": units, "p": p}
    more = {"family": family, "qualifications": list(qualifications), "sentence": f"{title} at length."}
    return {"verdict": verdict, "title": title, "headline": line, **more}


def in_words(findings, width=None, warnings=(), **places):
    report = {"summary": STORY, "findings": findings, "warnings": list(warnings), **PLACES, **places}
    return summary(report, width).split("\n")


def test_the_result_comes_first_and_then_each_claim_in_a_line():
    findings = [
        finding("contradicted", "First", p="p = 0.012 corrected"),
        finding("supported", "Second", family="exploratory"),
        finding("undecided", "Sixth", family="exploratory"),
        finding("too few", "Fifth"),
        finding("not measured", "Third"),
        finding("not measured", "Fourth"),
    ]
    lines = in_words(findings, 500)
    assert lines[:5] == LEAD
    assert lines[5:10] == [
        "[contradicted] First: +0.1 CKA [0, 1], 9 clusters, p = 0.012 corrected",
        "[supported] Second (exploratory): +0.1 CKA [0, 1], 9 clusters",
        "[undecided] Sixth",
        "[too few] Fifth",
        "[not measured] Third; Fourth",
    ]
    assert lines[-1] == "Report: runs/x/report.html" and "at length" not in " ".join(lines)
    places = ["Report: runs/x/report.html", "Variants beside the first results: a=1; b=2"]
    assert in_words(findings, 500, variants=["a=1", "b=2"])[-2:] == places


def test_what_qualifies_a_finding_stands_behind_its_figures_and_late_warnings_above():
    early = RunWarning("few_steps_of_e", "fewer than 20 steps for E: 11; it shows nothing")
    late = RunWarning(
        "idle_base", "tasks whose prompts the base is not shown to use: a to e; it says little", tuple("abcde")
    )
    findings = [finding("contradicted", "First", qualifications=["E took few steps", "its one task is cut"])]
    lines = in_words(findings, 500, [early.record(), late.record()])
    assert lines[1].startswith("warning: tasks whose prompts the base is not shown to use: a, b, c and 2 more; raise")
    assert lines[2:7] == LEAD
    assert lines[7] == "[contradicted] First: +0.1 CKA [0, 1], 9 clusters (but E took few steps, and 1 more)"


def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(monkeypatch):
    figure = "from +0.054 to +0.595 CKA in layers 2 to 6 of a network whose name is long, over many clusters"
    findings = [finding("supported", "First", figure)]
    # The path of the report stays whole, to be copied.
    lines = in_words(findings, 60)[:-1]
    assert max(map(len, lines)) <= 60
    assert figure in " ".join(" ".join(lines).split())
    # The columns of the terminal where there is one; a file has 120.
    monkeypatch.setenv("COLUMNS", "50")
    assert 50 < max(map(len, in_words(findings)[:-1])) <= 120
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert max(map(len, in_words(findings)[:-1])) <= 50
