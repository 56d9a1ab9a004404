"""What a look at a suite found, as plain text."""

from __future__ import annotations

import pandas as pd

from mossa_jax.preview.dataset import CHECKS, Look, figure

_WIDTH = 160
_HEADERS = {
    "train": "train", "validation": "valid", "test": "test", "tokens_mean": "mean", "tokens_p95": "p95",
    "tokens_max": "max", "truncated": "cut%", "truncated_test": "tcut%", "duplicates": "dup", "overlap": "ovl%",
    "overlap_others": "ovlE%", "distinct_prompts": "diff", "templates": "tmpl", "top_answer": "top%",
    "bad_rows": "bad", "mixture": "to E", "packed_rows": "rows", "control_steps": "steps",
}  # fmt: skip
_LEGEND = (
    "mean, p95, max: tokens of a training row after cutting | cut%, tcut%: training rows, test prompts that were cut",
    "dup: training rows that repeat one | ovl%, ovlE%: test prompts among the training prompts of the task, of others",
    "diff: different test prompts after cutting | tmpl: instruction templates | top%: the most frequent test answer",
    "bad: rows left out | to E: examples given to it | rows, steps: packed, of the control model | !: see the warnings",
)


def table_text(found: Look) -> str:
    """All of it in plain text, at most 160 columns wide but for the warnings."""
    parts = [_tasks_text(found.tasks), _mixture_text(found)]
    parts.append("\n".join(found.warnings) or "Nothing to warn of.")
    return "\n\n".join(parts)


def _tasks_text(tasks: pd.DataFrame) -> str:
    marks = {column: pd.Series(False, tasks.index) for column in _HEADERS}
    for check in CHECKS:
        if not check.note:
            marks[check.column] |= check.holds(tasks)
    columns = []
    for column, header in _HEADERS.items():
        cells = [figure(column, value) for value in tasks[column]]
        if column == "templates":
            cells = [cell if value else "-" for cell, value in zip(cells, tasks[column], strict=True)]
        if column == "mixture":
            cells = ["held" if held else cell for cell, held in zip(cells, tasks.held_out, strict=True)]
        cells = [cell + "!" * bool(mark) for cell, mark in zip(cells, marks[column], strict=True)]
        # A mark stands where else the space between two columns is.
        cells = [cell if cell.endswith("!") else f"{cell} " for cell in [header, *cells]]
        columns.append([cell.rjust(max(map(len, cells))) for cell in cells])
    rest = _WIDTH - sum(len(column[0]) for column in columns) - 2
    cluster_width = min(max(map(len, ["cluster", *tasks.cluster])), max(rest * 3 // 8, 12))
    task_width = min(max(map(len, ["task", *tasks.task])), rest - cluster_width)
    names = [_fitted(name, task_width) for name in ["task", *tasks.task]]
    clusters = [_fitted(name, cluster_width) for name in ["cluster", *tasks.cluster]]
    numbers = ["".join(cells) for cells in zip(*columns, strict=True)]
    lines = [" ".join(cells).rstrip() for cells in zip(names, clusters, numbers, strict=True)]
    sources = sorted(set(tasks.source) - {""})
    return "\n".join([*lines, "", *_LEGEND, *([f"source: {', '.join(sources)}"] if len(sources) in (1, 2) else [])])


def _fitted(name: str, width: int) -> str:
    """A name in just `width` columns; what is too long loses its middle."""
    if len(name) > width:
        end = (width - 1) // 2
        name = f"{name[: width - 1 - end]}…{name[len(name) - end :]}"
    return name.ljust(width)


def _mixture_text(found: Look) -> str:
    totals, tasks = found.totals, found.tasks
    clusters = found.mixture[found.mixture.kind == "cluster"]
    width = min(max(map(len, clusters.name)), 60)
    counts = tasks.groupby("cluster")["task"].count()
    lines = ["The mixture for E, by cluster"]
    for row in clusters.itertuples():
        of = f"{counts[row.cluster]} task{'s' if counts[row.cluster] > 1 else ''}"
        lines.append(
            f"  {_fitted(row.name, width)} {of:>9} {row.rows:>9,} rows, given {row.given:>9,} {row.share:>6.1%}"
        )
    lines += [
        f"E: {totals['examples']:,} examples of {int((~tasks.held_out).sum())} tasks, {totals['tokens']:,} tokens in "
        f"{totals['packed_rows']:,} packed rows, {totals['fill']:.1%} filled; {totals['steps']:,} steps, "
        f"{totals['epochs']:.2f} epochs",
        f"Tokens to train on, all epochs: E {totals['trained_experimental']:,}, {len(tasks)} controls "
        f"{totals['trained_controls']:,}, together {totals['trained']:,}",
    ]
    return "\n".join(lines)
