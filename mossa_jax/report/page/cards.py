"""The claims as cards: verdict, figure and sentence of each, and the link to its view of its chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from mossa_jax.findings.claims import EXPLORATORY, NOT_MEASURED
from mossa_jax.findings.curves import HEADLINE
from mossa_jax.findings.headlines import NOTHING
from mossa_jax.report.charts.grammar import Chart
from mossa_jax.report.numbers import NONE, fixed, with_minus

_MOST_TASKS = 6
"""The most tasks that a card links to."""

_SECTIONS = {
    "change": "section-where",
    "specificity": "section-trust",
    "held_out": "section-unseen",
    "cluster_slopes": "section-clusters",
    "scores": "section-training",
}
"""Chart -> the section that says why it is not there; the sections of analyses are absent as their charts are."""


@dataclass(frozen=True)
class Link:
    """A link to a view of a chart, or to a section.

    Attributes:
      text: of the link.
      target: the anchor, without "#".
      view: what the chart is to show, as in a URL: "estimator=debiased&mark=17-32"; "" for a section.
    """

    text: str
    target: str
    view: str = ""


@dataclass(frozen=True)
class Card:
    """A claim as a card.

    Attributes:
      name: of the claim.
      title: what it is about.
      claim: the claim.
      is_exploratory: whether it is exploratory.
      verdict: of the finding.
      figure, detail: as in `headlines.Headline`, with a true minus sign.
      units: over what, and the p value; "" if nothing was measured.
      sentence: what was found.
      reservations: what keeps a significant claim from being supported.
      qualifications: kind of a warning -> what it says beside the claim.
      link: to its view of its chart; None where there is nothing to see.
      tasks: links to the tasks that go against the claim, each in the same chart, the largest change first.
      more_tasks: how many of them have no link.
    """

    name: str
    title: str
    claim: str
    is_exploratory: bool
    verdict: str
    figure: str
    detail: str
    units: str
    sentence: str
    reservations: tuple[str, ...]
    qualifications: Mapping[str, str]
    link: Link | None
    tasks: tuple[Link, ...] = ()
    more_tasks: int = 0


def claim_cards(analysis: Mapping[str, Any], charts: Mapping[str, Chart]) -> list[Card]:
    """Returns one card per claim, in the order of the claims.

    Args:
      analysis: from `find`.
      charts: name -> chart, of those that the page shows.
    """
    return [_card(finding, analysis, charts) for finding in analysis["findings"]]


def _card(finding: Mapping[str, Any], analysis: Mapping[str, Any], charts: Mapping[str, Chart]) -> Card:
    line, marked = finding["headline"], _marked(finding, analysis)
    fallers = finding["figures"].get("fallers") or []
    chart = charts.get(finding["chart"])
    tasks = [
        Link(f"{each['task']} ({fixed(each['change'], signed=True)})", chart.name, _view(chart, marked, each["task"]))
        for each in fallers[:_MOST_TASKS]
        if chart is not None
    ]
    return Card(
        name=finding["id"],
        title=finding["title"],
        claim=finding["claim"],
        is_exploratory=finding["family"] == EXPLORATORY,
        verdict=finding["verdict"],
        figure=_shown(line["figure"]),
        detail=with_minus(line["detail"]),
        units=", ".join(text for text in (line["units"], line["p"]) if text),
        sentence=with_minus(finding["sentence"]),
        reservations=tuple(with_minus(text) for text in finding["reservations"]),
        qualifications={
            warning["kind"]: warning["touches"][finding["id"]]
            for warning in analysis["warnings"]
            if finding["id"] in warning["touches"]
        },
        link=_link(finding, chart, marked),
        tasks=tuple(tasks),
        more_tasks=len(fallers) - len(tasks) if tasks else 0,
    )


def _shown(figure: str) -> str:
    return NONE if figure == NOTHING else with_minus(figure)


def _link(finding: Mapping[str, Any], chart: Chart | None, marked: str) -> Link | None:
    if chart is not None and finding["verdict"] != NOT_MEASURED:
        return Link("See it in the chart", chart.name, _view(chart, marked))
    section = _SECTIONS.get(finding["chart"])
    return Link("Why there is nothing to see", section) if section else None


def _view(chart: Chart, marked: str, task: str = "") -> str:
    """Returns the view of a chart on which a claim rests; choices that the chart does not have are left out."""
    view = {"estimator": HEADLINE} if HEADLINE in getattr(chart.choices.get("estimator"), "options", ()) else {}
    if task and chart.request:
        view["task"] = task
    return urlencode(view | ({"mark": marked} if marked else {}))


def _marked(finding: Mapping[str, Any], analysis: Mapping[str, Any]) -> str:
    """Returns the layers on which a claim rests as "17-32"; "" for none, or if they do not stand side by side."""
    sections = analysis["sections"]
    if finding["id"] == "transition":
        fit = sections["fit"]
        return _range([fit["start"]["layer"], fit["end"]["layer"]] if fit else [])
    if finding["id"] == "shared":
        return _range(sections["shared"] or [])
    if finding["id"] == "gain":
        by_change = finding["figures"].get("by_change") or {}
        part = by_change.get("rise") or by_change.get("top") or {"layers": []}
        layers = [int(layer) for layer in part["layers"]]
        return _range(layers if layers == list(range(*_ends(layers))) else [])
    # The scores are no curve over layers.
    return "" if finding["id"] in ("ability", "clusters") else _range(analysis["half"]["layers"])


def _ends(layers: Sequence[int]) -> tuple[int, int]:
    return (layers[0], layers[-1] + 1) if layers else (0, 0)


def _range(layers: Sequence[Any]) -> str:
    return f"{layers[0]}-{layers[-1]}" if layers else ""
