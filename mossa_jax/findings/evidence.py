"""The findings in words: for each claim, what was found and how far it can be trusted, made from numbers."""

from __future__ import annotations

from typing import Any

from mossa_jax.findings.claims import MARGIN, Evidence, sizes_agree
from mossa_jax.findings.factors import parts_sentence, within_evidence
from mossa_jax.findings.profile import gain_evidence, section_sentence
from mossa_jax.findings.shapes import SHAPES
from mossa_jax.findings.units import LEVEL
from mossa_jax.findings.wording import counted

Analysis = dict[str, Any]
"""The result of `find` without `findings`, in JSON's own types."""

_MAX_NAMES = 6


def gather_evidence(analysis: Analysis) -> dict[str, Evidence]:
    """Returns the evidence for every claim, by its name."""
    biased = analysis["robustness"]["biased"]
    evidence = {
        "transition": _transition(analysis["sections"], biased["sections"]),
        "shift": _shift(analysis, biased["shift"]),
        "specificity": _specificity(analysis["specificity"], biased["specificity"], analysis["half"]["name"]),
        "unseen": _unseen(analysis, biased["unseen"]),
        "shared": _shared(analysis["sections"], analysis["shared"], biased["shared"]),
        "clusters": _clusters(analysis, biased["differ"]),
        "ability": _ability(analysis["scores"], biased["ability"]["link"]),
        "gain": gain_evidence(analysis["profile"]),
        "within_answer": within_evidence(analysis["factors"]),
    }
    evidence["transition"].sentence += section_sentence(analysis["profile"])
    evidence["shift"].qualify(parts_sentence(analysis["factors"]))
    if analysis["competence"]["measured"] and not analysis["competence"]["competent"]:
        for item in evidence.values():
            # The other reasons for which a claim is not measured are not the one that counts here.
            if not item.is_measured:
                item.sentence = "No specialist is shown to use its prompts, so this claim has nothing to rest on."
    return evidence


def competence_sentence(competence: dict[str, Any]) -> str:
    """Says how many specialists use their prompts; a warning names the others."""
    if not competence["measured"]:
        return "Whether specialists use their prompts was not measured."
    left_out, total = len(competence["incompetent"]), len(competence["incompetent"]) + len(competence["competent"])
    if not left_out:
        return f"All {total} specialists use their prompts."
    if left_out == total:
        return f"None of the {total} specialists is shown to use its prompts, so no finding can rest on any task."
    lead = "Fewer than half of the specialists are shown to use their prompts: " if competence["few"] else ""
    verb = "is shown to use its prompts" if total - left_out == 1 else "are shown to use their prompts"
    return f"{lead}{total - left_out} of {total} specialists {verb}; all findings rest on the tasks of these alone."


def _transition(sections: dict[str, Any], biased: dict[str, Any]) -> Evidence:
    keys = "shape p p_rise p_fall least_p n_units n_tasks unit shared transition refinement fit own_share plateau"
    figures = {key: sections[key] for key in [*keys.split(), "crossing", "paper"]}
    if sections["shape"] is None:
        plateau = _plateau_sentence(sections["plateau"])
        sentence = f"{plateau} No rise was fitted: {sections['reason']}.".lstrip()
        return Evidence(sentence, figures, too_few=sections["reason"])
    fit, units = sections["fit"], _units(sections)
    start, end = fit["start"], fit["end"]
    rise = (
        f"tuned minus pre-trained CKA goes from {_level(fit['before'])} to {_level(fit['after'])} in layers "
        f"{start['layer']} to {end['layer']} (95 % intervals: first {_span(start['interval'])}, last "
        f"{_span(end['interval'])}; {_p(sections['p'])} by sign flips of {units})"
    )
    extra = "".join(
        f" {text}"
        for text in (
            _edge_sentence(fit),
            _plateau_sentence(sections["plateau"]),
            _crossing_sentence(sections["crossing"]),
        )
        if text
    )
    if sections["shape"] == "none":
        return Evidence(
            f"No change with depth beyond chance: {rise}.{extra}", figures, sections["p"], 1, sections["least_p"]
        )
    if not sections["is_transition"]:
        direction = -1 if sections["p_fall"] < sections["p_rise"] else 1
        sentence = f"No transition ({SHAPES[sections['shape']]}): {rise}.{extra}"
        reservation = ["A curve of this shape is no transition."] if direction > 0 else []
        return Evidence(sentence, figures, sections["p"], direction, sections["least_p"], reservations=reservation)
    transition, shared = _layers(sections["transition"]), _layers(sections["shared"])
    parts = f"The rise lies in {transition} (transition), behind {shared} (shared)"
    if sections["refinement"]:
        parts += f" and before {_layers(sections['refinement'])} (refinement)"
    breaks = fit["task_breaks"]
    sentence = (
        f"{parts}: {rise}; E itself makes {100 * sections['own_share']:.0f} % of the rise. "
        f"The plain mean rises in layers {fit['mean_start']} to {fit['mean_end']}; half of the tasks, one by one, "
        f"begin between layers {breaks['start'][0]:.0f} and {breaks['start'][2]:.0f}.{extra}"
    )
    return Evidence(
        sentence,
        figures,
        sections["p"],
        1,
        sections["least_p"],
        reservations=_biased_transition(sections, biased),
    )


