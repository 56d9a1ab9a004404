"""The tables of the page: claims, definitions of the sections, clusters, scores. Cells are texts or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mossa_jax.findings import to_json_types
from mossa_jax.findings.competence import CONTROL, EXACT_MATCH, INFORMATION, scores_of
from mossa_jax.findings.headlines import NOTHING, Headline
from mossa_jax.findings.trust import reason_in_words
from mossa_jax.findings.wording import counted
from mossa_jax.report import palette
from mossa_jax.report.inputs import ReportInputs, left_out, scores_by_model
from mossa_jax.report.numbers import NONE, fixed, p_value, with_minus


def claim_rows(findings: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Returns one row per claim with the figures behind its verdict.

    Args:
      findings: from the analysis.

    Returns:
      Dicts of texts: `id`, `title`, `family`, `estimate`, `p`, `p_adjusted`, `units`, `least_p`, `least_effect` and
      `verdict`.
    """
    return [
        {
            "id": finding["id"],
            "title": finding["title"],
            "family": finding["family"],
            "estimate": _estimate(finding["headline"]),
            "p": p_value(finding["figures"].get("p")),
            "p_adjusted": p_value(finding["figures"].get("p_adjusted")),
            "units": finding["headline"]["units"] or NONE,
            "least_p": _significant(finding["figures"].get("least_p") or None),
            "least_effect": fixed(finding["figures"].get("least_effect")),
            "verdict": finding["verdict"],
        }
        for finding in findings
    ]


def _estimate(line: Headline) -> str:
    return NONE if line["figure"] == NOTHING else with_minus(f"{line['figure']} {line['detail']}".strip())


def _significant(value: float | None) -> str:
    return NONE if value is None else f"{value:.2g}"


def definition_rows(sections: dict[str, Any], layers: int) -> list[dict[str, str]]:
    """Returns the definitions of "where it happens" beside the paper's sections.

    Args:
      sections: from the analysis.
      layers: number of the network's blocks.

    Returns:
      Dicts of texts: `name`, `meaning`, `answer` (layers), `depth` (the same as shares of the depth) and `interval`.
    """
    fit, plateau, crossing = sections["fit"], sections["plateau"], sections["crossing"]
    rows = []
    if sections["is_transition"]:
        spans = {name: sections[name] for name in palette.SECTION_COLOURS}
        interval = f"begins in {_span(fit['start']['interval'])}, ends in {_span(fit['end']['interval'])}"
        rows.append(_definition("parting", spans, layers, interval))
    else:
        row = _definition("parting", {}, layers, "")
        rows.append(row | {"answer": f"no sections: {sections['reason']}"})
    if plateau is not None and plateau["first"] is not None:
        span: dict[str, list[float] | None] = {"": [plateau["first"], plateau["last"]]}
        first = f"begins in {_span(plateau['interval'])}" if plateau["interval"] else ""
        rows.append(_definition("plateau", span, layers, first))
    else:
        rows.append(_definition("plateau", {}, layers, ""))
    if plateau is not None:
        behind = f", from layer {fit['start']['layer']} on," if fit else ""
        meaning = f"where{behind} the lower quartile of E's CKA is within {plateau['margin']} of {plateau['against']}"
        rows[-1]["meaning"] = meaning
    if crossing is not None and crossing["first"] is not None:
        begins = f"begins in {_span(crossing['interval'])}" if crossing["interval"] else ""
        rows.append(_definition("crossing", {"": [crossing["first"], layers]}, layers, begins))
    else:
        rows.append(_definition("crossing", {}, layers, ""))
    paper = sections["paper"]
    spans = {name: paper[name] for name in palette.SECTION_COLOURS}
    return [*rows, _definition("paper", spans, paper["layers"], f"of {paper['layers']} layers")]


_DEFINITIONS = {
    "parting": ("Parting", "where E and the base part: a rise between two levels of tuned minus pre-trained CKA"),
    "plateau": ("Plateau of E", "where the lower quartile of E's CKA is near its highest"),
    "crossing": ("Crossing", "from where the mean of tuned minus pre-trained CKA stays above zero"),
    "paper": ("The paper", "Llama 2 7B, the authors' reading of their figure 1"),
}


def _definition(key: str, spans: Mapping[str, list[float] | None], layers: int, interval: str) -> dict[str, str]:
    name, meaning = _DEFINITIONS[key]
    known = {part: span for part, span in spans.items() if span is not None}
    answers = [f"{part} {_span(span)}".strip() for part, span in known.items()]
    # A layer covers its share of the depth, so the first section begins at zero.
    depths = [f"{100 * (span[0] - 1) / layers:.0f} to {100 * span[1] / layers:.0f} %" for span in known.values()]
    return {
        "name": name,
        "meaning": meaning,
        "answer": ", ".join(answers) or "nowhere",
        "depth": ", ".join(depths) or NONE,
        "interval": interval or NONE,
    }


def _span(span: list[float]) -> str:
    low, high = (int(edge) for edge in span)
    return f"{low}" if low == high else f"{low} to {high}"


