"""A comparison of runs for a terminal, for a note in Markdown, or for a program as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

from mossa_jax.findings import to_json_types
from mossa_jax.report.between_runs.inputs import RunsInputs
from mossa_jax.report.between_runs.tables import TextTable, all_tables

FORMATS = ("text", "markdown", "json")

_WIDTH = 120
_LONGEST = 44


def runs_text(inputs: RunsInputs, form: str = "text") -> str:
    """Returns the comparison in words.

    Args:
      inputs: what it shows.
      form: one of `FORMATS`. JSON holds every cell; the others hold what the page shows as tables.
    """
    if form == "json":
        return _json(inputs)
    tables = [table for table in all_tables(inputs) if table.rows or table.remarks]
    return "\n\n".join(map(_markdown if form == "markdown" else _text, tables))


def _json(inputs: RunsInputs) -> str:
    comparison = inputs.comparison
    frames = {name: getattr(comparison, name) for name in ("curves", "cells", "means", "sizes")}
    value = {
        "runs": [
            {"name": run.name, "folder": run.folder, "base": run.base, "layers": run.layers, "tasks": dict(run.tasks)}
            | {"settings": dict(run.settings), "versions": dict(run.versions), "findings": list(run.findings)}
            for run in inputs.runs
        ],
        "tasks": comparison.tasks,
        "sentences": comparison.sentences,
        "notes": comparison.notes,
        **{name: frame.to_dict("records") for name, frame in frames.items()},
    }
    return json.dumps(to_json_types(value), indent=1, allow_nan=False)


def _text(table: TextTable) -> str:
    lines = [table.title, *textwrap.wrap(table.lead, _WIDTH, initial_indent="  ", subsequent_indent="  ")]
    if table.rows:
        cells = [[_cut(cell) for cell in row] for row in (table.columns, *table.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  " + _aligned(row, widths) for row in cells]
    for remark in table.remarks:
        lines += textwrap.wrap(remark, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return "\n".join(lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cut(text: str) -> str:
    """Cuts a text in its middle: both ends of a path or of a task's name tell it from others."""
    text = " ".join(text.split())
    keep = (_LONGEST - 1) // 2
    return text if len(text) <= _LONGEST else f"{text[:keep]}…{text[-keep:]}"


def _markdown(table: TextTable) -> str:
    lines = [f"## {table.title}", "", table.lead]
    if table.rows:
        rows = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (table.columns, *table.rows)]
        rows.insert(1, ["---"] * len(table.columns))
        lines += ["", *[f"| {' | '.join(row)} |" for row in rows]]
    if table.remarks:
        lines += ["", *[f"- {remark}" for remark in table.remarks]]
    return "\n".join(lines)
