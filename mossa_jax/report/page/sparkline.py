"""Small line charts as SVG inside the page: no script draws them, and the page's style sheet colours them.

Positions are in the units of the drawing, `WIDTH` by `HEIGHT`. Every place on the x axis has a strip that the pointer
finds, with the values there as its text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mossa_jax.report.numbers import NONE, between, fixed, with_minus

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 360, 156
LEFT, RIGHT, TOP, BOTTOM = 40, 354, 8, 132
"""The edges of the plot in the drawing."""

Value = float | None
_TICKS = 5  # names at the x axis, at most


@dataclass(frozen=True)
class Trace:
    """One line.

    Attributes:
      name: as the legend and the hover texts call it.
      role: what its colour stands for, a key of `palette.ROLES`; the class of its elements.
      values: one per place; None or NaN breaks the line.
      low, high: the band around it; empty for none.
      dashed: whether it is dashed.
    """

    name: str
    role: str
    values: Sequence[Value]
    low: Sequence[Value] = ()
    high: Sequence[Value] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Sparkline:
    """A small chart.

    Attributes:
      title: what it shows.
      unit: of the places, before their names: "layer".
      places: their names, such as layers.
      x: their positions.
      traces: from back to front.
      low, high: the ends of the y axis; what lies beyond is cut off.
      write: writes a value under the pointer.
      tick: writes a value at the axis.
    """

    title: str
    unit: str
    places: Sequence[str]
    x: Sequence[float]
    traces: Sequence[Trace]
    low: float
    high: float
    write: Callable[[float], str] = fixed
    tick: Callable[[float], str] = "{:.3g}".format

    def across(self, x: float) -> float:
        """Returns where a position stands in the drawing, from the left."""
        first, last = self.x[0], self.x[-1]
        share = (x - first) / (last - first) if last > first else 0.5
        return LEFT + share * (RIGHT - LEFT)

    def down(self, value: float) -> float:
        """Returns where a value stands in the drawing, from the top."""
        return BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP)

    def svg(self) -> Markup:
        """Draws the chart."""
        from markupsafe import Markup

        bands = [self._band(trace) for trace in self.traces if len(trace.low)]
        lines = [self._line(trace) for trace in self.traces if any(map(is_defined, trace.values))]
        window = f'x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"'
        box = f"{LEFT} {TOP} {RIGHT - LEFT} {BOTTOM - TOP}"
        return Markup(
            '<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="{text}">{axes}'
            '<svg {window} viewBox="{box}">{marks}</svg><g class="hits">{strips}</g></svg>'
        ).format(
            width=WIDTH,
            height=HEIGHT,
            text=self.text(),
            axes=self._axes(),
            window=Markup(window),
            box=box,
            marks=Markup("").join([*bands, *lines]),
            strips=Markup("").join(self._strips()),
        )

    def text(self) -> str:
        """Says what the chart shows to readers who cannot see it: the ends of every line, and its extremes."""
        return f"{self.title}. " + " ".join(self._summary(trace) for trace in self.traces)

    def _summary(self, trace: Trace) -> str:
        known = [(place, value) for place, value in zip(self.places, trace.values, strict=True) if is_defined(value)]
        if not known:
            return f"{trace.name}: undefined."
        (first, start), (last, end) = known[0], known[-1]
        if len(known) == 1:
            return f"{trace.name}: {self._write(start)} at {self.unit} {first}."
        values = [value for _, value in known]
        return (
            f"{trace.name}: {self._write(start)} at {self.unit} {first}, {self._write(end)} at {self.unit} {last}, "
            f"between {self._write(min(values))} and {self._write(max(values))}."
        )

    def _write(self, value: Value) -> str:
        return NONE if value is None or not math.isfinite(value) else self.write(value)

    def hover(self, place: int) -> str:
        """Says what stands at a place."""
        lines = [f"{self.unit} {self.places[place]}"]
        for trace in self.traces:
            ends = between(trace.low[place], trace.high[place]) if len(trace.low) else NONE
            value = self._write(trace.values[place])
            lines.append(
                f"{trace.name} {value if value != NONE else 'undefined'}{'' if ends == NONE else f' ({ends})'}"
            )
        return "\n".join(lines)

    def _line(self, trace: Trace) -> Markup:
        from markupsafe import Markup

        runs = _runs(trace.values)
        steps = []
        for run in runs:
            points = [(self.across(self.x[at]), self.down(trace.values[at] or 0.0)) for at in run]
            # A lone point is a line without length, whose round ends show.
            steps.append(_path(points) if len(points) > 1 else f"{_path(points)}h0")
        dashed = " dashed" if trace.dashed else ""
        return Markup('<path class="line {role}{dashed}" d="{d}"/>').format(
            role=trace.role, dashed=dashed, d="".join(steps)
        )

    def _band(self, trace: Trace) -> Markup:
        from markupsafe import Markup

        steps = []
        both = [high if is_defined(low) else None for low, high in zip(trace.low, trace.high, strict=True)]
        for run in _runs(both):
            upper = [(self.across(self.x[at]), self.down(trace.high[at] or 0.0)) for at in run]
            lower = [(self.across(self.x[at]), self.down(trace.low[at] or 0.0)) for at in reversed(run)]
            steps.append(f"{_path([*upper, *lower])}Z")
        return Markup('<path class="band {role}" d="{d}"/>').format(role=trace.role, d="".join(steps))

    def _axes(self) -> Markup:
        from markupsafe import Markup

        parts = []
        for value in (self.low, (self.low + self.high) / 2, self.high):
            y = self.down(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
            parts.append(f'<text class="y" x="{LEFT - 5}" y="{y + 4:.1f}">{with_minus(self.tick(value))}</text>')
        marks = Markup("").join(map(Markup, parts))
        count = min(_TICKS, len(self.x))
        for number in range(count):
            at = round(number * (len(self.x) - 1) / max(count - 1, 1))
            marks += Markup('<text class="x" x="{x}" y="{y}">{name}</text>').format(
                x=f"{self.across(self.x[at]):.1f}", y=BOTTOM + 15, name=self.places[at]
            )
        return marks

    def _strips(self) -> list[Markup]:
        from markupsafe import Markup

        centres = [self.across(x) for x in self.x]
        edges = [LEFT, *((a + b) / 2 for a, b in zip(centres, centres[1:], strict=False)), RIGHT]
        return [
            Markup('<rect x="{x}" y="{y}" width="{width}" height="{height}"><title>{text}</title></rect>').format(
                x=f"{start:.1f}", y=TOP, width=f"{end - start:.1f}", height=BOTTOM - TOP, text=self.hover(place)
            )
            for place, (start, end) in enumerate(zip(edges, edges[1:], strict=False))
        ]


def is_defined(value: Value) -> bool:
    """Returns whether there is a finite value."""
    return value is not None and math.isfinite(value)


def _runs(values: Sequence[Value]) -> list[list[int]]:
    """Returns the places of each unbroken piece of a line."""
    runs: list[list[int]] = []
    for place, value in enumerate(values):
        if not is_defined(value):
            continue
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Returns a path through points: "M1.0 2.0L3.0 4.0"."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
