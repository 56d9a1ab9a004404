"""The findings at the terminal."""

from mossa_jax.findings.warnings import RunWarning
from mossa_jax.run.pipeline import summary


def test_the_summary_says_first_how_many_specialists_are_competent_and_names_the_exploratory_claims():
    competence = {"measured": True, "competent": ["a"], "incompetent": ["b", "c"], "few": True}
    findings = [
        {"verdict": "contradicted", "title": "First", "sentence": "One.", "family": "primary", "qualifications": []},
        {
            "verdict": "too few",
            "title": "Second",
            "sentence": "Two.",
            "family": "exploratory",
            "qualifications": ["E took few steps", "its one task is cut"],
        },
    ]
    early = RunWarning("few_steps_of_e", "fewer than 20 steps for E: 11; it shows nothing")
    late = RunWarning("idle_base", "tasks whose prompts the base is not shown to use: a; it says little")
    warnings = [early.record(), late.record()]
    places = {"page": "runs/x/report.html", "variants": ["a=1", "b=2"]}
    said = {"competence": competence, "findings": findings, "warnings": warnings, **places}
    lines = summary(said).split("\n")
    assert lines[:5] == [
        "",
        late.line,
        "",
        "Findings",
        "Fewer than half of the specialists are shown to use their prompts: 1 of 3 specialists is shown to use its "
        "prompts; all findings rest on the tasks of these alone.",
    ]
    assert lines[5:7] == [
        "[contradicted] First: One.",
        "[too few] (but E took few steps; its one task is cut) Second (exploratory): Two.",
    ]
    assert lines[-2:] == ["Report: runs/x/report.html", "Variants beside the first results: a=1; b=2"]
    assert summary(said | {"variants": []}).endswith("\nReport: runs/x/report.html")
    assert summary(said | {"warnings": warnings[:1]}).split("\n")[:2] == ["", "Findings"]
