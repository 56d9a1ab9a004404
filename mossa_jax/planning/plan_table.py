"""A plan as a table for the terminal: one line per stage, and below it what the figures rest on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mossa_jax.planning.analyses import FACTORISATION_SHARE

_ANALYSIS_COLUMNS = (
    "analysis", "made", "tasks", "models", "prompts", "passes", "FLOPs", "host s", "GiB", "hours", "chip-hours",
    "money",
)  # fmt: skip

_COLUMNS = (
    "stage", "mesh", "models", "batch", "base", "arguments", "temporary", "total", "free", "FLOPs a run", "GB received",
    "gathered", "s a run", "runs", "hours", "chip-hours",
)  # fmt: skip


def format_plan(plan: dict[str, Any]) -> str:
    """Returns the plan of `forecast.plan_run` as lines for a terminal, its table in Markdown."""
    rows = plan["rows"]
    room = min((row["room"] for row in rows), default=0)
    source = "compiled" if all(row["compiled"] for row in rows) else "BY FORMULA, not compiled"
    if plan["no_compiler"]:
        source += f": {plan['no_compiler']}"
    lines = [
        f"{plan['config']} ({plan['model']}) on {plan['topology']}: "
        f"{plan['chips']} chips of {_gib(room)} GiB, {source}",
        "",
        *align([_COLUMNS, *map(_cells, rows), _compilation_cells(plan), _sum_cells(plan)]),
        "",
        "Mesh: adapter x fsdp x tensor. Memory in GiB per chip; the total includes outputs, code and what else is on",
        "the chip. GB received: by one chip from others in one run of the program; gathered: of these by all-gathers.",
        f"Times: products at {plan['use']:g} of the peak, or transfers if they take longer (*).",
        _compilation(plan),
        _assumptions(plan["work"]),
        *map(_details, rows),
    ]
    if plan["price"]:
        lines.append(f"money: {plan['price']:,.2f}")
    return "\n".join([*lines, ""])


def format_analyses(plan: dict[str, Any]) -> str:
    """Returns the prices of `analyses.plan_analyses`, in the entry `analyses` of a plan, as lines for a terminal."""
    analyses = plan["analyses"]
    total = dict.fromkeys(_ANALYSIS_COLUMNS, "") | {
        "analysis": "together",
        "hours": f"{analyses['hours']:.2f}",
        "chip-hours": f"{analyses['chip_hours']:.2f}",
        "money": _money(analyses["price"]),
    }
    lines = [
        f"Analyses of {plan['config']} ({plan['model']}) on {plan['topology']}, BY FORMULA:",
        "",
        *align([_ANALYSIS_COLUMNS, *map(_analysis_cells, analyses["rows"]), tuple(total.values())]),
        "",
        f"Products at {plan['use']:g} of the peak, factorisations at {FACTORISATION_SHARE:g} of their speed (assumed).",
        "Passes: of one model over a task's prompts. Host: seconds of one processor, for which all chips wait. GiB: on",
        "a chip, beside the base. States are those of the comparison; a finished run that is asked for more analyses",
        "computes them once more, at the price of the stage `states`.",
    ]
    for row in analyses["rows"]:
        left_out = "" if row["wanted"] else f" (not made: {row['note'] or 'analyse.' + row['analysis'] + '=false'})"
        lines.append(f"{row['analysis']}: {row['reason']}{left_out}")
    return "\n".join([*lines, ""])


def _analysis_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["analysis"],
        "yes" if row["wanted"] else "no",
        f"{row['tasks']:,}",
        str(row["models"]),
        f"{row['prompts']:,}",
        f"{row['passes']:,.0f}",
        f"{row['flops'] + row['factorisations']:.2e}",
        f"{row['host_seconds']:,.0f}",
        _gib(row["bytes"]),
        f"{row['hours']:.2f}",
        f"{row['chip_hours']:.2f}",
        _money(row["price"]),
    )


def _money(price: float | None) -> str:
    return "" if price is None else f"{price:,.2f}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    transfers_mark = "*" if row["transfer_seconds"] > row["products_seconds"] else ""
    free = row["room"] - row["total"]
    return (
        row["stage"],
        " x ".join(str(size) for size in row["mesh"].values()),
        str(row["models"]),
        f"{row['rows']} x {row['row_length']}" + (f" / {row['parts']}" if row["parts"] > 1 else ""),
        _gib(row["base"]),
        _gib(row["arguments"]),
        _gib(row["temporary"]),
        _gib(row["total"]),
        _gib(free) if row["fits"] else f"MISSING {_gib(-free)}",
        f"{row['flops']:.2e}",
        f"{row['received'] / 1e9:.1f}",
        f"{sum(row['gathered'].values()) / 1e9:.1f}",
        f"{row['seconds']:.2f}{transfers_mark}",
        f"{row['runs']:,.0f}",
        f"{row['hours']:.2f}",
        f"{row['chip_hours']:.1f}",
    )


def _compilation_cells(plan: dict[str, Any]) -> tuple[str, ...]:
    seconds = plan["compilation"]["seconds"]
    cells = dict.fromkeys(_COLUMNS, "") | {"stage": "compiling", "hours": "?", "chip-hours": "?"}
    if seconds is not None:
        hours = seconds / 3600
        cells |= {"hours": f"{hours:.2f}", "chip-hours": f"{hours * plan['chips']:.1f}"}
    return tuple(cells.values())


def _compilation(plan: dict[str, Any]) -> str:
    """Returns the line on the programs of the run and the time that their compilation takes."""
    programs, seconds = plan["compilation"]["programs"], plan["compilation"]["seconds"]
    time = "takes a time that is not known without a compiler, and is not among the hours"
    if seconds is not None:
        time = f"takes {seconds:,.0f} s on this machine, which the hours have once"
    return f"Compiling at most {programs} programs, however many tasks there are, {time}."


def _sum_cells(plan: dict[str, Any]) -> tuple[str, ...]:
    cells = dict.fromkeys(_COLUMNS, "") | {
        "stage": "together",
        "FLOPs a run": f"{plan['operations']:.2e}",
        "hours": f"{plan['hours']:.2f}",
        "chip-hours": f"{plan['chip_hours']:.1f}",
    }
    return tuple(cells.values())


def align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns rows of cells as lines of a Markdown table, the first one as its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [head, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *body]


def _assumptions(work: dict[str, Any]) -> str:
    template = f", and {work['head']} of its template" if work["head"] else ""
    return (
        f"{len(work['controls'])} controls on {sum(work['controls']):,} examples in all, E on {work['mixture']:,}; "
        f"{work['tasks']} tasks, at most {work['prompts']:,} test prompts each. "
        f"Assumed: {work['ids']:g} ids per example{template}; prompts as long as examples."
    )


def _details(row: dict[str, Any]) -> str:
    """Returns a stage's facts that have no column."""
    facts = [f"attention {row['attention']}"] if row["attention"] else []
    if row["stage"] in ("E", "controls"):
        facts += [f"recomputation {'on' if row['remat'] else 'off'}", f"{100 * row['used']:.0f} % of the work counts"]
    if row["compile_seconds"]:
        facts.append(f"compiled in {row['compile_seconds']:g} s")
    if row["collectives"] is None:
        facts.append("transfers by formula")
    else:
        facts += [
            f"{transfer['kind']} over {transfer['axes']} {transfer['count']} times, {transfer['bytes'] / 1e9:.2f} GB"
            for transfer in row["collectives"]
            if transfer["bytes"] >= 0.01 * row["received"]
        ]
    return f"{row['stage']}: {'; '.join(facts)}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