def _biased_transition(sections: dict[str, Any], biased: dict[str, Any]) -> list[str]:
    """Returns what the biased estimator has against a transition."""
    if biased["shape"] is None:
        return []
    rise, check = sections["fit"]["rise"], biased["fit"]["rise"]
    if biased["p"] > LEVEL or not sizes_agree(rise, check):
        return [f"The biased estimator shows another size of the rise ({check:+.3f}, {_p(biased['p'])})."]
    mine, theirs = sections["fit"], biased["fit"]
    if max(abs(mine[key]["layer"] - theirs[key]["layer"]) for key in ("start", "end")) > 2:
        span = f"{theirs['start']['layer']} to {theirs['end']['layer']}"
        return [f"The biased estimator places the rise in layers {span}."]
    return []


def _plateau_sentence(plateau: dict[str, Any] | None) -> str:
    if plateau is None:
        return ""
    if plateau["first"] is None:
        return f"E's lower quartile nowhere comes within {plateau['margin']} of {plateau['against']}."
    interval = f" (first layer {_span(plateau['interval'])})" if plateau["interval"] else ""
    return (
        f"E's own plateau, its lower quartile within {plateau['margin']} of {plateau['against']}, is "
        f"{_layers([plateau['first'], plateau['last']])}{interval}."
    )


def _edge_sentence(fit: dict[str, Any]) -> str:
    """Says where an interval of a break reaches the end of what the fit can return, so that the break is open there."""
    first, last = fit["range"]
    open_ends = []
    if fit["start"]["interval"][0] <= first:
        open_ends.append(
            f"layer {first} is the earliest layer that a rise can begin in, so this one may begin before it"
        )
    if fit["end"]["interval"][1] >= last:
        open_ends.append(f"layer {last} is the last one, so where the rise ends is open")
    sentence = "; ".join(open_ends)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _crossing_sentence(crossing: dict[str, Any] | None) -> str:
    if crossing is None or crossing["first"] is None:
        return "The mean change does not stay above zero." if crossing else ""
    interval = f" (95 % interval {_span(crossing['interval'])})" if crossing["interval"] else ""
    return f"The mean change stays above zero from layer {crossing['first']:.0f} on{interval}."


def _shift(analysis: Analysis, biased: dict[str, Any]) -> Evidence:
    shift = analysis["shift"]
    subject = f"In {analysis['half']['name']}, tuned minus pre-trained CKA with each task's specialist"
    evidence = _compared(shift, biased, subject)
    if not evidence.is_measured:
        return evidence
    if shift["share_of_ceiling"] is not None:
        evidence.sentence += (
            f" Two seeds of one specialist reach {shift['ceiling']:.3f} (the ceiling); E stands at "
            f"{_percent(shift['tuned_share'])} of it and the base at {_percent(shift['pretrained_share'])}."
        )
    if shift["p_equivalence"] is not None and shift["p_equivalence"] <= LEVEL:
        evidence.sentence += f" Any change is within {MARGIN} of zero ({_p(shift['p_equivalence'])}, equivalence test)."
    if shift["rises"] and shift["fallers"]:
        evidence.sentence += f" It falls in {_changes(shift['fallers'])}."
    changed = analysis["changed_tasks"]
    if changed:
        evidence.sentence += (
            f" One by one, at a false discovery rate of 5 %, {_moved(changed['rise'], 'rise')} and "
            f"{_moved(changed['fall'], 'fall')}."
        )
        evidence.figures |= {"changed_tasks": changed}
    return evidence


