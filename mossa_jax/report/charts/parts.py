"""What charts over layers and tasks have in common: axes, sections of the network, and the texts of a cell."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.cells import Cells as FindingsCells
from mossa_jax.findings.cells import cells_of as findings_cells
from mossa_jax.findings.curves import (
    EXPERIMENTALS,
    HEADLINE,
    REPORTED_ESTIMATORS,
    clusters_of,
    layer_order,
    task_layer_matrix,
)
from mossa_jax.findings.trust import FDR, reason_in_words
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


def cka_axis(label: str, values: np.ndarray) -> Axis:
    """Returns the axis of similarities: 0 to 1, and lower where debiased estimates are below zero."""
    least = np.nanmin(values, initial=0.0)
    return Axis(label, low=0.05 * math.floor(least / 0.05) if least < 0 else 0.0, high=1.03, zero=bool(least < 0))


def by_estimator(analysis: dict[str, Any], estimator: str) -> dict[str, Any]:
    """Returns the results by one estimator: `sections`, `ceiling`, `specificity` and others of `find`."""
    return analysis["robustness"][estimator]


def figure_width(layers: Sequence[str]) -> float:
    """Returns the width of a figure over so many layers, in inches."""
    return max(7.0, min(16.0, 2.0 + 0.34 * len(layers)))


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


def cells_of(inputs: ReportInputs) -> Cells:
    """Returns the cells of a report, which all of its charts share."""
    key = id(inputs)
    if key not in _CELLS:
        _CELLS[key] = Cells(inputs)
        # An identity may be given to another report once this one is gone.
        weakref.finalize(inputs, _CELLS.pop, key, None)
    return _CELLS[key]


_CELLS: dict[int, Cells] = {}


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
        self._own = table[(table["control"] == table["task"]) & table["experimental"].isin(EXPERIMENTALS)]
        self.layers = layer_order(table)
        self.cluster_of = clusters_of(table)
        self.tasks = [str(name) for name in task_layer_matrix(table, EXPERIMENTALS[0], held_out=None).index]
        self.tasks += [task for task in self.cluster_of if task not in self.tasks]
        self.held_out = set(table.loc[table["held_out"].astype(bool), "task"])
        self.left_out = left_out(inputs.analysis)
        self._matrices: dict[tuple[str, ...], np.ndarray | None] = {}
        self._texts: dict[tuple[str, ...], list[list[str]]] = {}

    @cached_property
    def sound(self) -> FindingsCells:
        """The cells of the tasks that the findings rest on, as the findings read them."""
        return findings_cells(self._table).without(self.left_out)

    def matrix(self, model: str, estimator: str = HEADLINE, column: str = "cka") -> np.ndarray:
        """Returns one column of the results table for the own specialists, [tasks, layers] float64."""

        def spread() -> np.ndarray:
            wide = task_layer_matrix(self._own, model, estimator, held_out=None, column=column)
            return wide.reindex(index=self.tasks, columns=self.layers).to_numpy(float)

        matrix = self._cached((model, estimator, column), spread)
        assert matrix is not None
        return matrix

    def difference(self, estimator: str = HEADLINE) -> np.ndarray:
        """Returns tuned minus pre-trained, [tasks, layers] float64."""
        return self.matrix("tuned", estimator) - self.matrix("pretrained", estimator)

    def tested(self, column: str, estimator: str = HEADLINE) -> np.ndarray | None:
        """Returns a column of `results/change`, [tasks, layers] float64; None if changes were not tested."""
        change = self._change
        if change is None or change.empty:
            return None
        return self._cached(
            ("change", estimator, column),
            lambda: change_matrix(change, column, estimator, self.tasks, self.layers),
        )

    def _cached(self, key: tuple[str, ...], build: Callable[[], np.ndarray]) -> np.ndarray | None:
        if key not in self._matrices:
            self._matrices[key] = build()
        return self._matrices[key]

    @cached_property
    def reasons(self) -> dict[tuple[str, str, str], str]:
        """Why cells are undefined: (model, task, layer) -> reason."""
        cells = self._own[self._own["undefined"].fillna("") != ""]
        columns = cells[["experimental", "task", "layer", "undefined"]]
        return {
            (model, task, str(layer)): reason_in_words(reason)
            for model, task, layer, reason in columns.itertuples(False, None)
        }

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

    def texts(self, model: str, estimator: str = HEADLINE, about: bool = True) -> list[list[str]]:
        """Returns what the pointer says over every cell, [tasks][layers].

        Args:
          model: experimental model, or "change" for tuned minus pre-trained.
          estimator: of the similarity.
          about: whether the text begins with the task; the texts of a heat map name it once per row.
        """
        key = (model, estimator, "about" if about else "")
        if key not in self._texts:
            if about:
                names = [self.about(row) for row in range(len(self.tasks))]
                inner = self.texts(model, estimator, about=False)
                texts = [[f"{name}\n{cell}" for cell in row] for name, row in zip(names, inner, strict=True)]
            else:
                texts = self._change_texts(estimator) if model == "change" else self._cell_texts(model, estimator)
            self._texts[key] = texts
        return self._texts[key]

    def cell(self, row: int, column: int, model: str, estimator: str = HEADLINE) -> str:
        """Says what a cell is: its value with interval and number of prompts, or why it is undefined."""
        return self.texts(model, estimator, about=False)[row][column]

    def change_cell(self, row: int, column: int, estimator: str = HEADLINE) -> str:
        """Says what a change is: its value with interval and test, and both similarities; or why it is undefined."""
        return self.texts("change", estimator, about=False)[row][column]

    def _cell_texts(self, model: str, estimator: str) -> list[list[str]]:
        columns = [self.matrix(model, estimator, name) for name in ("cka", "low", "high", "n")]
        return [
            [
                self._cell_text(self.tasks[row], layer, model, estimator, numbers)
                for layer, numbers in zip(self.layers, values, strict=True)
            ]
            for row, values in enumerate(np.stack(columns, axis=-1).tolist())
        ]

    def _cell_text(self, task: str, layer: str, model: str, estimator: str, numbers: Sequence[float]) -> str:
        value, low, high, n = numbers
        place = f"layer {layer}, {palette.MODEL_NAMES[model]}, {estimator}"
        if not math.isfinite(value):
            return f"{place}: undefined, {self.reasons.get((model, task, layer), 'no such cell')}"
        ends = between(low, high)
        return lines(
            f"{place}: {fixed(value)}",
            "" if ends == NONE else f"95 % {ends}",
            f"n = {n:.0f}" if math.isfinite(n) else "",
        )

    def _change_texts(self, estimator: str) -> list[list[str]]:
        """Says what each change is; where it is undefined, both cells say why."""
        absent = np.full((len(self.tasks), len(self.layers)), np.nan)
        tests = [self.tested(name, estimator) for name in ("low", "high", "p", "q")]
        columns = [self.difference(estimator), *(self.matrix(model, estimator) for model in ("tuned", "pretrained"))]
        columns += [self.matrix("tuned", estimator, "n"), *(absent if test is None else test for test in tests)]
        cells = [self.texts(model, estimator, about=False) for model in EXPERIMENTALS]
        return [
            [
                _change_text(f"layer {self.layers[column]}, {estimator}", numbers, tests[0] is not None)
                if math.isfinite(numbers[0])
                else lines(*(texts[row][column] for texts in cells))
                for column, numbers in enumerate(values)
            ]
            for row, values in enumerate(np.stack(columns, axis=-1).tolist())
        ]

    def frame(self, rows: Sequence[int], model: str, estimator: str = HEADLINE) -> pd.DataFrame:
        """Returns the cells of some tasks, tidy, in the columns of `CELL_COLUMNS`.

        Args:
          rows: indices of tasks.
          model: experimental model, or "change" for tuned minus pre-trained.
          estimator: of the similarity.
        """
        own = "tuned" if model == "change" else model
        values = self.difference(estimator) if model == "change" else self.matrix(model, estimator)
        columns: dict[str, np.ndarray | None] = {"value": values, "n": self.matrix(own, estimator, "n")}
        if model == "change":
            columns |= {name: self.tested(name, estimator) for name in ("low", "high", "p", "q")}
        else:
            columns |= {name: self.matrix(model, estimator, name) for name in ("low", "high")}
        tasks, width = [self.tasks[row] for row in rows], len(self.layers)
        frame = pd.DataFrame(
            {
                "show": model,
                "estimator": estimator,
                "task": np.repeat(np.array(tasks, object), width),
                "cluster": np.repeat(np.array([self.cluster_of[task] for task in tasks], object), width),
                "held_out": np.repeat([task in self.held_out for task in tasks], width),
                "left_out": np.repeat([task in self.left_out for task in tasks], width),
                "layer": np.tile(np.array(self.layers, object), len(tasks)),
            }
        )
        for name in ("value", "low", "high", "p", "q", "n"):
            matrix = columns.get(name)
            frame[name] = np.nan if matrix is None else matrix[list(rows)].ravel()
        return frame


CELL_COLUMNS = "show estimator task cluster held_out left_out layer value low high p q n".split()
"""Columns of the data of charts of single cells; `show` is an experimental model, or "change"."""


def _change_text(place: str, numbers: Sequence[float], is_tested: bool) -> str:
    value, tuned, pretrained, n, low, high, p, q = numbers
    ends = between(low, high, signed=True)
    verdict = " (not significant)" if math.isfinite(q) and q > FDR else ""
    test = f"p {p_value(p)}, q {p_value(q)}{verdict}" if math.isfinite(p) else "not tested"
    return lines(
        f"{place}: tuned − pre-trained {fixed(value, signed=True)}",
        "" if ends == NONE else f"95 % {ends}",
        test if is_tested else "",
        f"tuned {fixed(tuned)}, pre-trained {fixed(pretrained)}",
        f"n = {n:.0f}" if math.isfinite(n) else "",
    )
