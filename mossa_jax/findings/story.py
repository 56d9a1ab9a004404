"""The result of a run in three plain sentences: what was found, how sure it is, and what would change it.

Nothing is said here that the findings do not say: a claim is stated as a fact only where its verdict is `supported` or
`contradicted`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypedDict

from mossa_jax.findings.claims import (
    CONTRADICTED,
    MARGIN,
    NOT_MEASURED,
    PRIMARY,
    RULES,
    SUPPORTED,
    TOO_FEW,
    UNDECIDED,
    Finding,
)
from mossa_jax.findings.shapes import NONE, SHAPES
from mossa_jax.findings.units import LEVEL
from mossa_jax.findings.wording import counted, listed

STORY = {"found": "What was found", "certainty": "How sure it is", "threats": "What could change it"}
"""Sentence of a story -> its heading."""

FEW_UNITS = 10
"""With fewer units than this, the story names their number among what could change the result."""

MOST_THREATS = 4
"""The most that the last sentence names."""

# Beside a claim these are "its" tasks; in the story they stand alone.
_ITS = re.compile(r"\bits (?=\d+ task|one task)")


class Story(TypedDict):
    """The result in three sentences.

    Attributes:
      found: what was found.
      certainty: how sure it is.
      threats: what could change it.
    """

    found: str
    certainty: str
    threats: str


def tell_story(analysis: dict[str, Any]) -> Story:
    """Tells the result of a run.

    Args:
      analysis: from `find`, in JSON's own types, with `findings` and `warnings`.
    """
    findings = {finding["id"]: finding for finding in analysis["findings"]}
    return Story(
        found=_found(analysis, findings),
        certainty=_certainty(analysis, findings),
        threats=_threats(analysis, findings),
    )


def _found(analysis: dict[str, Any], findings: dict[str, Finding]) -> str:
    if _rests_on_nothing(analysis):
        count = counted(len(analysis["competence"]["incompetent"]), "specialist")
        return f"Nothing can be said yet: of {count}, none is shown to use its prompts."
    shift, transition = _shift(analysis, findings["shift"]), _transition(analysis["sections"], findings["transition"])
    # A place is worth naming only for a change that was measured.
    if findings["shift"]["verdict"] == NOT_MEASURED:
        return f"{shift}."
    link = ", and" if _is_decided(findings["shift"]) == _is_decided(findings["transition"]) else ", but"
    return f"{shift}{link} {transition}."


def _shift(analysis: dict[str, Any], finding: Finding) -> str:
    shift, verdict = analysis["shift"], finding["verdict"]
    if verdict == NOT_MEASURED:
        return "What tuning changes could not be measured, since no task has a defined similarity before and after it"
    place = f"the upper half of the network ({_layers(analysis['half']['layers'])})"
    if verdict in (SUPPORTED, CONTRADICTED):
        moves = "brings" if verdict == SUPPORTED else "moves"
        where = "nearer to" if verdict == SUPPORTED else "away from"
        size = f"by {abs(shift['mean']):.3f} CKA on average"
        return f"Tuning on all tasks at once {moves} {place} {where} the tasks' own specialists, {size}"
    mean = f"{shift['mean']:+.3f} CKA on average"
    if verdict == TOO_FEW:
        return (
            f"In {place} the similarity to the specialists differs after tuning by {mean}, over too few units to test"
        )
    if _is_significant(finding):
        return (
            f"In {place} the similarity to the specialists differs after tuning by {mean}, with a reservation that "
            "leaves the claim undecided"
        )
    within = f", within {MARGIN} of zero by an equivalence test" if _is_equivalent(shift) else ""
    return f"In {place} tuning is not shown to change the similarity to the specialists ({mean}{within})"


def _transition(sections: dict[str, Any], finding: Finding) -> str:
    verdict, shape = finding["verdict"], sections["shape"]
    if verdict == CONTRADICTED:
        return "the change falls with depth, against the claim"
    if verdict in (TOO_FEW, NOT_MEASURED) or shape is None:
        return "in which layers a change sets in could not be tested"
    if verdict == SUPPORTED:
        place = f"{_layers(sections['transition'])} of {sections['n_layers']}"
        return f"the change builds up in {place} and stays up to the last layer"
    if sections["is_transition"]:
        return f"a change that builds up in {_layers(sections['transition'])} is seen but left undecided"
    if shape == NONE:
        return "no depth is shown at which a change sets in"
    return f"the curve over depth is no transition ({SHAPES[shape].partition(':')[0]})"


def _certainty(analysis: dict[str, Any], findings: dict[str, Finding]) -> str:
    primary = Counter(finding["verdict"] for finding in findings.values() if finding["family"] == PRIMARY)
    verdicts = [f"{primary[verdict]} {_verdict(verdict, primary[verdict])}" for verdict in RULES if primary[verdict]]
    parts = [f"of the {sum(primary.values())} primary claims, {listed(verdicts)}"]
    shift = findings["shift"]
    line = shift["headline"]
    if shift["verdict"] != NOT_MEASURED and line["units"]:
        low, high = shift["figures"]["low"], shift["figures"]["high"]
        interval = f"has the 95 % interval {low:+.3f} to {high:+.3f} over" if low is not None else "rests on"
        test = f" ({line['p']} for the number of claims)" if line["p"] else ""
        parts.append(f"the mean change in the upper half {interval} {line['units'].replace(', ', ' with ')}{test}")
    parts.append(_competence(analysis["competence"]))
    return f"{_sentence(parts)}."


def _competence(competence: dict[str, Any]) -> str:
    if not competence["measured"]:
        return "whether the specialists use their prompts was not measured"
    sound, total = len(competence["competent"]), len(competence["competent"]) + len(competence["incompetent"])
    if sound == total:
        return f"all {total} specialists use their prompts" if total > 1 else "the one specialist uses its prompts"
    if not sound:
        return f"no specialist of {counted(total, 'task')} is shown to use its prompts"
    verb = "is" if sound == 1 else "are"
    return f"{sound} of {total} specialists {verb} shown to use their prompts, and only their tasks count"


def _threats(analysis: dict[str, Any], findings: dict[str, Finding]) -> str:
    threats = list(dict.fromkeys(_every_threat(analysis, findings)))
    shown, more = threats[:MOST_THREATS], len(threats) - MOST_THREATS
    if more > 0:
        shown.append(f"{counted(more, 'further reservation')} below")
    if not shown:
        return "Nothing that this run measured speaks against its findings; they are about one base model."
    return f"{_sentence(shown)}."


def _every_threat(analysis: dict[str, Any], findings: dict[str, Finding]) -> Iterator[str]:
    """Yields what could change the result, the gravest first."""
    if _rests_on_nothing(analysis):
        yield "specialists that use their prompts are needed before anything else"
        return
    shift, units = analysis["shift"], analysis["shift"]["n_units"]
    if findings["shift"]["verdict"] == NOT_MEASURED:
        yield "tasks with a defined similarity before and after tuning are needed before anything else"
        return
    if units < FEW_UNITS:
        yield f"the result rests on {counted(units, shift['unit'].removesuffix('s'))}, and a few more could move it"
    within = findings["within_answer"]
    if within["verdict"] in (UNDECIDED, CONTRADICTED):
        mean = within["figures"]["mean"]
        yield f"among prompts with the same answer the change is {mean:+.3f} CKA, so it may lie in the answers alone"
    panel = analysis["panel"]["findings"].get("shift")
    if panel is not None and not panel["shared"]:
        names = [view["name"] for view in panel["views"] if not view["shares"]]
        yield f"it is not seen in {listed(names)}"
    for name in ("shift", "transition"):
        yield from (_ITS.sub("the ", text).replace("all the ", "all ") for text in findings[name]["qualifications"])
    seeds = [row for row in analysis["variance"] if row["part"] == "seed of E"]
    if seeds and seeds[0]["reason"]:
        yield "E has one seed, so what is particular to it is in no interval"
    if not analysis["ceiling"]["measured"]:
        yield "no specialist has a second seed, so there is no ceiling to read the change against"
    specificity, unseen = findings["specificity"], findings["unseen"]
    if specificity["verdict"] == NOT_MEASURED:
        yield "no other control was compared, so E may be equally near to all of them"
    if unseen["verdict"] in (TOO_FEW, NOT_MEASURED):
        yield "too few tasks were held out to say anything about unseen tasks"


def _rests_on_nothing(analysis: dict[str, Any]) -> bool:
    competence = analysis["competence"]
    return bool(competence["incompetent"]) and not competence["competent"] and not competence["unknown"]


def _is_decided(finding: Finding) -> bool:
    return finding["verdict"] in (SUPPORTED, CONTRADICTED)


def _is_significant(finding: Finding) -> bool:
    p = finding["figures"]["p_adjusted"]
    return p is not None and p <= finding["figures"]["level"]


def _is_equivalent(shift: dict[str, Any]) -> bool:
    return shift["p_equivalence"] is not None and shift["p_equivalence"] <= LEVEL


def _verdict(verdict: str, count: int) -> str:
    if verdict == TOO_FEW:
        return "has too few units" if count == 1 else "have too few units"
    return f"{'is' if count == 1 else 'are'} {verdict}"


def _layers(layers: list[Any]) -> str:
    first, last = layers[0], layers[-1]
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}"
