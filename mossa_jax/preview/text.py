"""A preview of a suite as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mossa_jax.findings.warning_kinds import DATA
from mossa_jax.findings.warnings import format_cell
from mossa_jax.preview.dataset import Preview
from mossa_jax.tasks.items import GUESSED

if TYPE_CHECKING:
    import pandas as pd

_WIDTH = 160
_HEADERS = {
    "train": "train", "validation": "valid", "test": "test", "tokens_mean": "mean", "tokens_p95": "p95",
    "tokens_max": "max", "truncated": "cut%", "truncated_test": "tcut%", "duplicates": "dup", "overlap": "ovl%",
    "overlap_others": "ovlE%", "distinct_prompts": "diff", "items": "items",
    "item_max": "most", "templates": "tmpl", "top_answer": "top%",
    "bad_rows": "bad", "mixture": "to E", "packed_rows": "rows", "control_steps": "steps",
}  # fmt: skip
_LEGEND = (
    "mean, p95, max: tokens of a training row after cutting | cut%, tcut%: training rows, test prompts that are cut",
    "dup: repeated training rows | ovl%, ovlE%: test prompts that the task, or another one in the mixture, trains on",
    "diff: distinct test prompts after cutting | items: of these, those of one passage or row count as one, ?: guessed",
    "most: prompts of the largest item | tmpl: instruction templates | top%: share of the top test answer",
    "bad: rows left out | to E: examples in the mixture | rows, steps: of the control model | !: see the warnings",
)


def preview_text(preview: Preview) -> str:
    """Renders a preview as plain text, at most 160 columns wide except for the warnings."""
    warnings = "\n".join(preview.warnings) or "No warnings."
    return "\n\n".join([_tasks_text(preview.tasks), _mixture_text(preview), warnings])


def _tasks_text(tasks: pd.DataFrame) -> str:
    """Renders the table of tasks, with its legend."""
    marked = {column: _marked(tasks, column) for column in _HEADERS}
    columns = []
    for column, header in _HEADERS.items():
        cells = [format_cell(column, value) for value in tasks[column]]
        if column == "items":
            cells = [
                f"{cell}?" if source == GUESSED else cell for cell, source in zip(cells, tasks.item_source, strict=True)
            ]
        if column == "templates":
            cells = [cell if value else "-" for cell, value in zip(cells, tasks[column], strict=True)]
        if column == "mixture":
            cells = ["held" if held_out else cell for cell, held_out in zip(cells, tasks.held_out, strict=True)]
        cells = [cell + "!" * mark for cell, mark in zip(cells, marked[column], strict=True)]
        # A mark takes the place of the space between two columns.
        cells = [cell if cell.endswith("!") else f"{cell} " for cell in [header, *cells]]
        columns.append([cell.rjust(max(map(len, cells))) for cell in cells])
    name_space = _WIDTH - sum(len(column[0]) for column in columns) - 2
    cluster_width = min(max(map(len, ["cluster", *tasks.cluster])), max(name_space * 3 // 8, 12))
    task_width = min(max(map(len, ["task", *tasks.task])), name_space - cluster_width)
    names = [_fit(name, task_width) for name in ["task", *tasks.task]]
    clusters = [_fit(name, cluster_width) for name in ["cluster", *tasks.cluster]]
    numbers = ["".join(cells) for cells in zip(*columns, strict=True)]
    lines = [" ".join(cells).rstrip() for cells in zip(names, clusters, numbers, strict=True)]
    sources = sorted(set(tasks.source) - {""})
    source_line = [f"source: {', '.join(sources)}"] if len(sources) in (1, 2) else []
    return "\n".join([*lines, "", *_LEGEND, *source_line])


def _marked(tasks: pd.DataFrame, column: str) -> list[bool]:
    """Returns which tasks have a problem that shows in a column."""
    problems = [kind.applies(tasks) for kind in DATA if kind.column == column and not kind.is_note]
    return [any(row) for row in zip(*problems, strict=True)] if problems else [False] * len(tasks)


def _fit(name: str, width: int) -> str:
    """Fits a name into exactly `width` columns; one that is too long loses its middle."""
    if len(name) > width:
        end = (width - 1) // 2
        name = f"{name[: width - 1 - end]}…{name[len(name) - end :]}"
    return name.ljust(width)


def _mixture_text(preview: Preview) -> str:
    """Renders the mixture by cluster, and the totals."""
    totals, tasks = preview.totals, preview.tasks
    clusters = preview.mixture[preview.mixture.kind == "cluster"]
    width = min(max(map(len, clusters.name)), 60)
    counts = tasks.groupby("cluster")["task"].count()
    lines = ["The mixture for E, by cluster"]
    for row in clusters.itertuples():
        size = f"{counts[row.cluster]} task{'s' if counts[row.cluster] > 1 else ''}"
        lines.append(
            f"  {_fit(row.name, width)} {size:>9} {row.rows:>9,} rows, {row.given:>9,} in the mixture {row.share:>6.1%}"
        )
    lines += [
        f"E: {totals.examples:,} examples of {int((~tasks.held_out).sum())} tasks, {totals.tokens:,} tokens in "
        f"{totals.packed_rows:,} packed rows, {totals.fill:.1%} filled; {totals.steps:,} steps, "
        f"{totals.epochs:.2f} epochs",
        f"Tokens to train on, all epochs: E {totals.trained_experimental:,}, {len(tasks)} controls "
        f"{totals.trained_controls:,}, together {totals.trained:,}",
    ]
    return "\n".join(lines)
