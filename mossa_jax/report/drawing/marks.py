"""The marks of a chart, drawn on the axes of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.report.charts.grammar import Bars, Box, Boxes, Heat, Line, Mark, Points, Rule, Span, Values
from mossa_jax.report.drawing.style import INK, MUTED
from mossa_jax.report.palette import FAINT, Palette, shorten

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

DASHES = {"solid": "-", "dash": (0, (4, 2)), "dot": (0, (1.2, 1.6))}
SYMBOLS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle": "^", "triangle-down": "v", "cross": "+", "x": "x",
    "bar": "|", "dash": "_",
}  # fmt: skip

BEHIND, AMONG, BEFORE = 0.5, 2.0, 3.0
"""Where bands, boxes and bars, and lines and points lie; marks of one height keep the order of their panel."""

QUARTILES, WHISKERS, MEDIANS, OUTLIERS, FEW = "_quartiles", "_whiskers", "_medians", "_outliers", "_few"
"""Labels of what boxes are made of, by which it is found among the artists of the axes."""

HATCHED, ABOVE = "_hatched", "_above"
"""Labels of what hatches marked cells, and of what is written above the axes, where neighbours could meet."""

UNDEFINED_HATCH = "xxxx"
_MANY = 3000  # points, beyond which a vector file holds them as a picture
_LABEL_SIZE = 8
_FEW_SIZE = 3.4  # of a value without a box, in points
_SHOWN = 60  # characters of a label of a line or a band


def role_colour(mark: Mark, palette: Palette) -> str:
    """Returns the colour of a mark: of its role, its own, or the ink's; grey if it is faint.

    That of a heat map is the colour of what is not defined.
    """
    if isinstance(mark, Heat):
        return palette["undefined"]
    if mark.faint:
        return FAINT
    if mark.role.startswith("#"):
        return mark.role
    return INK if mark.role == "ink" else palette[mark.role]


def numbers(values: Values) -> np.ndarray:
    """Returns values as [n] float64, NaN where nothing is defined."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


@singledispatch
def draw_mark(mark: Mark, axes: Axes, colour: str) -> None:
    """Draws a mark."""
    raise TypeError(f"{type(mark).__name__} is no mark")


@draw_mark.register(Line)
def _draw_line(mark: Line, axes: Axes, colour: str) -> None:
    x, y = numbers(mark.x), numbers(mark.y)
    if len(mark.low):
        axes.fill_between(x, numbers(mark.low), numbers(mark.high), color=colour, alpha=0.18, lw=0, zorder=BEFORE - 0.1)
    axes.plot(
        x,
        y,
        color=colour,
        lw=mark.width,
        ls=DASHES[mark.dash],
        marker=SYMBOLS.get(mark.symbol),
        ms=4,
        solid_capstyle="round",
        zorder=BEFORE,
    )


@draw_mark.register(Points)
def _draw_points(mark: Points, axes: Axes, colour: str) -> None:
    x, y = numbers(mark.x), numbers(mark.y)
    style: dict[str, Any] = {"color": colour, "lw": 1.0, "alpha": mark.opacity, "zorder": BEFORE - 0.05}
    if len(mark.x_low):
        axes.hlines(y, numbers(mark.x_low), numbers(mark.x_high), **style)
    if len(mark.y_low):
        axes.vlines(x, numbers(mark.y_low), numbers(mark.y_high), **style)
    is_stroke = mark.symbol in ("cross", "x", "bar", "dash")
    axes.plot(
        x,
        y,
        ls="none",
        marker=SYMBOLS[mark.symbol],
        ms=mark.size,
        color=colour,
        mfc="white" if mark.hollow else colour,
        mew=1.2 if mark.hollow or is_stroke else 0,
        alpha=mark.opacity,
        rasterized=len(x) > _MANY,
        zorder=BEFORE,
    )


@draw_mark.register(Boxes)
def _draw_boxes(mark: Boxes, axes: Axes, colour: str) -> None:
    boxes = [box for box in mark.boxes if box.is_box]
    if boxes:
        _draw_whole(boxes, mark, axes, colour)
    few = [box for box in mark.boxes if not box.is_box]
    if few:
        _draw_few(few, mark, axes, colour)


