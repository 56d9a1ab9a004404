"""The findings at the terminal."""

from mossa_jax.run.pipeline import summary


def test_the_summary_says_first_how_many_specialists_are_competent_and_names_the_exploratory_claims():
    competence = {"measured": True, "competent": ["a"], "incompetent": ["b", "c"], "few": True}
    findings = [
        {"verdict": "contradicted", "title": "First", "sentence": "One.", "family": "primary"},
        {"verdict": "too few", "title": "Second", "sentence": "Two.", "family": "exploratory"},
    ]
    report = {"competence": competence, "findings": findings, "page": "runs/x/report.html", "variants": ["a=1", "b=2"]}
    lines = summary(report).split("\n")
    assert lines[1:3] == [
        "Findings",
        "Fewer than half of the specialists use their prompts: 2 of 3 specialists do not use their prompts and are "
        "left out of all findings (b, c).",
    ]
    assert lines[3:5] == ["[contradicted] First: One.", "[too few] Second (exploratory): Two."]
    assert lines[-2:] == ["Report: runs/x/report.html", "Variants beside the first results: a=1; b=2"]
    assert summary(report | {"variants": []}).endswith("\nReport: runs/x/report.html")