def _shared(sections: dict[str, Any], change: dict[str, Any] | None, biased: dict[str, Any] | None) -> Evidence:
    if change is None:
        return Evidence("Without a transition, no layers count as shared.", is_measured=False)
    evidence = _compared(change, None, f"In {_layers(sections['shared'])} (shared), tuned minus pre-trained CKA")
    low, high = change["low"], change["high"]
    if change["p_equivalence"] is None or low is None:
        evidence.too_few = evidence.too_few or "too few units for an equivalence test"
        return evidence
    moved = low > MARGIN or high < -MARGIN
    evidence.p, evidence.direction, evidence.least_p = change["p_equivalence"], 1, 0.0
    if moved:
        evidence.p, evidence.direction = change["p"], -1
        evidence.least_p = change["least_p"]
    evidence.figures |= {"p": evidence.p}
    evidence.sentence += f" That it is within {MARGIN} of zero: {_p(change['p_equivalence'])} (equivalence test)."
    if biased is not None and biased["mean"] is not None and abs(biased["mean"]) > MARGIN and not moved:
        evidence.reservations.append(f"The biased estimator gives {biased['mean']:+.3f}.")
    return evidence


def _clusters(analysis: Analysis, biased: dict[str, Any]) -> Evidence:
    ranking = [row for row in analysis["clusters"]["ranking"] if row["pretrained"]["mean"] is not None]
    differ = analysis["clusters"]["differ"]
    if len(ranking) < 2:
        return Evidence("Fewer than two clusters have defined cells, so nothing can be ranked.", is_measured=False)
    highest, lowest = (_cluster(row) for row in (ranking[0], ranking[-1]))
    sentence = (
        f"The pre-trained model's CKA with competent specialists, in {analysis['half']['name']}, is highest for "
        f"{highest} and lowest for {lowest}"
    )
    if differ["p"] is None:
        return Evidence(f"{sentence}; whether clusters differ cannot be tested.", differ, too_few=differ["reason"])
    sentence += (
        f"; clusters explain {100 * differ['eta_squared']:.0f} % of the spread over {differ['n_tasks']} tasks of "
        f"{differ['n_clusters']} clusters ({_p(differ['p'])}, Brown-Forsythe test), though these two need not differ."
    )
    evidence = Evidence(sentence, differ, differ["p"])
    if biased["p"] is not None and (
        biased["p"] > LEVEL or not sizes_agree(differ["eta_squared"], biased["eta_squared"])
    ):
        evidence.reservations.append("The biased estimator does not show this.")
    return evidence


def _cluster(row: dict[str, Any]) -> str:
    share = row["information_share"]
    base = "" if share is None else f", where the base has {_percent(share)} of the specialists' information"
    return f"{row['cluster']} ({row['pretrained']['mean']:.3f}, {counted(row['n_tasks'], 'task')}{base})"


def _unseen(analysis: Analysis, biased: dict[str, Any]) -> Evidence:
    unseen = analysis["unseen"]
    if not unseen["tasks"]:
        return Evidence("No task was held out of the mixture, or none has a competent specialist.", is_measured=False)
    subject = f"For tasks held out of the mixture, in {analysis['half']['name']}, tuned minus pre-trained CKA"
    return _compared(unseen["upper"], biased["upper"], subject)


def _specificity(specificity: dict[str, Any], biased: dict[str, Any], half: str) -> Evidence:
    if not specificity["measured"]:
        sentence = "No other control was compared, so E may be equally near to all of them."
        return Evidence(sentence, is_measured=False)
    against = specificity["against"]
    others = {
        "twin": "its twin, a control that was trained on permuted answers of the same task",
        "other": "specialists of other clusters, which also differ in format",
    }[against]
    subject = f"In {half}, the tuned model's CKA with a task's own specialist minus its CKA with {others},"
    evidence = _compared(specificity["tuned"], biased[against]["tuned"], subject, ("above zero", "below"))
    if against == "twin" and specificity["other"]["tuned"]["mean"] is not None:
        evidence.sentence += (
            f" Against specialists of other clusters it is {specificity['other']['tuned']['mean']:+.3f}."
        )
    base = specificity[against]["pretrained"]
    if base["mean"] is not None:
        test = "" if base["p"] is None else f" ({_p(base['p'])})"
        evidence.sentence += f" For the pre-trained model it is {_with_interval(base)}{test}."
        if base["high"] is not None and base["high"] < 0:
            evidence.sentence += " Before tuning, the model is nearer to those other controls than to the task's own."
    evidence.figures |= {"against": against, "pretrained": base}
    return evidence