def cluster_rows(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Returns the ranking of clusters, with a `note` on tasks that are left out; clusters without any other come last.

    Returns:
      The dicts of `analysis["clusters"]["ranking"]` with `note`; a cluster that is left out has `rank` None.
    """
    reasons = left_out(inputs.analysis)
    mixture = inputs.table[~inputs.table["held_out"].astype(bool)].drop_duplicates("task")
    absent: dict[str, list[str]] = {}
    for task, cluster in mixture[["task", "cluster"]].sort_values(["cluster", "task"]).itertuples(index=False):
        if task in reasons:
            absent.setdefault(cluster, []).append(task)
    rows = []
    ranking = inputs.analysis["clusters"]["ranking"]
    for row in ranking:
        names = absent.get(row["cluster"], [])
        rows.append(row | {"note": f"left out: {', '.join(names)}" if names else ""})
    nothing = {"mean": None, "low": None, "high": None}
    for cluster in sorted(absent.keys() - {row["cluster"] for row in ranking}):
        row = {"rank": None, "cluster": cluster, "n_tasks": 0, "information_share": None}
        row |= dict.fromkeys(("pretrained", "tuned", "change"), nothing)
        rows.append(row | {"note": f"left out: {', '.join(absent[cluster])}"})
    return rows


def score_rows(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Returns one row per scored task: information and exact match by model, and whether its specialist is competent.

    Returns:
      Dicts `task, cluster, held_out`, `information` and `exact_match` (model -> value), `low` and `high` of the
      specialist's information, `competent` (None if unknown) and `reason`.
    """
    scores = inputs.scores
    if scores.empty:
        return []
    information, matches = (scores_by_model(scores, metric) for metric in (INFORMATION, EXACT_MATCH))
    low, high = (scores_of(scores, INFORMATION, CONTROL, end) for end in ("low", "high"))
    known = {row["task"]: row for row in inputs.analysis["competence"]["tasks"]}
    rows = []
    tasks = scores.drop_duplicates("task").sort_values(["cluster", "task"])
    for task, cluster, held_out in tasks[["task", "cluster", "held_out"]].itertuples(index=False):
        row = {"task": task, "cluster": cluster, "held_out": bool(held_out)}
        for name, wide in (("information", information), ("exact_match", matches)):
            row[name] = dict(wide.loc[task]) if task in wide.index else dict.fromkeys(palette.SCORE_NAMES)
        row |= {"low": low.get(task), "high": high.get(task)}
        row |= {key: known[task][key] if task in known else None for key in ("competent", "reason")}
        rows.append(row)
    return to_json_types(rows)


def mean_rows(inputs: ReportInputs) -> tuple[list[str], list[dict[str, Any]]]:
    """Averages every metric over the competent tasks of the mixture.

    Seeds and twins may cover fewer tasks than their models, so each mean comes with its number of tasks.

    Returns:
      The metrics, and one dict per model: `name` and `means`, metric -> `mean` and `n_tasks`.
    """
    scores = inputs.scores
    sound = scores[~scores["held_out"].astype(bool) & ~scores["task"].isin(left_out(inputs.analysis))]
    if sound.empty:
        return [], []
    metrics = [metric for metric in palette.METRIC_NAMES if metric in set(sound["metric"])]
    sound = sound.assign(value=pd.to_numeric(sound["value"], errors="coerce")).dropna(subset=["value"])
    means = sound.groupby(["model", "metric"])["value"].agg(["mean", "size"])
    order = list(palette.SCORE_NAMES)
    models = sorted(set(sound["model"]), key=lambda name: (order.index(name.split(".")[0]), name))
    rows = []
    for model in models:
        cells: dict[str, Any] = dict.fromkeys(metrics)
        for metric in metrics:
            if (model, metric) in means.index:
                mean, size = means.loc[(model, metric)]
                cells[metric] = {"mean": float(mean), "n_tasks": int(size)}
        rows.append({"name": palette.score_name(model), "means": cells})
    return metrics, rows


def repairing(table: pd.DataFrame) -> str:
    """Returns what the permutation tests of single cells re-paired, in words."""
    names = set(table["repairing"].dropna()) if "repairing" in table.columns else set()
    return " or ".join(sorted(names - {"", "none"})) or "rows"


def task_counts(tasks: pd.DataFrame, prompts: Mapping[str, float]) -> dict[str, Any]:
    """Returns what the head of the page says of the tasks: how many there are, how many are held out, and `prompts`.

    Args:
      tasks: as in `ReportInputs`.
      prompts: the `smallest` and the `largest` number of prompts of a task.
    """
    low, high = int(prompts["smallest"]), int(prompts["largest"])
    span = f"{low:,} to {high:,} prompts" if low != high else counted(high, "prompt")
    return {"all": len(tasks), "held_out": int(tasks["held_out"].astype(bool).sum()), "prompts": span}


def undefined_cells(trust: dict[str, Any]) -> dict[str, Any]:
    """Returns what the page says of undefined cells.

    Args:
      trust: from the analysis.

    Returns:
      `cells` in all, those that are undefined as `expected` and those that are `alarming`, and `reasons`, the rows of
      `trust` with the reason in words.
    """
    expected = sum(row["expected"] for row in trust["reasons"])
    return {
        "cells": f"{trust['cells']:,}",
        "expected": expected,
        "alarming": trust["undefined"] - expected,
        "reasons": [row | {"reason": reason_in_words(row["reason"])} for row in trust["reasons"]],
    }
