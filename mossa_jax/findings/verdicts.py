"""The findings in words: each sentence is made from numbers, with a verdict by a stated rule.

`supported`: significant, and the biased estimator gives the same sign. `weak`: significant but a check
qualifies it. `not supported`: measured, not significant, or too few tasks to claim it. `not measured`: the
run has no such data.
"""

from mossa_jax.findings.sections import ALPHA
from mossa_jax.tasks.thresholds import FEW_PROMPTS

LEVEL = 0.05


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _span(low: float, high: float) -> str:
    return f"95 % interval {low:+.3f} to {high:+.3f}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _layers(pair: list[int]) -> str:
    return f"layer {pair[0]}" if pair[0] == pair[1] else f"layers {pair[0]} to {pair[1]}"


def _verb(pair: list[int], one: str, more: str) -> str:
    return one if pair[0] == pair[1] else more


def _count(number: int, thing: str = "task") -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _significant(part: dict) -> bool:
    return part["p"] is not None and part["p"] <= LEVEL


def _tested(part: dict, other: dict, words: str, expected: float = 1.0) -> tuple[str, str]:
    """Sentence tail and verdict of a paired comparison, checked against the other estimator."""
    if part["mean"] is None:
        return f"{words} could not be computed.", "not measured"
    if part["p"] is None:
        return f"{words} is {_signed(part['mean'])} on average, but {part['reason']}.", "not supported"
    text = f"{words} is {_signed(part['mean'])} on average over {part['n_tasks']} tasks"
    text += f" ({_span(part['low'], part['high'])}, {_p(part['p'])} by sign flips over tasks;"
    text += f" positive for {part['positive']} of {part['n_tasks']})"
    if not _significant(part):
        return f"{text}: not distinguishable from zero.", "not supported"
    if part["mean"] * expected < 0:
        return f"{text}: the opposite of the expected direction.", "not supported"
    if other["mean"] is not None and other["mean"] * part["mean"] < 0:
        return f"{text}, but the biased estimator gives the opposite sign ({_signed(other['mean'])}).", "weak"
    return f"{text}.", "supported"


def _sections(found: dict) -> dict:
    sections, biased = found["sections"], found["robustness"]["biased"]["sections"]
    figures = {key: sections[key] for key in ("shared", "transition", "refinement", "start", "end", "p", "n_tasks")}
    verdict = "supported"
    if not sections["found"]:
        sentence = f"No transition is claimed: {sections['reason']}."
        verdict = "not supported"
    else:
        refinement = sections["refinement"]
        sentence = (
            f"The tuned model departs from the pre-trained one in {_layers(sections['transition'])}: "
            f"{_layers(sections['shared'])} {_verb(sections['shared'], 'is', 'are')} shared, "
            + (
                f"{_layers(refinement)} {_verb(refinement, 'refines', 'refine')}"
                if refinement
                else "and the rise goes on to the last layer"
            )
            + f" (rise of d from {_signed(sections['before']['level'])} to {_signed(sections['after']['level'])}, "
            f"{_p(sections['p'])} over {sections['n_tasks']} tasks; first transition layer between "
            f"{sections['start'][0]} and {sections['start'][1]}, last between {sections['end'][0]} and "
            f"{sections['end'][1]} with 95 % confidence)."
        )
        if not sections["resolved"]:
            verdict = "weak"
            sentence += " Where it begins or ends is not resolved: an interval reaches the end of the network."
        if not biased["found"]:
            verdict = "weak"
            sentence += f" The biased estimator shows no transition ({biased['reason']})."
        elif abs(biased["transition"][0] - sections["transition"][0]) > 2:
            verdict = "weak"
            sentence += f" The biased estimator puts it at {_layers(biased['transition'])}."
    crossing = sections["crossing"] or {}
    if sections["found"] and crossing.get("layer") is not None and crossing["interval"] is not None:
        low, high = crossing["interval"]
        sentence += f" On average the tuned model overtakes the pre-trained one at layer {crossing['layer']:.0f}"
        sentence += f" (95 % interval {low} to {high})."
        figures["crossing"] = crossing
    return _finding("Where the network changes", sentence, verdict, figures, "layers")


def _shared(found: dict) -> dict:
    sections, title = found["sections"], "What the first layers share"
    if not sections["found"]:
        sentence = "Without a transition there are no shared layers to speak of."
        return _finding(title, sentence, "not supported", {}, "layers")
    words = f"In {_layers(sections['shared'])} (shared), tuned minus pre-trained CKA with each task's specialist"
    sentence, verdict = _tested(found["shared"], found["robustness"]["biased"]["shared"], words, expected=-1.0)
    if verdict == "supported":
        sentence = f"{sentence[:-1]}: the tuned model is farther from the specialists than before tuning."
    return _finding(title, sentence, verdict, found["shared"], "layers")


def _shift(found: dict) -> dict:
    words = f"In {found['half']['name']}, tuned minus pre-trained CKA with each task's specialist"
    sentence, verdict = _tested(found["shift"], found["robustness"]["biased"]["shift"], words)
    return _finding("What tuning adds in the upper half", sentence, verdict, found["shift"], "heatmap")


