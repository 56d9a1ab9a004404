"""The change d by layer, which the headline rests on: mean over units, fitted ramp, breaks, margin and ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.claims import MARGIN
from mossa_jax.findings.curves import HEADLINE, REPORTED_ESTIMATORS, mean_defined
from mossa_jax.findings.layer_means import LayerMeans, layer_means
from mossa_jax.findings.units import unit_means, unit_name
from mossa_jax.findings.wording import counted
from mossa_jax.report.charts.grammar import Axis, Chart, Line, Mark, Panel, Points, Rule, Span, View
from mossa_jax.report.charts.levels import CHANGE_LABEL, change_line, change_marks
from mossa_jax.report.charts.parts import (
    CELL_COLUMNS,
    ESTIMATOR,
    FOLLOW,
    Cells,
    by_estimator,
    cells_of,
    figure_width,
    layer_axis,
    lines,
    section_spans,
)
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import NONE, between, fixed

MEAN_NAME = "mean with its 95 % interval"
RAMP_NAME = "fitted level, rise, level"
ROOM_NAME = "room up to the ceiling: ceiling − pre-trained"
BREAK_NAMES = {"start": "first layer of the rise", "end": "last layer of the rise"}
PAPER_NAME = "transition in the paper, at the same relative depth"

_LANE = 0.055
"""Distance between the bars below the curves, as a share of the range of the curves."""


def change_chart(inputs: ReportInputs) -> Chart | None:
    """Builds the change over layers, with all that the finding of a transition rests on."""
    cells = cells_of(inputs)
    rows = cells.rows()
    views, frames = [], [cells.frame(rows, "change", name) for name in REPORTED_ESTIMATORS]
    for estimator in REPORTED_ESTIMATORS:
        curves = _Curves(inputs, cells, rows, estimator)
        views.append(View((curves.panel(),), choices={"estimator": estimator}))
        frames.append(curves.data())
    return Chart(
        name="change",
        title="What tuning changes, layer by layer",
        caption="Mean change of CKA at each layer with its interval, the fitted ramp and its breaks, and the tasks",
        views=tuple(views),
        data=pd.concat([frame for frame in frames if len(frame)], ignore_index=True) if rows else _no_data(),
        choices={"estimator": ESTIMATOR},
        request=FOLLOW,
        width=figure_width(cells.layers),
        height=4.8,
    )


def mean_change(cells: Cells, rows: Sequence[int], estimator: str = HEADLINE) -> LayerMeans:
    """Averages the change of some tasks over units at every layer, as the findings do."""
    clusters = [cells.cluster_of[cells.tasks[row]] for row in rows]
    return layer_means(cells.difference(estimator)[list(rows)], clusters)


def _no_data() -> pd.DataFrame:
    return pd.DataFrame(columns=CELL_COLUMNS)


class _Curves:
    """The curves of one estimator."""

    def __init__(self, inputs: ReportInputs, cells: Cells, rows: list[int], estimator: str):
        self.inputs, self.cells, self.rows, self.estimator = inputs, cells, rows, estimator
        self.results = by_estimator(inputs.analysis, estimator)
        self.sections: dict[str, Any] = self.results["sections"]
        self.values = cells.difference(estimator)[rows]
        self.clusters = [cells.cluster_of[cells.tasks[row]] for row in rows]
        self.mean = mean_change(cells, rows, estimator)
        self.room = self._room()
        # [layer index, level, interval of the level] at the corners of the ramp.
        self.corners = self._corners()

    def panel(self) -> Panel:
        x = layer_axis(self.cells.layers)
        y = Axis(f"{CHANGE_LABEL} ({self.estimator})", zero=True)
        note = counted(len(self.rows), "task")
        empty = "No task of the mixture has a defined change."
        if not np.isfinite(self.values).any():
            # Tasks that are held out or left out alone are still there on request.
            return Panel(x, y, tuple(self._followed()), note=note, empty=empty)
        marks: list[Mark] = [*section_spans(self.results, self.cells.layers)]
        marks.append(Span(role="ink", low=-MARGIN, high=MARGIN, axis="y", label=f"±{MARGIN}: no change", opacity=0.08))
        marks += self._half()
        marks += change_marks(self.cells, self.rows, self.estimator, faint=True)
        marks += self._room_line()
        marks.append(self._mean_line())
        marks += self._ramp()
        marks += self._breaks()
        marks += self._followed()
        return Panel(x, y, tuple(marks), note=note, empty=empty)

    def _half(self) -> list[Mark]:
        """Marks where the upper half begins, over which the findings average."""
        first = self.inputs.analysis["half"]["layers"][0]
        if first not in self.cells.layers:
            return []
        return [Rule(at=self.cells.layers.index(first) - 0.5, axis="x", dash="dot", label="upper half")]

    def _followed(self) -> list[Line]:
        every = self.cells.rows(held_out=None, left_out=True)
        return [change_line(self.cells, row, self.estimator) for row in every]

    def _mean_line(self) -> Line:
        unit = unit_name(self.clusters)
        tasks = np.isfinite(self.values).sum(0)
        units = np.isfinite(unit_means(self.values, self.clusters)).sum(0)
        hover = []
        for index, layer in enumerate(self.cells.layers):
            ends = between(self.mean.low[index], self.mean.high[index], signed=True)
            counts = counted(int(tasks[index]), "task")
            if unit != "tasks":
                counts = f"{counted(int(units[index]), 'cluster')}, {counts}"
            hover.append(
                lines(
                    f"layer {layer}, {self.estimator}",
                    f"mean of tuned − pre-trained over {unit}: {fixed(self.mean.mean[index], signed=True)}",
                    f"95 % {ends}" if ends != NONE else "too few for an interval",
                    counts,
                )
            )
        return Line(
            name=MEAN_NAME if np.isfinite(self.mean.low).any() else "mean",
            role="tuned",
            x=range(len(self.cells.layers)),
            y=self.mean.mean,
            low=self.mean.low,
            high=self.mean.high,
            hover=hover,
            symbol="circle",
            width=2.4,
        )

    def _room(self) -> np.ndarray | None:
        """Returns how far the base is below the ceiling at every layer, over the tasks with a second specialist."""
        ceiling = self.results["ceiling"]
        if not ceiling["measured"]:
            return None
        rows = [self.cells.tasks.index(task) for task in ceiling["tasks"]]
        levels = dict(zip(ceiling["layers"], ceiling["by_layer"], strict=True))
        top = np.array([levels.get(layer) for layer in self.cells.layers], float)
        return top - mean_defined(self.cells.matrix("pretrained", self.estimator)[rows], axis=0)

    def _room_line(self) -> list[Line]:
        if self.room is None:
            return []
        tasks = counted(len(self.results["ceiling"]["tasks"]), "task")
        hover = [
            lines(f"layer {layer}, {self.estimator}", f"{ROOM_NAME}: {fixed(value, signed=True)}", tasks)
            for layer, value in zip(self.cells.layers, self.room, strict=True)
        ]
        x = range(len(self.cells.layers))
        return [Line(name=ROOM_NAME, role="ceiling", x=x, y=self.room, hover=hover, dash="dash", width=1.4)]

    def _corners(self) -> list[tuple[int, dict[str, Any]]]:
        """Returns the corners of the fitted ramp: index of the layer, and the level there with its interval."""
        fit, layers = self.sections["fit"], self.cells.layers
        if fit is None:
            return []
        blocks = [layer for layer in layers if layer.isdigit()]
        start, end = fit["start"]["layer"] - 1, fit["end"]["layer"]
        ends = [(blocks[0], "before"), (str(start), "before"), (str(end), "after"), (blocks[-1], "after")]
        return [(layers.index(layer), fit[level]) for layer, level in ends if layer in layers]

    def _ramp(self) -> list[Line]:
        if not self.corners:
            return []
        layers = self.cells.layers
        name = RAMP_NAME if self.sections["is_transition"] else f"{RAMP_NAME} (no transition)"
        hover = [
            lines(
                f"layer {layers[index]}, {name}",
                f"level {fixed(level['level'], signed=True)}",
                f"95 % {between(level['interval'][0], level['interval'][1], signed=True)}",
                "" if self.sections["is_transition"] else self.sections["reason"],
            )
            for index, level in self.corners
        ]
        x, y = [index for index, _ in self.corners], [level["level"] for _, level in self.corners]
        return [Line(name=name, x=x, y=y, hover=hover, dash="dash", symbol="square", width=1.8)]

    def breaks(self) -> list[tuple[str, float, float, float, str]]:
        """Returns the bars below the curves: name, layer, ends and text; layers are numbers of blocks."""
        sections = self.sections
        if sections["fit"] is None:
            return []
        bars, fit = [], sections["fit"]
        earliest, latest = fit.get("range") or (-np.inf, np.inf)
        for key, name in BREAK_NAMES.items():
            layer, (low, high) = fit[key]["layer"], fit[key]["interval"]
            is_open = low <= earliest if key == "start" else high >= latest
            end = "begin before it" if key == "start" else "end behind it"
            text = lines(
                f"{name}: layer {layer}",
                f"95 % interval: layers {low:.0f} to {high:.0f}",
                f"the interval reaches the first or last layer that a fit can return; the rise may {end}"
                if is_open
                else "",
            )
            bars.append((name, layer, low, high, text))
        paper, depth = sections["paper"], sum(layer.isdigit() for layer in self.cells.layers)
        first, last = paper["transition"]
        # The shallow and the deep end of the section, as shares of the depth.
        low, high = ((first - 1) / paper["layers"] * depth + 0.5, last / paper["layers"] * depth + 0.5)
        text = lines(
            f"{PAPER_NAME}: {low + 0.5:.1f} to {high - 0.5:.1f}",
            f"layers {first} to {last} of {paper['layers']} in the paper (Llama 2 7B)",
        )
        return [*bars, (PAPER_NAME, (low + high) / 2, low, high, text)]

    def _breaks(self) -> list[Mark]:
        """Draws intervals over layers as level bars below the curves."""
        shown = np.concatenate([self.values.ravel(), [0.0] if self.room is None else self.room])
        bottom, top = np.nanmin(shown, initial=-MARGIN), np.nanmax(shown, initial=MARGIN)
        first = next((index for index, layer in enumerate(self.cells.layers) if layer.isdigit()), 0)
        marks: list[Mark] = []
        for lane, (name, layer, low, high, hover) in enumerate(self.breaks(), 1):
            at, ends = first + layer - 1, (first + low - 1, first + high - 1)
            y = bottom - lane * _LANE * (top - bottom)
            is_paper = name == PAPER_NAME
            marks.append(
                Points(
                    name=name,
                    x=[at],
                    y=[y],
                    x_low=[ends[0]],
                    x_high=[ends[1]],
                    hover=[hover],
                    symbol="bar" if is_paper else ("triangle" if name == BREAK_NAMES["start"] else "triangle-down"),
                    hollow=is_paper,
                    size=7.0,
                )
            )
        return marks

    def data(self) -> pd.DataFrame:
        """Returns what is drawn beside the tasks: mean, ramp, room and the bars."""
        rows: list[dict[str, Any]] = []
        common = {"estimator": self.estimator}
        layers = self.cells.layers
        for index, layer in enumerate(layers):
            numbers = {"value": self.mean.mean[index], "low": self.mean.low[index], "high": self.mean.high[index]}
            rows.append({"show": "mean", **common, "layer": layer, **numbers})
        for index, level in self.corners:
            low, high = level["interval"]
            rows.append({"show": "ramp", **common, "layer": layers[index]} | {"value": level["level"]})
            rows[-1] |= {"low": low, "high": high}
        if self.room is not None:
            rows += [
                {"show": "room", **common, "layer": layer, "value": value}
                for layer, value in zip(layers, self.room, strict=True)
            ]
        # The value of a break is a layer.
        rows += [
            {"show": name, **common, "value": layer, "low": low, "high": high}
            for name, layer, low, high, _ in self.breaks()
        ]
        return pd.DataFrame(rows).reindex(columns=CELL_COLUMNS)
