"""The findings in words: each sentence is made from numbers, and each verdict follows a stated rule (`RULES`)."""

from collections.abc import Callable
from typing import Any, TypedDict

from mossa_jax.findings.sections import ALPHA
from mossa_jax.tasks.thresholds import FEW_PROMPTS

LEVEL = 0.05
"""Level of the two-sided tests."""

SUPPORTED, WEAK, NOT_SUPPORTED, NOT_MEASURED = "supported", "weak", "not supported", "not measured"

RULES = {
    SUPPORTED: "significant, and both estimators agree in sign",
    WEAK: "significant, but with a reservation that the sentence states",
    NOT_SUPPORTED: "measured, but no more than chance would give, or over too few tasks",
    NOT_MEASURED: "this run has no data for it",
    "levels": f"{LEVEL} for two-sided tests, {ALPHA} for the one-sided test for a transition",
}
"""Verdict -> its meaning; and `levels`, those of the tests."""

Analysis = dict[str, Any]
"""The result of `find`, in JSON's own types."""


class Finding(TypedDict):
    """One finding.

    Attributes:
      title: its heading.
      sentence: what was found, with the numbers.
      verdict: one of the verdicts in `RULES`.
      figures: the numbers behind the sentence.
      chart: anchor of the section of the page that shows it.
    """

    title: str
    sentence: str
    verdict: str
    figures: dict[str, Any]
    chart: str


def statements(analysis: Analysis) -> list[Finding]:
    """States the findings, in the order of the page.

    A verdict of `supported` is lowered to `weak` if some task has fewer than `FEW_PROMPTS` prompts, except for the
    finding on ability, which also rests on task scores.

    Args:
      analysis: the other results of `find`, already in JSON's own types.
    """
    subjects: tuple[Callable[[Analysis], Finding], ...]
    subjects = (_sections, _shared, _shift, _clusters, _unseen, _specificity, _ability)
    findings = [state(analysis) for state in subjects]
    smallest = analysis["trust"]["prompts"]["smallest"]
    if smallest is not None and smallest < FEW_PROMPTS:
        for finding in findings:
            if finding["verdict"] == SUPPORTED and finding["chart"] != "training":
                finding["verdict"] = WEAK
                finding["sentence"] += f" The smallest task has only {smallest:.0f} prompts."
    return findings


def _sections(analysis: Analysis) -> Finding:
    sections, biased = analysis["sections"], analysis["robustness"]["biased"]["sections"]
    title = "Where the network changes"
    figures = {key: sections[key] for key in ("shared", "transition", "refinement", "start", "end", "p", "n_tasks")}
    if not sections["found"]:
        return Finding(
            title=title,
            sentence=f"No transition is claimed: {sections['reason']}.",
            verdict=NOT_SUPPORTED,
            figures=figures,
            chart="layers",
        )
    verdict = SUPPORTED
    shared, transition, refinement = sections["shared"], sections["transition"], sections["refinement"]
    end = (
        f"{_layers(refinement)} {_verb(refinement, 'refines', 'refine')}"
        if refinement
        else "the rise continues to the last layer"
    )
    sentence = (
        f"The tuned model departs from the pre-trained one in {_layers(transition)}: "
        f"{_layers(shared)} {_verb(shared, 'is', 'are')} shared, and {end} "
        f"(tuned minus pre-trained CKA rises from {_signed(sections['before']['level'])} to "
        f"{_signed(sections['after']['level'])}, {_p(sections['p'])} over {sections['n_tasks']} tasks; with 95 % "
        f"confidence the first transition layer is {_between(sections['start'])} and the last is "
        f"{_between(sections['end'])})."
    )
    if not sections["resolved"]:
        verdict = WEAK
        sentence += " The start or end of the transition is not resolved: its interval reaches the edge of the network."
    if not biased["found"]:
        verdict = WEAK
        sentence += f" The biased estimator shows no transition ({biased['reason']})."
    elif abs(biased["transition"][0] - transition[0]) > 2:
        verdict = WEAK
        sentence += f" The biased estimator places the transition in {_layers(biased['transition'])}."
    crossing = sections["crossing"] or {}
    if crossing.get("layer") is not None and crossing["interval"] is not None:
        low, high = crossing["interval"]
        sentence += f" On average the tuned model overtakes the pre-trained one at layer {crossing['layer']:.0f}"
        sentence += f" (95 % interval {low} to {high})."
        figures["crossing"] = crossing
    return Finding(title=title, sentence=sentence, verdict=verdict, figures=figures, chart="layers")


