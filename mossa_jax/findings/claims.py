"""The claims, fixed before any run, and the rule by which each ends in a verdict.

A run tests several claims, so each is judged after Holm's correction over its family: whatever is true, the chance that
any claim of the primary family is wrongly decided is at most 5 %, and 2.5 % for the exploratory family. A claim whose
least possible p value could never pass is `too few`, before any p is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

from mossa_jax.findings.headlines import Headline, headline

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
TOO_FEW, NOT_MEASURED = "too few", "not measured"

RULES = {
    SUPPORTED: "significant after correction for the number of claims, and both estimators agree in size",
    CONTRADICTED: "the opposite is significant after the same correction",
    UNDECIDED: "neither the claim nor its opposite is shown, or with a reservation that the sentence states",
    TOO_FEW: "measured, but over so few units that no result could have been significant",
    NOT_MEASURED: "this run has no data for it",
}
"""Verdict -> its meaning."""

PRIMARY, EXPLORATORY = "primary", "exploratory"

FAMILY_LEVEL = {PRIMARY: 0.05, EXPLORATORY: 0.025}
"""Family-wise error that is shared among the claims of a family."""

MARGIN = 0.05
"""The largest change of CKA that counts as none. Two seeds of one specialist differ by more (docs/statistics.md)."""

AGREEMENT = 2.0
"""The factor within which the two estimators must agree."""


@dataclass(frozen=True)
class Claim:
    """A claim, stated before the data.

    Attributes:
      name: `id` of its finding.
      family: `PRIMARY` or `EXPLORATORY`.
      title: heading of its finding.
      text: the claim itself.
      chart: name of the chart that shows it.
    """

    name: str
    family: str
    title: str
    text: str
    chart: str


CLAIMS = (
    Claim(
        "transition",
        PRIMARY,
        "Where E and the base part",
        "At some depth tuning brings the model nearer to the specialists than pre-training left it, and it stays "
        "nearer in all layers behind.",
        "change",
    ),
    Claim(
        "shift",
        PRIMARY,
        "What tuning adds in the upper half",
        "In the upper half of the network the tuned model is nearer to the specialists than the pre-trained model.",
        "change",
    ),
    Claim(
        "specificity",
        PRIMARY,
        "Own specialist against others",
        "In the upper half the tuned model is nearer to a task's own specialist than to controls that do not know the "
        "task.",
        "specificity",
    ),
    Claim(
        "unseen",
        PRIMARY,
        "Tasks held out of the mixture",
        "In the upper half the tuned model is nearer than the pre-trained one also to specialists of tasks that it "
        "never saw.",
        "held_out",
    ),
    Claim(
        "shared",
        EXPLORATORY,
        "What the first layers share",
        f"In the layers before the transition tuning changes nothing: the change is within {MARGIN} of zero.",
        "change",
    ),
    Claim(
        "clusters",
        EXPLORATORY,
        "Which clusters pre-training already holds",
        "The pre-trained model is nearer to the specialists of some clusters than to those of others.",
        "cluster_slopes",
    ),
    Claim(
        "ability",
        EXPLORATORY,
        "Similarity and ability",
        "The nearer the pre-trained model is to a specialist, the less that specialist gains over it, at equal score "
        "of the specialist.",
        "scores",
    ),
    Claim(
        "gain",
        EXPLORATORY,
        "Which layers carry the gain",
        "The layers in which tuning changes similarity most carry more of what tuning adds to the answers than as many "
        "other layers do.",
        "profile",
    ),
    Claim(
        "within_answer",
        EXPLORATORY,
        "Beyond the answer",
        "Among prompts with the same answer, tuning still brings the model nearer to the specialists in the upper "
        "half.",
        "factors",
    ),
)
"""All claims, by importance: if units are few, the first ones alone are tested."""


class Finding(TypedDict):
    """One finding.

    Attributes:
      id: name of the claim.
      title: its heading.
      family: `primary` or `exploratory`.
      claim: the claim, as stated before the data.
      verdict: one of the verdicts in `RULES`.
      headline: the same in one line of figures.
      sentence: what was found, with the numbers.
      figures: the numbers behind the sentence; `p` and `p_adjusted` where the claim was tested.
      chart: name of the chart that shows it.
      reservations: sentences that keep a significant claim from being supported.
      qualifications: short sentences, one per warning that touches the claim; they do not change the verdict.
    """

    id: str
    title: str
    family: str
    claim: str
    verdict: str
    headline: Headline
    sentence: str
    figures: dict[str, Any]
    chart: str
    reservations: list[str]
    qualifications: list[str]


@dataclass
class Evidence:
    """What the data say about one claim.

    Attributes:
      sentence: what was found, without the outcome of the test.
      figures: the numbers behind it.
      p: two-sided p value; None if it was not tested.
      direction: +1 if the data point to the claim, -1 if to its opposite.
      least_p: the least p value that the number of units allows.
      is_measured: whether the run has data for it.
      too_few: why there are too few units; empty if there are enough.
      reservations: sentences that keep a significant claim from being supported.
    """

    sentence: str
    figures: dict[str, Any] = field(default_factory=dict)
    p: float | None = None
    direction: int = 1
    least_p: float = 0.0
    is_measured: bool = True
    too_few: str = ""
    reservations: list[str] = field(default_factory=list)

    def qualify(self, sentence: str) -> None:
        """Adds what a reader should know beside the result; the verdict stays. Nothing for an empty sentence."""
        if sentence and self.is_measured:
            self.sentence = f"{self.sentence} {sentence}"


def judge(evidence: dict[str, Evidence]) -> list[Finding]:
    """Gives every claim its verdict, in the order of `CLAIMS`.

    Args:
      evidence: by the claim's name; all of `CLAIMS`.
    """
    adjusted: dict[str, float] = {}
    untestable: set[str] = set()
    for family, level in FAMILY_LEVEL.items():
        names = [claim.name for claim in CLAIMS if claim.family == family]
        tested = [name for name in names if evidence[name].p is not None]
        # The last claims give way first, until each that is left could pass the strictest step.
        while tested and max(evidence[name].least_p for name in tested) * len(tested) > level:
            worst = max(evidence[name].least_p for name in tested)
            last = [name for name in tested if evidence[name].least_p == worst][-1]
            tested.remove(last)
            untestable.add(last)
        adjusted |= holm({name: float(evidence[name].p or 0.0) for name in tested})
    return [_finding(claim, evidence[claim.name], adjusted.get(claim.name), untestable) for claim in CLAIMS]


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Adjusts p values so that rejecting those at or below a level keeps the family-wise error at that level.

    References:
      Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
    """
    adjusted: dict[str, float] = {}
    running = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        running = max(running, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = running
    return adjusted


def sizes_agree(headline: float | None, check: float | None) -> bool:
    """Whether two estimates have one sign and lie within a factor of `AGREEMENT`; True if one is unknown."""
    if headline is None or check is None:
        return True
    if headline * check <= 0:
        return False
    return 1 / AGREEMENT <= check / headline <= AGREEMENT


def _finding(claim: Claim, evidence: Evidence, p_adjusted: float | None, untestable: set[str]) -> Finding:
    sentence, level = evidence.sentence, FAMILY_LEVEL[claim.family]
    figures = evidence.figures | {"p_adjusted": p_adjusted, "level": level}
    if not evidence.is_measured:
        verdict = NOT_MEASURED
    elif evidence.too_few or claim.name in untestable:
        verdict = TOO_FEW
        reason = evidence.too_few or (
            f"with so few units p cannot fall below {evidence.least_p:.2g}, which correction for the number of claims "
            "makes too large"
        )
        sentence = f"{sentence} Too few: {reason}."
        figures["p"] = None
    elif p_adjusted is None:
        verdict = UNDECIDED
        sentence = " ".join([sentence, *evidence.reservations])
    elif p_adjusted > level:
        verdict = UNDECIDED
        outcome = f"After correction for the number of claims {_p(p_adjusted)}: not shown."
        sentence = " ".join([sentence, *evidence.reservations, outcome])
    elif evidence.direction < 0:
        verdict = CONTRADICTED
        sentence = f"{sentence} The opposite of the claim is shown ({_p(p_adjusted)} after correction)."
    elif evidence.reservations:
        verdict = UNDECIDED
        sentence = " ".join([sentence, *evidence.reservations])
    else:
        verdict = SUPPORTED
        sentence = f"{sentence} After correction for the number of claims {_p(p_adjusted)}."
    if claim.family == EXPLORATORY and verdict in (SUPPORTED, CONTRADICTED):
        sentence += " This claim is exploratory."
    return Finding(
        id=claim.name,
        title=claim.title,
        family=claim.family,
        claim=claim.text,
        verdict=verdict,
        headline=headline(claim.name, figures),
        sentence=sentence,
        figures=figures,
        chart=claim.chart,
        reservations=evidence.reservations if _is_held_back(verdict, p_adjusted, level) else [],
        qualifications=[],
    )


def _is_held_back(verdict: str, p_adjusted: float | None, level: float) -> bool:
    """Whether a claim would be supported but for its reservations."""
    return verdict == UNDECIDED and p_adjusted is not None and p_adjusted <= level


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