def _draw_whole(boxes: Sequence[Box], mark: Boxes, axes: Axes, colour: str) -> None:
    """Draws boxes with whiskers, caps, medians and outliers; as collections, since there may be thousands of them."""
    from matplotlib.collections import LineCollection, PolyCollection

    half = mark.width / 2
    bodies, whiskers, medians, outliers = [], [], [], []
    for box in boxes:
        x, (low, median, high), ends = box.at + mark.shift, box.quartiles, box.whiskers
        left, right = x - half, x + half
        bodies.append([(left, low), (right, low), (right, high), (left, high)])
        for edge, end in zip((low, high), ends, strict=True):
            whiskers += [[(x, edge), (x, end)], [(x - half / 2, end), (x + half / 2, end)]]
        medians.append([(left, median), (right, median)])
        outliers += [(x, value) for value in box.values if not ends[0] <= value <= ends[1]]
    axes.add_collection(
        LineCollection(whiskers, colors=colour, linewidths=0.9, zorder=AMONG, label=WHISKERS), autolim=True
    )
    axes.add_collection(
        PolyCollection(
            bodies,
            facecolors=mixed(colour, "white", 0.45),
            edgecolors=colour,
            linewidths=0.8,
            zorder=AMONG,
            label=QUARTILES,
        ),
        autolim=True,
    )
    axes.add_collection(
        LineCollection(medians, colors=mixed(colour, "black", 0.65), linewidths=1.5, zorder=AMONG, label=MEDIANS)
    )
    if outliers:
        axes.plot(
            *zip(*outliers, strict=True), ls="none", marker="d", ms=2.8, mfc=colour, mew=0, zorder=AMONG, label=OUTLIERS
        )


def _draw_few(boxes: Sequence[Box], mark: Boxes, axes: Axes, colour: str) -> None:
    """Draws values that are too few for a box, each as a point, with a line at their median."""
    from matplotlib.collections import LineCollection

    half = mark.width / 2
    medians = [[(box.at + mark.shift + side, box.quartiles[1]) for side in (-half, half)] for box in boxes]
    axes.add_collection(
        LineCollection(medians, colors=mixed(colour, "black", 0.75), linewidths=1.5, zorder=AMONG, label=MEDIANS),
        autolim=True,
    )
    points = [(box.at + mark.shift, value) for box in boxes for value in box.values]
    x, y = zip(*points, strict=True)
    axes.plot(x, y, ls="none", marker="o", ms=_FEW_SIZE, color=colour, mew=0, alpha=0.85, zorder=AMONG, label=FEW)


@draw_mark.register(Bars)
def _draw_bars(mark: Bars, axes: Axes, colour: str) -> None:
    x, y = numbers(mark.x), numbers(mark.y)
    at, length = (y, x) if mark.level else (x, y)
    base = numbers(mark.base) if len(mark.base) else np.zeros(len(at))
    draw = axes.barh if mark.level else axes.bar
    draw(at, length, mark.width, base, color=colour, lw=0, zorder=AMONG)
    if len(mark.low):
        lines = axes.hlines if mark.level else axes.vlines
        lines(at, numbers(mark.low), numbers(mark.high), color=INK, lw=0.9, zorder=BEFORE)


@draw_mark.register(Span)
def _draw_span(mark: Span, axes: Axes, colour: str) -> None:
    is_upright = mark.axis == "x"
    draw = axes.axvspan if is_upright else axes.axhspan
    draw(mark.low, mark.high, color=colour, alpha=mark.opacity, lw=0, zorder=BEHIND)
    if mark.label:
        edge_label(axes, (mark.low + mark.high) / 2, shorten(mark.label, _SHOWN), is_upright)


@draw_mark.register(Rule)
def _draw_rule(mark: Rule, axes: Axes, colour: str) -> None:
    style: dict[str, Any] = {"color": colour, "lw": 1.0, "ls": DASHES[mark.dash], "zorder": BEHIND + 0.5}
    if mark.axis == "diagonal":
        axes.axline((0.0, 0.0), slope=1.0, **style)
        return
    is_upright = mark.axis == "x"
    (axes.axvline if is_upright else axes.axhline)(mark.at, **style)
    if mark.label:
        edge_label(axes, mark.at, shorten(mark.label, _SHOWN), is_upright)


def edge_label(axes: Axes, at: float, label: str, is_upright: bool) -> None:
    """Writes a label outside the axes: above an upright line or band, right of a level one."""
    axes.annotate(
        label,
        (at, 1.0) if is_upright else (1.0, at),
        xycoords=axes.get_xaxis_transform() if is_upright else axes.get_yaxis_transform(),
        xytext=(0, 2) if is_upright else (3, 0),
        textcoords="offset points",
        ha="center" if is_upright else "left",
        va="bottom" if is_upright else "center",
        color=MUTED,
        fontsize=_LABEL_SIZE,
        annotation_clip=False,
        label=ABOVE if is_upright else "",
    )


@draw_mark.register(Heat)
def _draw_heat(mark: Heat, axes: Axes, colour: str) -> None:
    values = np.asarray(mark.values, np.float64)
    norm, scale = heat_scale(mark)
    # What is not defined is not drawn: there the ground shows.
    axes.patch.set(facecolor=colour, hatch=UNDEFINED_HATCH, edgecolor="white")
    image = axes.imshow(
        np.ma.masked_invalid(values), aspect="auto", norm=norm, cmap=scale, interpolation="nearest", zorder=AMONG
    )
    for edge in group_edges(mark.groups):
        axes.axhline(edge - 0.5, color="white", lw=1.6, zorder=BEFORE)
    if mark.hatched is not None:
        _hatch(axes, np.asarray(mark.hatched, bool) & np.isfinite(values), image.to_rgba(values))
    for row in mark.faint_rows:
        axes.axhspan(row - 0.5, row + 0.5, color="white", alpha=0.65, lw=0, zorder=BEFORE)