def _shared(analysis: Analysis) -> Finding:
    sections, title = analysis["sections"], "What the first layers share"
    if not sections["found"]:
        sentence = "Without a transition, no layers count as shared."
        return Finding(title=title, sentence=sentence, verdict=NOT_SUPPORTED, figures={}, chart="layers")
    change, biased = analysis["shared"], analysis["robustness"]["biased"]["shared"]
    subject = f"In {_layers(sections['shared'])} (shared), tuned minus pre-trained CKA with each task's specialist"
    sentence, verdict = _tested(change, biased, subject, expected_sign=-1.0)
    if verdict == SUPPORTED:
        sentence = f"{sentence[:-1]}: tuning moved the model away from the specialists."
    return Finding(title=title, sentence=sentence, verdict=verdict, figures=change, chart="layers")


def _shift(analysis: Analysis) -> Finding:
    change, biased = analysis["shift"], analysis["robustness"]["biased"]["shift"]
    subject = f"In {analysis['half']['name']}, tuned minus pre-trained CKA with each task's specialist"
    sentence, verdict = _tested(change, biased, subject)
    title = "What tuning adds in the upper half"
    return Finding(title=title, sentence=sentence, verdict=verdict, figures=change, chart="heatmap")


def _clusters(analysis: Analysis) -> Finding:
    ranking = [row for row in analysis["clusters"]["ranking"] if row["pretrained"]["mean"] is not None]
    differ, biased = analysis["clusters"]["differ"], analysis["robustness"]["biased"]["differ"]
    verdict = NOT_SUPPORTED
    if len(ranking) < 2:
        sentence = "Fewer than two clusters have defined cells, so nothing can be ranked."
        verdict = NOT_MEASURED
    else:
        highest, lowest = (
            f"{row['cluster']} ({row['pretrained']['mean']:.3f}, {_count(row['n_tasks'], 'task')})"
            for row in (ranking[0], ranking[-1])
        )
        sentence = (
            f"The pre-trained model's CKA with the specialists, in {analysis['clusters']['layers']}, is highest for "
            f"{highest} and lowest for {lowest}"
        )
        if differ["p"] is None:
            sentence += f"; whether clusters differ cannot be tested: {differ['reason']}."
        else:
            share = f"{100 * differ['eta_squared']:.0f} %"
            sentence += f"; clusters explain {share} of the spread over tasks ({_p(differ['p'])})"
            if differ["p"] > LEVEL:
                sentence += ", no more than chance would."
            elif biased["p"] is None or biased["p"] > LEVEL:
                verdict = WEAK
                sentence += ", more than chance would, though these two need not differ."
                sentence += " The biased estimator does not show this."
            else:
                verdict = SUPPORTED
                sentence += ", more than chance would, though these two need not differ."
    title = "Which clusters pre-training already holds"
    return Finding(title=title, sentence=sentence, verdict=verdict, figures=differ, chart="clusters")


def _unseen(analysis: Analysis) -> Finding:
    title, unseen = "Tasks held out of the mixture", analysis["unseen"]
    if not unseen["tasks"]:
        sentence = "No task was held out of the mixture."
        return Finding(title=title, sentence=sentence, verdict=NOT_MEASURED, figures={}, chart="held-out")
    change, biased = unseen["upper"], analysis["robustness"]["biased"]["unseen"]["upper"]
    subject = f"For tasks held out of the mixture, in {analysis['upper']['name']}, tuned minus pre-trained CKA"
    sentence, verdict = _tested(change, biased, subject)
    return Finding(title=title, sentence=sentence, verdict=verdict, figures=change, chart="held-out")