def _clusters(found: dict) -> dict:
    ranking = [row for row in found["clusters"]["ranking"] if row["pretrained"]["mean"] is not None]
    differ, title = found["clusters"]["differ"], "Which clusters pre-training already holds"
    if len(ranking) < 2:
        sentence = "Fewer than two clusters have defined cells, so nothing can be ranked."
        return _finding(title, sentence, "not measured", differ, "clusters")
    ends = ", ".join(
        f"{which} for {row['cluster']} ({row['pretrained']['mean']:.3f}, {_count(row['n_tasks'])})"
        for which, row in (("highest", ranking[0]), ("lowest", ranking[-1]))
    )
    words = f"The pre-trained model's CKA with the specialists, in {found['clusters']['layers']}, is {ends}"
    if differ["p"] is None:
        sentence = f"{words}; whether clusters differ is not testable: {differ['reason']}."
        return _finding(title, sentence, "not supported", differ, "clusters")
    words += f"; clusters explain {100 * differ['eta_squared']:.0f} % of the spread over tasks ({_p(differ['p'])})"
    if differ["p"] > LEVEL:
        return _finding(title, f"{words}, no more than chance would.", "not supported", differ, "clusters")
    words += ": they differ, which is not to say that these two do."
    biased = found["robustness"]["biased"]["differ"]
    if biased["p"] is None or biased["p"] > LEVEL:
        return _finding(title, f"{words} By the biased estimator they do not.", "weak", differ, "clusters")
    return _finding(title, words, "supported", differ, "clusters")


def _unseen(found: dict) -> dict:
    title, unseen = "Tasks held out of the mixture", found["unseen"]
    if not unseen["tasks"]:
        return _finding(title, "No task was held out of the mixture.", "not measured", {}, "held-out")
    words = f"For tasks held out of the mixture, in {found['upper']['name']}, tuned minus pre-trained CKA"
    other = found["robustness"]["biased"]["unseen"]["upper"]
    sentence, verdict = _tested(unseen["upper"], other, words)
    return _finding(title, sentence, verdict, unseen["upper"], "held-out")


def _specificity(found: dict) -> dict:
    title, part = "Own specialist against others", found["specificity"]
    if not part["measured"]:
        sentence = "Mismatched controls were not compared, so nearness to all specialists alike is not ruled out."
        return _finding(title, sentence, "not measured", {}, "trust")
    words = f"In {found['upper']['name']}, the tuned model's CKA with a task's own specialist minus with "
    words += "specialists of other clusters"
    sentence, verdict = _tested(part["tuned"], found["robustness"]["biased"]["specificity"]["tuned"], words)
    return _finding(title, sentence, verdict, part["tuned"], "trust")


def _ability(found: dict) -> dict:
    title, part = "Similarity and ability", found["scores"]
    means, link = part["means"], part["rank_correlation"]
    if all(value is None for value in means.values()):
        return _finding(title, "Task scores were not measured.", "not measured", {}, "training")
    names = {"base": "pre-trained", "tuned": "multi-task", "control": "specialists"}
    listed = ", ".join(f"{names[key]} {means[key]:.3f}" for key in names if means[key] is not None)
    sentence = f"Mean exact match over tasks of the mixture: {listed}"
    if link["rho"] is None:
        sentence += "; too few tasks, or no spread, to relate it to similarity."
        return _finding(title, sentence, "not supported", link, "training")
    sentence += (
        f". The rank correlation of pre-trained CKA with the specialist's gain in score is "
        f"{link['rho']:+.2f} over {link['n_tasks']} tasks ({_p(link['p'])})"
    )
    if link["p"] > LEVEL:
        return _finding(title, f"{sentence}: no relation is shown.", "not supported", link, "training")
    biased = found["robustness"]["biased"]["ability"]
    if biased["rho"] is not None and biased["rho"] * link["rho"] < 0:
        sentence += f", but the biased estimator gives the opposite sign ({_signed(biased['rho'])})."
        return _finding(title, sentence, "weak", link, "training")
    end = ": what pre-training lacks in similarity, the specialist gains in score." if link["rho"] < 0 else "."
    return _finding(title, sentence + end, "supported", link, "training")


def _finding(title: str, sentence: str, verdict: str, figures: dict, chart: str) -> dict:
    return {"title": title, "sentence": sentence, "verdict": verdict, "figures": figures, "chart": chart}


def statements(found: dict) -> list[dict]:
    """The findings, in the order of the page.

    Args:
        found: The other parts of `find`, already in JSON's own types.

    Returns:
        Dicts `title, sentence, verdict, figures, chart`; `chart` is the anchor of the page's section. A
        verdict of `supported` is lowered to `weak` when some task has fewer than 50 prompts.
    """
    makers = (_sections, _shared, _shift, _clusters, _unseen, _specificity, _ability)
    made = [make(found) for make in makers]
    smallest = found["trust"]["prompts"]["smallest"]
    if smallest is not None and smallest < FEW_PROMPTS:
        for finding in made:
            if finding["verdict"] == "supported" and finding["chart"] != "training":
                finding["verdict"] = "weak"
                finding["sentence"] += f" Some tasks have only {smallest:.0f} prompts."
    return made


RULES = {
    "supported": "significant, and both estimators agree in sign",
    "weak": "significant, but a check qualifies it (the sentence says which)",
    "not supported": "measured, but not beyond chance or with too few tasks",
    "not measured": "this run has no data for it",
    "levels": f"two-sided tests at {LEVEL}, the one-sided test for a transition at {ALPHA}",
}
