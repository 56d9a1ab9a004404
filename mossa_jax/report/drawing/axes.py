"""The axes of a panel: ends, ticks and the labels of categories, as many as can be read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mossa_jax.report.charts.grammar import Axis, Heat, Panel
from mossa_jax.report.drawing.marks import group_edges
from mossa_jax.report.drawing.style import MUTED
from mossa_jax.report.numbers import percent
from mossa_jax.report.palette import FAINT, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_NAME = 64
"""Characters of the name of a category; longer ones are cut."""

_CHARACTER = 0.6  # width of a character, in font sizes
_SHORT = 4  # characters of names of which every k-th can be shown, as numbers of layers
_GROUP_WIDTH = 26  # characters of a line of a group's name
_GAP = 8.0  # points between the labels of rows and of their groups


def set_up_axes(axes: Axes, panel: Panel, width: float, height: float) -> None:
    """Gives the axes of a drawn panel their ends, ticks and lines.

    Args:
      axes: with the marks of the panel.
      panel: whose axes they are.
      width, height: about how large the axes will be, in inches.
    """
    has_heat = any(isinstance(mark, Heat) for mark in panel.marks)
    for axis, is_x, length in ((panel.x, True, width), (panel.y, False, height)):
        one = axes.xaxis if is_x else axes.yaxis
        if axis.log:
            (axes.set_xscale if is_x else axes.set_yscale)("log")
        _set_ends(axes, axis, is_x, has_heat)
        if not axis.ticks:
            one.set_ticks([])
        elif axis.names:
            _name_categories(axes, axis, is_x, length)
        else:
            if axis.percent:
                one.set_major_formatter(lambda value, _: percent(value, 0 if abs(100 * value % 1) < 1e-6 else 1))
            if not has_heat:
                one.grid(True)
        if axis.zero:
            (axes.axvline if is_x else axes.axhline)(0.0, color="#8a8a8a", lw=0.9, zorder=1)
    if not panel.x.ticks and not panel.y.ticks:
        axes.spines[:].set(visible=True, color="#c8c8c8")
    elif has_heat:
        axes.spines[:].set_visible(False)


def _set_ends(axes: Axes, axis: Axis, is_x: bool, has_heat: bool) -> None:
    """Sets the ends of an axis; a category has half a place on either side."""
    low, high = (axes.get_xlim if is_x else axes.get_ylim)()
    if axis.names:
        margin = 0.5 if has_heat else 0.6
        low, high = -margin, len(axis.names) - 1 + margin
    low, high = (low if axis.low is None else axis.low), (high if axis.high is None else axis.high)
    if low == high:
        low, high = low - 0.5, high + 0.5
    if axis.reverse:
        low, high = max(low, high), min(low, high)
    elif has_heat and not is_x:
        low, high = min(low, high), max(low, high)
    (axes.set_xlim if is_x else axes.set_ylim)(low, high)


def _name_categories(axes: Axes, axis: Axis, is_x: bool, length: float) -> None:
    """Labels categories; of short names, such as layers, every k-th if there are too many to read."""
    names = [shorten(name, LONGEST_NAME) for name in axis.names]
    room = 72 * length / len(names)  # points
    if not is_x:
        size = float(np.clip(0.85 * room, 4.0, 8.0))
        # Rows of less than 4 points are labelled in part.
        step = max(1, int(np.ceil(4.4 / room)))
        ticks = range(0, len(names), step)
        axes.set_yticks(ticks, [names[tick] for tick in ticks], fontsize=size)
        axes.tick_params(axis="y", length=0 if len(names) > 1 else 3)
        return
    longest = max(len(name) for name in names)
    size = 8.0
    if longest <= _SHORT:
        step = _step(room, longest, size)
        shown = [at for at, name in enumerate(names) if not name.isdigit() or step == 1 or int(name) % step == 0]
        axes.set_xticks(shown, [names[tick] for tick in shown], fontsize=size)
        return
    fits = longest * _CHARACTER * size + 6 <= room
    if not fits:
        size = float(np.clip(0.85 * room, 4.0, size))
    axes.set_xticks(range(len(names)), names, fontsize=size)
    if not fits:
        is_upright = len(names) > 8 or longest > 24
        for label in axes.get_xticklabels():
            label.set(rotation=90 if is_upright else 35)
            if not is_upright:
                label.set(ha="right", rotation_mode="anchor")


def _step(room: float, longest: int, size: float) -> int:
    """Returns which multiples of layers are labelled: 1, 2, 5, 10, ..."""
    wanted = (longest * _CHARACTER * size + 4) / room
    return next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 25, 50, 100, 200, 500, 10**9) if step >= wanted)


def label_rows(axes: Axes, heat: Heat) -> None:
    """Greys the labels of faint rows, and names each group of rows once, left of their labels."""
    labels = axes.get_yticklabels()
    for at, label in zip(axes.get_yticks(), labels, strict=True):
        if round(float(at)) in heat.faint_rows:
            label.set_color(FAINT)
    if not any(heat.groups):
        return
    inside = _label_width(axes) + _GAP
    size = labels[0].get_fontsize() if labels else 7.0
    edges = [0, *group_edges(heat.groups), len(heat.groups)]
    for first, last in pairwise(edges):
        axes.annotate(
            _wrapped(heat.groups[first], last - first),
            (0.0, (first + last - 1) / 2),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-inside, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=size,
            fontweight="bold",
            color=MUTED,
            linespacing=1.0,
            annotation_clip=False,
        )
    for edge in edges[1:-1]:
        axes.annotate(
            "",
            (0.0, edge - 0.5),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-inside - 30, 0),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": "#c8c8c8", "lw": 0.6, "shrinkA": 0, "shrinkB": 0},
            annotation_clip=False,
        )


def _label_width(axes: Axes) -> float:
    """Returns how far the labels of the rows reach to the left of the axes, in points."""
    figure = axes.figure
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    box = axes.yaxis.get_tightbbox(renderer)
    return 0.0 if box is None else 72 * box.width / figure.dpi


def _wrapped(name: str, rows: int) -> str:
    """Breaks the name of a group into at most as many lines as it has rows; what is left is cut."""
    import textwrap

    lines = textwrap.wrap(shorten(name, LONGEST_NAME), _GROUP_WIDTH, break_on_hyphens=False) or [""]
    if len(lines) > rows:
        rest = " ".join(lines[rows - 1 :])
        lines = [*lines[: rows - 1], shorten(rest, _GROUP_WIDTH + 4)]
    return "\n".join(lines)


def hide_inner_labels(grid: Sequence[Sequence[Axes | None]], panels: Sequence[Sequence[Panel | None]]) -> None:
    """Leaves the ticks of axes that equal those beside or below them without labels.

    Args:
      grid: axes by row and column; None where there is no panel.
      panels: their panels.
    """
    for row, (axes_row, panel_row) in enumerate(zip(grid, panels, strict=True)):
        for column, (axes, panel) in enumerate(zip(axes_row, panel_row, strict=True)):
            if axes is None or panel is None:
                continue
            left = panel_row[column - 1] if column else None
            if left is not None and _is_shared(left.y, panel.y):
                axes.tick_params(axis="y", labelleft=False)
            below = panels[row + 1][column] if row + 1 < len(panels) else None
            if below is not None and _is_shared(below.x, panel.x) and not _has_bar(panel):
                axes.tick_params(axis="x", labelbottom=False)


def _is_shared(one: Axis, other: Axis) -> bool:
    """Returns whether two axes have the same places, whatever is drawn."""
    is_fixed = bool(one.names) or (one.low is not None and one.high is not None)
    return is_fixed and (one.names, one.low, one.high) == (other.names, other.low, other.high)


def _has_bar(panel: Panel) -> bool:
    return any(isinstance(mark, Heat) for mark in panel.marks)
