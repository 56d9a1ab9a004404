"""The forecast from a pilot as a table for the terminal, beside the hours by formula."""

from __future__ import annotations

from typing import Any

from mossa_jax.planning.extrapolate import MARGIN
from mossa_jax.planning.measured import GROUPS
from mossa_jax.planning.plan_table import align

_COLUMNS = ("stage", "pilot s", "of peak", "times formula", "hours by formula", "hours as measured", "from", "to")


def format_forecast(plan: dict[str, Any]) -> str:
    """Returns the forecast of `extrapolate.extrapolate`, in the entry `measured` of a plan, as lines for a terminal."""
    forecast = plan["measured"]
    pilot = forecast["pilot"]
    digits = 2 if forecast["hours"] >= 1 else 4
    total = dict.fromkeys(_COLUMNS, "") | {
        "stage": "together",
        "pilot s": f"{sum(row['seconds'] for row in forecast['rows']):,.0f}",
        "hours by formula": f"{plan['hours']:.{digits}f}",
        "hours as measured": f"{forecast['hours']:.{digits}f}",
        "from": f"{forecast['low']:.{digits}f}",
        "to": f"{forecast['high']:.{digits}f}",
    }
    chip_hours = "{:,.1f} ({:,.1f} to {:,.1f})".format(*forecast["chip_hours"])
    lines = [
        f"{plan['config']} ({plan['model']}) on {plan['topology']}, AS MEASURED by {pilot['path']}: {pilot['model']}, "
        f"{pilot['tasks']} tasks on {pilot['hardware']}",
        "",
        *align([_COLUMNS, *(_cells(row, digits) for row in forecast["rows"]), tuple(total.values())]),
        "",
        "Each of the stages " + ", ".join(GROUPS) + " takes as many times as long as by formula as it took the pilot; "
        "transfers between chips are by formula.",
        "Compiling and the rest as in the pilot; loading and saving by bytes, data by examples, analyses and report by "
        "tasks.",
        _range(forecast),
        f"chip-hours: {chip_hours}",
    ]
    if forecast["price"]:
        lines.append("money: {:,.2f} ({:,.2f} to {:,.2f})".format(*forecast["price"]))
    lines += [f"warning: {warning}" for warning in forecast["warnings"]]
    return "\n".join([*lines, ""])


def format_brief(plan: dict[str, Any]) -> str:
    """Returns a plan in one line: hours, chip-hours and money."""
    figures = [f"{plan['hours']:.2f} hours", f"{plan['chip_hours']:,.1f} chip-hours"]
    source = "by formula" if not all(row["compiled"] for row in plan["rows"]) else "compiled"
    if plan["price"]:
        figures.append(f"{plan['price']:,.2f} in money")
    if "measured" in plan:
        forecast = plan["measured"]
        figures.append(f"as measured {forecast['hours']:.2f} hours ({forecast['low']:.2f} to {forecast['high']:.2f})")
        if forecast["price"]:
            figures.append("{:,.2f} in money ({:,.2f} to {:,.2f})".format(*forecast["price"]))
    if "analyses" in plan:
        figures.append(f"analyses {plan['analyses']['hours']:.2f} hours more")
    return f"{plan['config']} ({plan['model']}) on {plan['topology']}, {source}: {', '.join(figures)}"


def _cells(row: dict[str, Any], digits: int) -> tuple[str, ...]:
    return (
        row["stage"],
        f"{row['seconds']:,.1f}",
        "" if row["share"] is None else f"{100 * row['share']:.0f} %",
        "" if row["factor"] is None else f"{row['factor']:.3g}",
        "" if row["formula_hours"] is None else f"{row['formula_hours']:.{digits}f}",
        f"{row['hours']:.{digits}f}",
        f"{row['low']:.{digits}f}",
        f"{row['high']:.{digits}f}",
    )


def _range(forecast: dict[str, Any]) -> str:
    """Says what the range rests on."""
    text = (
        f"The range: {MARGIN:.0%} or, if that is more, what the pilot's pace changed within a stage; half to twice of "
    )
    text += "what has no formula"
    if not forecast["same_model"]:
        text += "; downwards, for a larger model fills a chip better, as far as the formula's share of the peak"
    return text + ". It is an assumption, not an interval."
