"""A plan in words: one table, a line a stage, and what it rests on."""

from __future__ import annotations

from typing import Any

_HEAD = (
    "stage", "mesh", "models", "batch", "base", "arguments", "temporary", "total", "free", "FLOPs a run", "GB received",
    "s a run", "runs", "hours", "chip-hours",
)  # fmt: skip


def shown(plan: dict[str, Any]) -> str:
    """The table of `forecast.table` with its sums, as lines for a terminal (and for Markdown)."""
    rows = plan["rows"]
    room = min((row["room"] for row in rows), default=0)
    way = "compiled" if all(row["compiled"] for row in rows) else "BY FORMULA, not compiled"
    lines = [
        f"{plan['config']} ({plan['model']}) on {plan['topology']}: {plan['chips']} chips of {_gib(room)} GiB, {way}",
        "",
        *_aligned([_HEAD, *map(_cells, rows), _sum(plan)]),
        "",
        "Mesh: adapter x fsdp x tensor. GiB a chip; outputs, code and what lies there besides are in the total. GB",
        "that a chip receives from others in one run of the program. "
        f"Times at use {plan['use']:g} of the peak, or of the transfers where these take longer (*).",
        _assumed(plan),
    ]
    for row in rows:
        lines += _notes(row)
    if plan["price"]:
        lines.append(f"money: {plan['price']:,.2f}")
    return "\n".join([*lines, ""])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    waits = "*" if row["transfer_seconds"] > row["products_seconds"] else ""
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
        f"{row['seconds']:.2f}{waits}",
        f"{row['runs']:,.0f}",
        f"{row['hours']:.2f}",
        f"{row['chip_hours']:.1f}",
    )


def _sum(plan: dict[str, Any]) -> tuple[str, ...]:
    empty = [""] * (len(_HEAD) - 3)
    empty[8] = f"{plan['operations']:.2e}"
    return ("together", *empty, f"{plan['hours']:.2f}", f"{plan['chip_hours']:.1f}")


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _assumed(plan: dict[str, Any]) -> str:
    work = plan["work"]
    text = (
        f"{len(work['controls'])} controls of {sum(work['controls']):,} examples together, E of {work['mixture']:,}; "
        f"{work['tasks']} tasks, at most {work['prompts']:,} test prompts each."
    )
    head = f" and the template's {work['head']}" if work["head"] else ""
    return f"{text} Assumed: {work['ids']:g} ids an example{head}; prompts as long as examples."


def _notes(row: dict[str, Any]) -> list[str]:
    facts = [row["attention"] and f"attention {row['attention']}"]
    if row["stage"] in ("E", "controls"):
        facts += [f"recomputation {'on' if row['remat'] else 'off'}", f"{100 * row['used']:.0f} % of the work counts"]
    if row["compile_seconds"]:
        facts.append(f"compiled in {row['compile_seconds']:g} s")
    moved = row["collectives"]
    if moved is None:
        facts.append("transfers by formula")
    else:
        large = [part for part in moved if part["bytes"] >= 0.01 * row["received"]]
        facts += [
            f"{part['kind']} over {part['axes']} {part['count']} times, {part['bytes'] / 1e9:.2f} GB" for part in large
        ]
    return [f"{row['stage']}: {'; '.join(fact for fact in facts if fact)}"]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
