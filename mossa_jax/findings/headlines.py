"""What a finding comes to in one line: its figure with interval and unit, its units, its p value."""

from __future__ import annotations

from typing import Any, TypedDict

from mossa_jax.findings.wording import counted

NOTHING = "-"
"""What stands for a figure that was not measured."""


class Headline(TypedDict):
    """One line of figures.

    Attributes:
      figure: the value, such as "+0.247 CKA".
      detail: its 95 % interval, and what it is a value of where the unit does not say it; "" if there is neither.
      units: over what it is taken, such as "11 clusters, 60 tasks"; "" if nothing was measured.
      p: such as "p < 0.001 corrected"; "" if nothing was tested.
    """

    figure: str
    detail: str
    units: str
    p: str


def headline(claim: str, figures: dict[str, Any]) -> Headline:
    """Returns the line of a claim.

    Args:
      claim: its name.
      figures: of its finding, with `p_adjusted`.
    """
    figure, detail = _figure(claim, figures)
    return Headline(figure=figure, detail=detail, units=_units(figures), p=_p(figures.get("p_adjusted")))


def in_words(line: Headline) -> str:
    """Returns a headline as one text."""
    figure = f"{line['figure']} {line['detail']}".strip()
    return ", ".join(text for text in (figure, line["units"], line["p"]) if text)


def _figure(claim: str, figures: dict[str, Any]) -> tuple[str, str]:
    if claim == "transition":
        return _rise(figures.get("fit"))
    if claim == "gain":
        return _carried(figures.get("by_change"))
    if claim == "clusters":
        share = figures.get("eta_squared")
        return (
            (NOTHING, "") if share is None else (f"{100 * share:.0f} %", "of the spread of tasks lies between clusters")
        )
    if claim == "ability":
        rho = figures.get("rho")
        return (NOTHING, "") if rho is None else (f"{rho:+.2f}", "partial rank correlation")
    if figures.get("mean") is None:
        return NOTHING, ""
    low, high = figures["low"], figures["high"]
    interval = "" if low is None or high is None else f"[{low:+.3f}, {high:+.3f}]"
    return f"{figures['mean']:+.3f} CKA", interval


def _rise(fit: dict[str, Any] | None) -> tuple[str, str]:
    if not fit:
        return NOTHING, ""
    before, after = (fit[side]["level"] for side in ("before", "after"))
    first, last = (fit[end]["layer"] for end in ("start", "end"))
    place = f"in layer {first}" if first == last else f"in layers {first} to {last}"
    return f"{before:+.3f} to {after:+.3f} CKA", place


def _carried(by_change: dict[str, Any] | None) -> tuple[str, str]:
    """Says how much of the gain the layers with the largest change carry."""
    part = (by_change or {}).get("rise") or (by_change or {}).get("top")
    if not part or part["carried"]["mean"] is None:
        return NOTHING, ""
    low, high = part["carried"]["low"], part["carried"]["high"]
    interval = "" if low is None else f"[{100 * low:.0f} to {100 * high:.0f} %] "
    share = 100 * part["share_of_layers"]
    return f"{100 * part['carried']['mean']:.0f} %", f"{interval}of the gain in {share:.0f} % of the layers"


def _units(figures: dict[str, Any]) -> str:
    if figures.get("n_units"):
        units, noun = figures["n_units"], figures["unit"].removesuffix("s")
    elif figures.get("n_clusters"):
        units, noun = figures["n_clusters"], "cluster"
    else:
        return ""
    parts = [counted(units, noun)]
    # Without clusters the units are the tasks themselves.
    if noun != "task" and figures.get("n_tasks"):
        parts.append(counted(figures["n_tasks"], "task"))
    return ", ".join(parts)


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "p < 0.001 corrected" if value < 0.001 else f"p = {value:.3f} corrected"
