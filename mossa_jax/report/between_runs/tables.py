"""The tables of a comparison of runs, as texts: the console prints them, and the page shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.between_runs import UPPER_HALF
from mossa_jax.findings.competence import EXACT_MATCH, INFORMATION
from mossa_jax.findings.curves import HEADLINE
from mossa_jax.findings.run_sizes import E_SEEDS, RUN_SEEDS, RUNS, SPECIALIST_SEEDS
from mossa_jax.findings.run_tables import CHANGE, QUANTITIES
from mossa_jax.findings.trust import FDR
from mossa_jax.findings.wording import counted
from mossa_jax.report import palette
from mossa_jax.report.between_runs.inputs import RunsInputs
from mossa_jax.report.page.tables import claim_rows

QUANTITY_NAMES = {CHANGE: "change", PRETRAINED: "CKA, pre-trained", TUNED: "CKA, tuned"}
"""Quantity -> how it is named."""

_KIND_NAMES = {
    RUNS: "two runs",
    SPECIALIST_SEEDS: "two seeds of one specialist, in",
    E_SEEDS: "two seeds of E, in",
    RUN_SEEDS: "runs that differ in their seed alone",
}
_NOTHING = "–"
_MOST_CELLS = 8


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Attributes:
      name: anchor on the page.
      title: heading.
      lead: what is shown, in a sentence or two.
      columns: headings.
      rows: one text per column; the first names the row.
      remarks: sentences below it.
    """

    name: str
    title: str
    lead: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str] = field(default=())


def all_tables(inputs: RunsInputs) -> list[TextTable]:
    """Returns the tables of a comparison, in their order."""
    return [
        _runs(inputs),
        _settings(inputs),
        _tasks(inputs),
        _findings(inputs),
        _sizes(inputs),
        _curves(inputs),
        _means(inputs),
        _cells(inputs),
        _scores(inputs),
    ]


def _runs(inputs: RunsInputs) -> TextTable:
    rows = [(run.name, run.base, str(run.layers), str(len(run.tasks)), run.folder) for run in inputs.runs]
    lead = f"{inputs.runs[0].name} is the reference: differences are the other run less this one."
    return TextTable("runs", "Runs", lead, ("run", "base", "layers", "tasks", "folder"), rows, inputs.comparison.notes)


def _settings(inputs: RunsInputs) -> TextTable:
    rows = _unlike([run.settings for run in inputs.runs]) + _unlike([run.versions for run in inputs.runs])
    lead = "Fields of the configuration, and versions, that are not the same in all runs."
    return TextTable("settings", "What differs in their settings", lead, ("field", *_names(inputs)), rows)


def _unlike(values: Sequence[Any]) -> list[tuple[str, ...]]:
    """Returns the names whose values differ, with the values as texts."""
    names = dict.fromkeys(name for each in values for name in each)
    unlike = [name for name in names if len({str(each.get(name)) for each in values}) > 1]
    return [(name, *[_setting(each.get(name)) for each in values]) for name in unlike]


def _setting(value: Any) -> str:
    if value is None or value == "":
        return _NOTHING
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _tasks(inputs: RunsInputs) -> TextTable:
    names = dict.fromkeys(task for run in inputs.runs for task in run.tasks)
    roles = [(task, *[run.tasks.get(task, "not in it") for run in inputs.runs]) for task in names]
    rows = [row for row in roles if len(set(row[1:])) > 1]
    lead = (
        f"Means and curves rest on {counted(len(inputs.comparison.tasks), 'task')}. Shown are those that have not the "
        "same part in all runs; the findings leave out tasks whose specialists do not use their prompts."
    )
    return TextTable("tasks", "Tasks that differ", lead, ("task", *_names(inputs)), rows)


def _findings(inputs: RunsInputs) -> TextTable:
    claims = [{row["id"]: row for row in claim_rows(list(run.findings))} for run in inputs.runs]
    titles = {finding["id"]: finding["title"] for run in inputs.runs for finding in run.findings}
    rows = []
    for name, title in titles.items():
        cells = [_finding(each.get(name)) for each in claims]
        rows.append((title, *cells))
    lead = "Verdict, estimate with its 95 % interval, and p before correction, as each run's own page gives them."
    return TextTable("findings", "Findings", lead, ("finding", *_names(inputs)), rows)


def _finding(row: dict[str, str] | None) -> str:
    if row is None:
        return _NOTHING
    parts = [row["verdict"]]
    if row["estimate"] != _NOTHING:
        parts.append(row["estimate"])
    if row["p"] != _NOTHING:
        parts.append(f"p {row['p']}" if row["p"].startswith("<") else f"p = {row['p']}")
    return ", ".join(parts)


def _scores(inputs: RunsInputs) -> TextTable:
    rows = []
    tasks = inputs.comparison.tasks
    for metric in (INFORMATION, EXACT_MATCH):
        for model in ("base", "tuned", "control"):
            means = [_mean_score(run.scores, metric, model, tasks) for run in inputs.runs]
            if any(mean is not None for mean in means):
                label = f"{palette.METRIC_NAMES[metric]}, {palette.SCORE_NAMES[model]}"
                rows.append((label, *[_number(mean, "{:.3f}") for mean in means]))
    lead = "Means over the tasks that all comparisons rest on."
    return TextTable("scores", "Scores", lead, ("score", *_names(inputs)), rows)