def _specificity(analysis: Analysis) -> Finding:
    title, specificity = "Own specialist against others", analysis["specificity"]
    if not specificity["measured"]:
        sentence = "Specialists of other tasks were not compared, so E may be equally near to all of them."
        return Finding(title=title, sentence=sentence, verdict=NOT_MEASURED, figures={}, chart="trust")
    gap, biased = specificity["tuned"], analysis["robustness"]["biased"]["specificity"]["tuned"]
    subject = (
        f"In {analysis['upper']['name']}, the tuned model's CKA with a task's own specialist minus its CKA with "
        "specialists of other clusters"
    )
    sentence, verdict = _tested(gap, biased, subject)
    return Finding(title=title, sentence=sentence, verdict=verdict, figures=gap, chart="trust")


def _ability(analysis: Analysis) -> Finding:
    title, ability = "Similarity and ability", analysis["scores"]
    means, link = ability["means"], ability["rank_correlation"]
    if all(value is None for value in means.values()):
        sentence = "Task scores were not measured."
        return Finding(title=title, sentence=sentence, verdict=NOT_MEASURED, figures={}, chart="training")
    biased = analysis["robustness"]["biased"]["ability"]
    names = {"base": "pre-trained", "tuned": "multi-task", "control": "specialists"}
    scores = ", ".join(f"{name} {means[model]:.3f}" for model, name in names.items() if means[model] is not None)
    sentence = f"Mean exact match over tasks of the mixture: {scores}"
    verdict = NOT_SUPPORTED
    if link["rho"] is None:
        sentence += "; there are too few tasks, or too little spread, to relate it to similarity."
    else:
        sentence += (
            f". The rank correlation of pre-trained CKA with the specialist's gain in score is {link['rho']:+.2f} "
            f"over {link['n_tasks']} tasks ({_p(link['p'])})"
        )
        if link["p"] > LEVEL:
            sentence += ": no relation is shown."
        elif biased["rho"] is not None and biased["rho"] * link["rho"] < 0:
            verdict = WEAK
            sentence += f", but the biased estimator gives the opposite sign ({_signed(biased['rho'])})."
        elif link["rho"] < 0:
            verdict = SUPPORTED
            sentence += ": specialists gain most where the pre-trained model is least similar to them."
        else:
            verdict = SUPPORTED
            sentence += "."
    return Finding(title=title, sentence=sentence, verdict=verdict, figures=link, chart="training")


def _tested(
    change: dict[str, Any], biased: dict[str, Any], subject: str, expected_sign: float = 1.0
) -> tuple[str, str]:
    """Puts a paired comparison into words.

    Args:
      change: the `PairedChange` by the headline estimator.
      biased: the same by the biased estimator, as a check.
      subject: the quantity that was compared, the subject of the sentence.
      expected_sign: the sign that the claim predicts.

    Returns:
      The sentence and the verdict.
    """
    mean, p = change["mean"], change["p"]
    if mean is None:
        return f"{subject} could not be computed.", NOT_MEASURED
    if p is None:
        return f"{subject} is {_signed(mean)} on average, but {change['reason']}.", NOT_SUPPORTED
    sentence = (
        f"{subject} is {_signed(mean)} on average over {change['n_tasks']} tasks "
        f"(95 % interval {_signed(change['low'])} to {_signed(change['high'])}, {_p(p)} by sign flips over tasks; "
        f"positive for {change['positive']} of {change['n_tasks']})"
    )
    if p > LEVEL:
        return f"{sentence}: not distinguishable from zero.", NOT_SUPPORTED
    if mean * expected_sign < 0:
        return f"{sentence}: the opposite of the expected direction.", NOT_SUPPORTED
    if biased["mean"] is not None and biased["mean"] * mean < 0:
        return f"{sentence}, but the biased estimator gives the opposite sign ({_signed(biased['mean'])}).", WEAK
    return f"{sentence}.", SUPPORTED


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _layers(span: list[int]) -> str:
    return f"layer {span[0]}" if span[0] == span[1] else f"layers {span[0]} to {span[1]}"


def _between(interval: list[int]) -> str:
    return f"{interval[0]}" if interval[0] == interval[1] else f"between {interval[0]} and {interval[1]}"


def _verb(span: list[int], singular: str, plural: str) -> str:
    return singular if span[0] == span[1] else plural


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
