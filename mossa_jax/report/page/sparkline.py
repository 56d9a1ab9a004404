"""Small line charts as SVG inside the page: no script draws them, and the page's style sheet colours them.

Positions are in the units of the drawing, `WIDTH` by `HEIGHT`. Every place on the x axis has a strip that the pointer
finds, with the values there as its text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from mossa_jax.report.numbers import NONE, between, fixed, with_minus

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 360, 156
LEFT, RIGHT, TOP, BOTTOM = 40, 354, 8, 132
"""The edges of the plot in the drawing."""

Value = float | None
_STEPS = 4  # between the names at the x axis, at most


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
      ticks: values that are written at the y axis.
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
    ticks: Sequence[float]
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

        bands = [_band(self, trace) for trace in self.traces if len(trace.low)]
        lines = [_line(self, trace) for trace in self.traces if any(map(is_defined, trace.values))]
        window = f'x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"'
        box = f"{LEFT} {TOP} {RIGHT - LEFT} {BOTTOM - TOP}"
        # Every text in here is escaped where it is written.
        return Markup(
            f'<svg class="spark" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_escaped(self.text())}">'
            f'{_axes(self)}<svg {window} viewBox="{box}">{"".join([*bands, *lines])}</svg>'
            f'<g class="hits">{"".join(_strips(self))}</g></svg>'
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


def _line(chart: Sparkline, trace: Trace) -> str:
    steps = []
    for run in _runs(trace.values):
        points = [(chart.across(chart.x[at]), chart.down(trace.values[at] or 0.0)) for at in run]
        # A lone point is a line without length, whose round ends show.
        steps.append(_path(points) if len(points) > 1 else f"{_path(points)}h0")
    dashed = " dashed" if trace.dashed else ""
    return f'<path class="line {trace.role}{dashed}" d="{"".join(steps)}"/>'


def _band(chart: Sparkline, trace: Trace) -> str:
    steps = []
    both = [high if is_defined(low) else None for low, high in zip(trace.low, trace.high, strict=True)]
    for run in _runs(both):
        upper = [(chart.across(chart.x[at]), chart.down(trace.high[at] or 0.0)) for at in run]
        lower = [(chart.across(chart.x[at]), chart.down(trace.low[at] or 0.0)) for at in reversed(run)]
        steps.append(f"{_path([*upper, *lower])}Z")
    return f'<path class="band {trace.role}" d="{"".join(steps)}"/>'


def _axes(chart: Sparkline) -> str:
    parts = []
    for value in chart.ticks:
        y = chart.down(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(f'<text class="y" x="{LEFT - 5}" y="{y + 4:.1f}">{with_minus(chart.tick(value))}</text>')
    last = len(chart.x) - 1
    step = max(1, -(-last // _STEPS))
    # The last place is always named, and the one before it only where there is room.
    for at in [*range(0, last - step // 2, step), last] if last else [0]:
        x = chart.across(chart.x[at])
        parts.append(f'<text class="x" x="{x:.1f}" y="{BOTTOM + 15}">{_escaped(chart.places[at])}</text>')
    return "".join(parts)


def _strips(chart: Sparkline) -> list[str]:
    centres = [chart.across(x) for x in chart.x]
    edges = [LEFT, *((a + b) / 2 for a, b in itertools.pairwise(centres)), RIGHT]
    return [
        f'<rect x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" height="{BOTTOM - TOP}">'
        f"<title>{_escaped(chart.hover(place))}</title></rect>"
        for place, (start, end) in enumerate(itertools.pairwise(edges))
    ]


def _escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))


def is_defined(value: Value) -> TypeGuard[float]:
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