def _mean_score(scores: pd.DataFrame | None, metric: str, model: str, tasks: Sequence[str]) -> float | None:
    if scores is None or scores.empty:
        return None
    is_wanted = (scores["metric"] == metric) & (scores["model"] == model) & scores["task"].isin(tasks)
    values = scores.loc[is_wanted, "value"].astype(float).dropna()
    return float(values.mean()) if len(values) else None


def _curves(inputs: RunsInputs) -> TextTable:
    curves = inputs.comparison.curves
    rows = []
    for depth, points in curves.groupby(curves["relative_depth"].round(4)):
        by_run = {row["run"]: row for row in points.to_dict("records")}
        cells = [_curve_cell(by_run.get(run.name)) for run in inputs.runs]
        rows.append((f"{depth:.2f}", *cells))
    lead = (
        "Median over tasks of the change (tuned minus pre-trained CKA with the task's specialist, debiased) and the "
        "quartiles, by depth: block l of L stands at l / L."
    )
    return TextTable("curves", "Change over depth", lead, ("depth", *_names(inputs)), rows)


def _curve_cell(row: dict[str, Any] | None) -> str:
    if row is None or math.isnan(row["median"]):
        return _NOTHING
    return f"{_number(row['median'], '{:+.3f}')}{_interval(row['q1'], row['q3'])}"


def _means(inputs: RunsInputs) -> TextTable:
    means = inputs.comparison.means
    rows = [
        (
            row["run"],
            QUANTITY_NAMES[row["quantity"]],
            f"{_number(row['mean'], '{:+.3f}')}{_interval(row['low'], row['high'])}",
            _number(row["p"], "{:.3f}"),
            f"{row['n_units']} {row['unit']}",
            f"{row['rises']} of {row['n_tasks']} rise",
        )
        for row in means[(means["layers"] == UPPER_HALF) & (means["estimator"] == HEADLINE)].to_dict("records")
    ]
    lead = (
        "Difference of each task between two runs, averaged over the upper half of the layers and then over whole "
        "clusters (debiased): t interval, and p by sign flips of clusters, from six of them on."
    )
    columns = ("run", "quantity", "mean difference", "p", "units", "tasks")
    return TextTable("means", "Do the runs differ over tasks?", lead, columns, rows)


def _sizes(inputs: RunsInputs) -> TextTable:
    sizes = inputs.comparison.sizes
    sizes = sizes[sizes["estimator"] == HEADLINE]
    rows = []
    for (kind, first, second), group in sizes.groupby(["kind", "first", "second"], sort=False):
        by_quantity = group.set_index("quantity")["mean_absolute"]
        pair = f"{first} and {second}" if second else first
        cells = [_number(by_quantity.get(quantity), "{:.3f}") for quantity in QUANTITIES]
        rows.append((f"{_KIND_NAMES[kind]}: {pair}".replace("in: ", "in "), *cells, str(group["n_tasks"].max())))
    lead = "Mean absolute difference over tasks and blocks (debiased): what runs make, and what seeds alone make."
    columns = ("difference of", *[QUANTITY_NAMES[quantity] for quantity in QUANTITIES], "tasks")
    return TextTable("sizes", "How much, beside seeds?", lead, columns, rows, inputs.comparison.sentences)


def _cells(inputs: RunsInputs) -> TextTable:
    rows: list[tuple[str, ...]] = []
    cells, remarks = inputs.comparison.cells, []
    cells = cells[cells["layer"].astype(str).str.isdigit()]
    cells = cells[cells["estimator"] == HEADLINE]
    for run in inputs.runs[1:]:
        own = cells[cells["run"] == run.name]
        if own.empty:
            continue
        counts = []
        for quantity in QUANTITIES:
            tested = own[(own["quantity"] == quantity) & own["q"].notna()]
            counts.append(f"{QUANTITY_NAMES[quantity]} {int((tested['q'] <= FDR).sum())} of {len(tested)}")
        remarks.append(f"{run.name}: cells that differ at a false discovery rate of 5 %: {'; '.join(counts)}.")
        rows += [_cell(row) for row in own[own["quantity"] == CHANGE].nsmallest(_MOST_CELLS, "p").to_dict("records")]
    lead = (
        f"The {_MOST_CELLS} cells of the change (debiased) with the least p, for each run. Intervals are over rows and "
        "seeds of the specialists of both runs."
    )
    columns = ("run", "task", "layer", "reference", "run's value", "difference", "q")
    return TextTable("cells", "Which cells differ?", lead, columns, rows, remarks)


def _cell(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["run"],
        row["task"],
        str(row["layer"]),
        _number(row["reference_value"], "{:+.3f}"),
        _number(row["value"], "{:+.3f}"),
        f"{_number(row['difference'], '{:+.3f}')}{_interval(row['low'], row['high'])}",
        _number(row["q"], "{:.3f}"),
    )


def _names(inputs: RunsInputs) -> list[str]:
    return [run.name for run in inputs.runs]


def _number(value: float | None, form: str) -> str:
    # What rounds to zero has no sign.
    return _NOTHING if value is None or not math.isfinite(value) else form.format(round(value, 3) + 0.0)


def _interval(low: float, high: float) -> str:
    ends = [_number(end, "{:+.3f}") for end in (low, high)]
    return "" if _NOTHING in ends else f" [{ends[0]}, {ends[1]}]"