def heat_scale(mark: Heat) -> tuple[Normalize, str]:
    """Returns the scale of a heat map, and the name of its colours."""
    from matplotlib.colors import Normalize, TwoSlopeNorm

    if mark.scale == "share":
        return Normalize(0.0 if mark.low is None else mark.low, 1.0 if mark.high is None else mark.high), "cividis"
    finite = np.abs(np.asarray(mark.values, np.float64))
    largest = float(np.max(finite[np.isfinite(finite)], initial=0.05))
    low, high = -largest if mark.low is None else mark.low, largest if mark.high is None else mark.high
    return (Normalize(low, high) if low == -high else TwoSlopeNorm(0.0, low, high)), "PuOr_r"


def group_edges(groups: Sequence[str]) -> list[int]:
    """Returns the rows at which another group begins, without the first row."""
    return [row for row in range(1, len(groups)) if groups[row] != groups[row - 1]]


def _hatch(axes: Axes, cells: np.ndarray, colours: np.ndarray) -> None:
    """Hatches these cells, dark on light colours and light on dark ones.

    Args:
      axes: of the heat map.
      cells: [rows, columns] bool.
      colours: [rows, columns, 4], of all cells.
    """
    from matplotlib.collections import PolyCollection

    is_light = colours[..., :3] @ (0.2126, 0.7152, 0.0722) > 0.45
    for shade, those in (("#4d4d4d", cells & is_light), ("#f0f0f0", cells & ~is_light)):
        corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
        # [cells, corners, x and y]
        places = np.argwhere(those)[:, None, ::-1] + corners
        if len(places):
            axes.add_collection(
                PolyCollection(
                    places,
                    facecolors="none",
                    edgecolors=shade,
                    linewidths=0,
                    hatch="////",
                    zorder=BEFORE - 0.5,
                    label=HATCHED,
                ),
                autolim=False,
            )


def mixed(colour: str, other: str, share: float) -> str:
    """Returns a colour with a share of another one."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other))
    return to_hex((red, green, blue))


def legend_entries(marks: Sequence[Mark], palette: Palette) -> list[tuple[str, Artist]]:
    """Returns the entries of a legend: names and what stands for them; marks of one name and role share one."""
    entries: dict[tuple[str, str], Artist] = {}
    for mark in marks:
        # A diagonal has no end beside the axes for its label.
        name = mark.label if isinstance(mark, Rule) and mark.axis == "diagonal" else mark.name
        key = name, "faint" if mark.faint else mark.role
        if name and key not in entries:
            entries[key] = _legend_handle(mark, role_colour(mark, palette))
    result = [(name, handle) for (name, _), handle in entries.items()]
    return result + _heat_entries([mark for mark in marks if isinstance(mark, Heat)], palette["undefined"])


def _legend_handle(mark: Mark, colour: str) -> Artist:
    """Returns what stands for a mark in the legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if isinstance(mark, Line):
        return Line2D(
            [], [], color=colour, lw=mark.width, ls=DASHES[mark.dash], marker=SYMBOLS.get(mark.symbol), markersize=4
        )
    if isinstance(mark, Rule):
        return Line2D([], [], color=colour, lw=1.0, ls=DASHES[mark.dash])
    if isinstance(mark, Points) or (isinstance(mark, Boxes) and not any(box.is_box for box in mark.boxes)):
        symbol, is_hollow = (mark.symbol, mark.hollow) if isinstance(mark, Points) else ("circle", False)
        size = min(mark.size, 7.0) if isinstance(mark, Points) else _FEW_SIZE + 1
        return Line2D(
            [],
            [],
            ls="none",
            marker=SYMBOLS[symbol],
            markersize=size,
            color=colour,
            markerfacecolor="white" if is_hollow else colour,
        )
    if isinstance(mark, Boxes):
        return Patch(facecolor=mixed(colour, "white", 0.45), edgecolor=colour, linewidth=0.8)
    return Patch(facecolor=colour, alpha=mark.opacity if isinstance(mark, Span) else 1.0, linewidth=0)


def _heat_entries(heats: Sequence[Heat], undefined: str) -> list[tuple[str, Artist]]:
    """Returns the entries of what heat maps mark."""
    from matplotlib.patches import Patch

    entries: dict[str, Artist] = {}
    for heat in heats:
        if heat.hatched is not None and heat.hatched_name and np.any(heat.hatched):
            entries[heat.hatched_name] = Patch(facecolor="white", edgecolor=MUTED, hatch="////", linewidth=0.5)
        if not np.isfinite(np.asarray(heat.values, np.float64)).all():
            entries["undefined"] = Patch(facecolor=undefined, edgecolor="white", hatch=UNDEFINED_HATCH, linewidth=0)
        if heat.faint_rows:
            entries["left out of the findings"] = Patch(facecolor=FAINT, alpha=0.35, linewidth=0)
    return list(entries.items())
