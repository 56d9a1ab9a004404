"""What charts over layers and tasks have in common: axes, sections of the network, and the texts of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import (
    EXPERIMENTALS,
    HEADLINE,
    REPORTED_ESTIMATORS,
    clusters_of,
    layer_order,
    task_layer_matrix,
)
from mossa_jax.report import palette
from mossa_jax.report.charts.grammar import Axis, Choice, Line, Span
from mossa_jax.report.inputs import ReportInputs, left_out
from mossa_jax.report.numbers import NONE, between, fixed, p_value

ESTIMATOR = Choice("Estimator", {HEADLINE: "debiased", "biased": "biased (the paper's)"})
"""The choice that all charts of CKA share; the page keeps it the same in all of them."""

FOLLOW = "Follow a task"
"""The menu of lines of single tasks."""

CEILING_NAME = "ceiling: two seeds of one specialist"


def lines(*texts: str) -> str:
    """Joins the lines of a hover text, without empty ones."""
    return "\n".join(text for text in texts if text)


def layer_axis(layers: Sequence[str]) -> Axis:
    """Returns the axis of a chart over layers, whose positions are indices into `layers`."""
    return Axis("layer", tuple(palette.layer_label(layer) for layer in layers))


def section_spans(analysis: dict[str, Any], layers: Sequence[str], named: bool = True) -> tuple[Span, ...]:
    """Returns the bands of the sections of the network; none without a transition."""
    sections = analysis["sections"]
    if not sections["is_transition"]:
        return ()
    spans = []
    for name in palette.SECTION_COLOURS:
        section = sections[name]
        if section is None or not {str(section[0]), str(section[1])} <= set(layers):
            continue
        low, high = (layers.index(str(end)) for end in section)
        spans.append(Span(role=name, low=low - 0.5, high=high + 0.5, label=name if named else ""))
    return tuple(spans)


def ceiling_values(analysis: dict[str, Any], layers: Sequence[str]) -> dict[str, list[float | None]] | None:
    """Returns the ceiling at every layer by estimator, None where it was not measured; None without any."""
    if not analysis["ceiling"]["measured"]:
        return None
    values = {}
    for estimator in REPORTED_ESTIMATORS:
        ceiling = analysis["robustness"][estimator]["ceiling"]
        by_layer = dict(zip(ceiling["layers"], ceiling["by_layer"], strict=True))
        values[estimator] = [by_layer.get(layer) for layer in layers]
    return values


def ceiling_lines(analysis: dict[str, Any], layers: Sequence[str], estimator: str) -> tuple[Line, ...]:
    """Returns the line of the ceiling; none if it was not measured."""
    values = ceiling_values(analysis, layers)
    if values is None:
        return ()
    hover = [
        lines(f"layer {layer}", f"{CEILING_NAME}: {fixed(value)}")
        for layer, value in zip(layers, values[estimator], strict=True)
    ]
    line = Line(
        name=CEILING_NAME,
        role="ceiling",
        x=range(len(layers)),
        y=values[estimator],
        dash="dash",
        width=1.4,
        hover=hover,
    )
    return (line,)


def change_matrix(
    change: pd.DataFrame, column: str, estimator: str, names: Sequence[str], layers: Sequence[str]
) -> np.ndarray:
    """Spreads one column of the table of changes out, [tasks, layers] float64; NaN where a cell is absent."""
    rows = change[change["estimator"] == estimator]
    rows = rows.assign(layer=rows["layer"].astype(str), value=pd.to_numeric(rows[column], errors="coerce"))
    wide = rows.pivot_table(index="task", columns="layer", values="value", aggfunc="mean", dropna=False)
    return wide.reindex(index=names, columns=layers).to_numpy(float)


class Cells:
    """The cells of the results table as matrices over tasks and layers, with what the pointer says over each.

    Attributes:
      layers: names in network order.
      tasks: all tasks, by cluster and then by name; the rows of every matrix.
      cluster_of: task -> cluster.
      held_out: tasks that are no part of the mixture.
      left_out: task -> why the findings leave it out.
    """

    def __init__(self, inputs: ReportInputs):
        """Reads the table of `inputs`."""
        table = inputs.table
        self._table, self._change = table, inputs.change
        self.layers = layer_order(table)
        self.cluster_of = clusters_of(table)
        self.tasks = [str(name) for name in task_layer_matrix(table, EXPERIMENTALS[0], held_out=None).index]
        self.tasks += [task for task in self.cluster_of if task not in self.tasks]
        self.held_out = set(table.loc[table["held_out"].astype(bool), "task"])
        self.left_out = left_out(inputs.analysis)
        self._matrices: dict[tuple[str, ...], np.ndarray] = {}

    def matrix(self, model: str, estimator: str = HEADLINE, column: str = "cka") -> np.ndarray:
        """Returns one column of the results table for the own specialists, [tasks, layers] float64."""
        key = model, estimator, column
        if key not in self._matrices:
            wide = task_layer_matrix(self._table, model, estimator, held_out=None, column=column)
            self._matrices[key] = wide.reindex(index=self.tasks, columns=self.layers).to_numpy(float)
        return self._matrices[key]

    def difference(self, estimator: str = HEADLINE) -> np.ndarray:
        """Returns tuned minus pre-trained, [tasks, layers] float64."""
        return self.matrix("tuned", estimator) - self.matrix("pretrained", estimator)

    def tested(self, column: str, estimator: str = HEADLINE) -> np.ndarray | None:
        """Returns a column of `results/change`, [tasks, layers] float64; None if changes were not tested."""
        if self._change is None or self._change.empty:
            return None
        return change_matrix(self._change, column, estimator, self.tasks, self.layers)

    @cached_property
    def reasons(self) -> dict[tuple[str, str, str], str]:
        """Why cells are undefined: (model, task, layer) -> reason."""
        cells = self._table[
            (self._table["undefined"].fillna("") != "") & (self._table["control"] == self._table["task"])
        ]
        columns = cells[["experimental", "task", "layer", "undefined"]]
        return {(model, task, str(layer)): reason for model, task, layer, reason in columns.itertuples(False, None)}

    def rows(self, held_out: bool | None = False, left_out: bool = False) -> list[int]:
        """Returns indices of tasks.

        Args:
          held_out: tasks of the mixture (False), those held out (True), or all (None).
          left_out: whether tasks that the findings leave out are among them.
        """
        return [
            row
            for row, task in enumerate(self.tasks)
            if (held_out is None or (task in self.held_out) == held_out) and (left_out or task not in self.left_out)
        ]

    def about(self, row: int) -> str:
        """Names a task, its cluster, and why it is left out."""
        task = self.tasks[row]
        cluster = f"{self.cluster_of[task]} (held out)" if task in self.held_out else str(self.cluster_of[task])
        return lines(task, cluster, f"left out: {self.left_out[task]}" if task in self.left_out else "")

    def label(self, row: int) -> str:
        """Returns the label of a task's row in a list of tasks."""
        task = self.tasks[row]
        marks = [text for text, names in (("held out", self.held_out), ("left out", self.left_out)) if task in names]
        return f"{task} ({', '.join(marks)})" if marks else task

    def cell(self, row: int, column: int, model: str, estimator: str = HEADLINE) -> str:
        """Says what a cell is: its value with interval and number of prompts, or why it is undefined."""
        value, low, high, n = (self.matrix(model, estimator, name)[row, column] for name in ("cka", "low", "high", "n"))
        place = f"layer {self.layers[column]}, {palette.MODEL_NAMES[model]}, {estimator}"
        if not np.isfinite(value):
            reason = self.reasons.get((model, self.tasks[row], self.layers[column]), "no such cell")
            return f"{place}: undefined, {reason}"
        ends = between(low, high)
        return lines(
            f"{place}: {fixed(value)}", "" if ends == NONE else f"95 % {ends}", f"n = {n:.0f}" if np.isfinite(n) else ""
        )

    def change_cell(self, row: int, column: int, estimator: str = HEADLINE) -> str:
        """Says what a change is: its value with interval and test, and both similarities; or why it is undefined."""
        value = self.difference(estimator)[row, column]
        if not np.isfinite(value):
            return lines(*(self.cell(row, column, model, estimator) for model in EXPERIMENTALS))
        pretrained, tuned = (self.matrix(model, estimator)[row, column] for model in EXPERIMENTALS)
        n = self.matrix("tuned", estimator, "n")[row, column]
        test = ""
        tests = [self.tested(name, estimator) for name in ("low", "high", "p", "q")]
        if tests[0] is not None:
            low, high, p, q = (float(matrix[row, column]) for matrix in tests if matrix is not None)
            ends = between(low, high, signed=True)
            verdict = " (not significant)" if np.isfinite(q) and q > 0.05 else ""
            test = lines(
                "" if ends == NONE else f"95 % {ends}",
                f"p {p_value(p)}, q {p_value(q)}{verdict}" if np.isfinite(p) else "not tested",
            )
        return lines(
            f"layer {self.layers[column]}, {estimator}: tuned − pre-trained {fixed(value, signed=True)}",
            test,
            f"tuned {fixed(tuned)}, pre-trained {fixed(pretrained)}",
            f"n = {n:.0f}" if np.isfinite(n) else "",
        )