def _ability(ability: dict[str, Any], biased: dict[str, Any]) -> Evidence:
    link, metric = ability["link"], ability["metric"]
    means = ability["metrics"].get(metric, {})
    if not any(value is not None for value in means.values()):
        return Evidence("Task scores were not measured.", is_measured=False)
    names = {"base": "pre-trained", "tuned": "multi-task", "control": "specialists"}
    scores = ", ".join(f"{name} {means[model]:.3f}" for model, name in names.items() if means[model] is not None)
    unit = " (nats per prompt)" if metric == "information" else ""
    sentence = f"Mean {metric.replace('_', ' ')}{unit} over competent tasks of the mixture: {scores}."
    figures = link | {"metric": metric, "means": means}
    if link["rho"] is None:
        return Evidence(f"{sentence} Its link with similarity was not tested.", figures, too_few=link["reason"])
    sentence += (
        f" At equal score of the specialist, the partial rank correlation of pre-trained CKA with its gain "
        f"is {link['rho']:+.2f} over {link['n_units']} {link['unit']} ({_p(link['p'])}). It does not say which causes "
        "which."
    )
    evidence = Evidence(sentence, figures, link["p"], 1 if link["rho"] < 0 else -1, link["least_p"])
    if not sizes_agree(link["rho"], biased["rho"]):
        evidence.reservations.append(f"The biased estimator gives {biased['rho']:+.2f}.")
    return evidence


def _compared(
    estimate: dict[str, Any],
    biased: dict[str, Any] | None,
    subject: str,
    verbs: tuple[str, str] = ("rise", "fall"),
) -> Evidence:
    """Puts an estimate over units into words; the claim predicts a value above zero.

    Args:
      estimate: of the headline estimator.
      biased: the same by the biased one.
      subject: what was estimated.
      verbs: what tasks with a value above and below zero are said to do.
    """
    mean = estimate["mean"]
    if mean is None:
        return Evidence(f"{subject} could not be computed.", estimate, is_measured=False)
    interval = ""
    if estimate["low"] is not None:
        interval = f", 95 % interval {_signed(estimate['low'])} to {_signed(estimate['high'])}"
    robust = f"robust mean {_signed(estimate['robust_mean'])}"
    sentence = (
        f"{subject} is {_signed(mean)} on average over {_units(estimate)} ({counted(estimate['n_tasks'], 'task')}: "
        f"{estimate['rises']} {verbs[0]}, {estimate['falls']} {verbs[1]}; {robust}{interval}"
    )
    if estimate["p"] is None:
        return Evidence(f"{sentence}).", dict(estimate), too_few=estimate["reason"])
    sentence += (
        f"; {_p(estimate['p'])} by sign flips, least possible {estimate['least_p']:.2g}, least detectable effect "
        f"{estimate['least_effect']:.3f} at power 0.8)."
    )
    evidence = Evidence(sentence, dict(estimate), estimate["p"], 1 if mean >= 0 else -1, estimate["least_p"])
    if biased is not None and not sizes_agree(mean, biased["mean"]):
        evidence.reservations.append(f"The biased estimator gives another size ({_signed(biased['mean'])}).")
    return evidence


def _units(figures: dict[str, Any]) -> str:
    noun, count = figures["unit"], figures["n_units"]
    return counted(count, noun.removesuffix("s"))


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _level(level: dict[str, Any]) -> str:
    low, high = level["interval"]
    interval = "" if low is None else f" [{_signed(low)}, {_signed(high)}]"
    return f"{_signed(level['level'])}{interval}"


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{100 * value:.0f} %"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _layers(span: list[float]) -> str:
    first, last = (int(edge) for edge in span)
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _span(interval: list[int]) -> str:
    low, high = interval
    return f"{low}" if low == high else f"{low} to {high}"


def _with_interval(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return _signed(estimate["mean"])
    return f"{_signed(estimate['mean'])} [{_signed(estimate['low'])}, {_signed(estimate['high'])}]"


def _moved(names: list[str], verb: str) -> str:
    """Says how many tasks rise or fall, and which."""
    if not names:
        return f"none {verb}s"
    return f"{len(names)} {verb}{'s' if len(names) == 1 else ''} ({_names(names)})"


def _changes(tasks: list[dict[str, Any]]) -> str:
    """Names tasks with their changes."""
    return _names([f"{each['task']} ({_signed(each['change'])})" for each in tasks])


def _names(names: list[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
