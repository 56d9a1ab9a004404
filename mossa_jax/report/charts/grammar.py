"""What a chart shows, without a word on how it is drawn: the one source of a picture, its numbers and its hover texts.

A `Chart` has views, a view has panels, and a panel has marks over two axes. `drawing/static.py` draws the first view as
a figure, `page/interactive.py` passes all views to the page, where `figure.js` draws them. So page and figures show the
same numbers by the same rule: quartiles, intervals and texts are computed here, once.

All positions are numbers. A categorical axis has its names at 0, 1, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from mossa_jax.report.numbers import fixed

Values = Sequence[float | None] | np.ndarray
"""One number per point; None or NaN where nothing is defined."""

MIN_BOX = 5
"""The fewest values that are drawn as a box: quartiles of fewer say nothing that the values do not."""


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    Attributes:
      label: what it measures, with its unit.
      names: of the categories, at positions 0, 1, ...; empty for a numeric axis.
      low, high: its ends; None to fit the marks.
      zero: whether a line marks zero.
      percent: whether shares are written as percentages.
      log: whether it is logarithmic.
      reverse: whether it runs downwards, as the rows of a list do.
      ticks: whether positions are labelled; those of a map mean nothing.
    """

    label: str = ""
    names: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    zero: bool = False
    percent: bool = False
    log: bool = False
    reverse: bool = False
    ticks: bool = True


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What all marks share.

    Attributes:
      name: its entry in the legend; "" for none. Marks of one name and role share an entry.
      role: what its colour stands for, a key of `palette.ROLES`, a colour "#rrggbb", or "ink" for the text's colour.
      hover: one text per point, whose lines are separated by line ends; empty where the pointer finds nothing.
      on_request: what a reader picks to see this mark, such as a task; "" for a mark that is always there. Figures
        leave marks on request out.
      faint: whether it is greyed, as tasks that the findings leave out are.
    """

    name: str = ""
    role: str = "ink"
    hover: Sequence[str] = ()
    on_request: str = ""
    faint: bool = False


@dataclass(frozen=True, kw_only=True)
class Line(Mark):
    """A line through points, with an optional band.

    Attributes:
      x, y: the points; the line is broken where y is undefined.
      low, high: the band.
      dash: "solid", "dash" or "dot".
      symbol: of its points, as in `Points`; "" for none.
      width: in points.
    """

    x: Values
    y: Values
    low: Values = ()
    high: Values = ()
    dash: Literal["solid", "dash", "dot"] = "solid"
    symbol: str = ""
    width: float = 1.8


@dataclass(frozen=True, kw_only=True)
class Points(Mark):
    """Points, with optional intervals along one axis or both.

    Attributes:
      x, y: the points.
      x_low, x_high, y_low, y_high: the ends of their intervals.
      symbol: "circle", "square", "diamond", "triangle", "triangle-down", "cross", "x", "bar" (an upright stroke) or
        "dash" (a level one).
      hollow: whether only their outline is drawn.
      size: in points.
      opacity: between 0 and 1.
    """

    x: Values
    y: Values
    x_low: Values = ()
    x_high: Values = ()
    y_low: Values = ()
    y_high: Values = ()
    symbol: str = "circle"
    hollow: bool = False
    size: float = 6.0
    opacity: float = 1.0


@dataclass(frozen=True)
class Box:
    """The summary of the values at one position: NumPy's (linear) quartiles, whiskers to the last value within 1.5
    quartile ranges.

    Attributes:
      at: the position.
      values: all values, in the order of the hover texts.
      quartiles: lower quartile, median, upper quartile.
      whiskers: their ends.
      hover: one text per value.
    """

    at: float
    values: tuple[float, ...]
    quartiles: tuple[float, float, float]
    whiskers: tuple[float, float]
    hover: tuple[str, ...] = ()

    @property
    def is_box(self) -> bool:
        """Whether there are enough values for a box; fewer are drawn as points with a line at their median."""
        return len(self.values) >= MIN_BOX


@dataclass(frozen=True, kw_only=True)
class Boxes(Mark):
    """Boxes over the values at several positions, side by side with those of other marks.

    Attributes:
      boxes: one per position that has values.
      shift: of the boxes from their positions, so that marks stand side by side: -0.2 and 0.2 for two.
      width: of a box.
    """

    boxes: tuple[Box, ...]
    shift: float = 0.0
    width: float = 0.34

    @property
    def summaries(self) -> list[str]:
        """What the pointer says over the medians, one text per box."""
        texts = []
        for box in self.boxes:
            low, median, high = (fixed(value) for value in box.quartiles)
            numbers = f"median {median}\nquartiles {low} to {high}\nn = {len(box.values)}"
            texts.append(f"{self.name}\n{numbers}" if self.name else numbers)
        return texts


@dataclass(frozen=True, kw_only=True)
class Bars(Mark):
    """Upright bars, with optional intervals.

    Attributes:
      x, y: position and height.
      low, high: the ends of the intervals.
      base: where each bar begins; zero unless given.
      width: of a bar.
      level: whether bars lie: then x is the length and y the position.
    """

    x: Values
    y: Values
    low: Values = ()
    high: Values = ()
    base: Values = ()
    width: float = 0.8
    level: bool = False


@dataclass(frozen=True, kw_only=True)
class Heat(Mark):
    """Cells in rows and columns. Rows and columns are the names of the panel's axes.

    Attributes:
      values: [rows, columns]; NaN where undefined.
      hover: one text per row, which begins the text of each of its cells.
      cells: one text per cell, [rows][columns]; for an undefined cell the reason.
      scale: "share" for 0 to 1 (`low` and `high` change these ends), "change" for a scale with zero in its middle.
      low, high: the ends of the scale; None for 0 and 1, or the largest change.
      hatched: [rows, columns] bool: cells that are marked, such as changes that are not significant; None for none.
      hatched_name: what the mark means.
      groups: the group of each row; lines part the groups, and the page can show one group alone.
      faint_rows: rows that the findings leave out.
      bar: what the scale shows, beside its colour bar.
    """

    values: np.ndarray
    cells: Sequence[Sequence[str]] = ()
    scale: Literal["share", "change"] = "share"
    low: float | None = None
    high: float | None = None
    hatched: np.ndarray | None = None
    hatched_name: str = ""
    groups: tuple[str, ...] = ()
    faint_rows: tuple[int, ...] = ()
    bar: str = ""


@dataclass(frozen=True, kw_only=True)
class Span(Mark):
    """A band across the panel, behind the other marks: a section of the network, a margin, an interval.

    Attributes:
      low, high: its ends.
      axis: "x" for an upright band, "y" for a level one.
      label: written at its upper end (upright) or at its right end (level).
      opacity: between 0 and 1.
    """

    low: float
    high: float
    axis: Literal["x", "y"] = "x"
    label: str = ""
    opacity: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Rule(Mark):
    """A straight line across the panel.

    Attributes:
      at: its position; a diagonal (y = x) has none.
      axis: "x" for an upright line, "y" for a level one, "diagonal".
      dash: as in `Line`.
      label: written at its end.
    """

    at: float = 0.0
    axis: Literal["x", "y", "diagonal"] = "y"
    dash: Literal["solid", "dash", "dot"] = "solid"
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
      title: above it; "" for none.
      x, y: its axes.
      marks: from back to front.
      note: a few words at the right of the title.
      empty: what is written instead of marks where there are none.
    """

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    title: str = ""
    note: str = ""
    empty: str = "Nothing is defined here."


@dataclass(frozen=True)
class View:
    """One state of a chart.

    Attributes:
      panels: row after row.
      columns: panels in a row.
      choices: choice -> value, for every choice of the chart.
    """

    panels: tuple[Panel, ...]
    columns: int = 1
    choices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What a reader can choose in a chart.

    Attributes:
      label: before the menu: "Estimator".
      options: value -> its name; the first is what figures show.
    """

    label: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Chart:
    """A chart of the page and a figure among the files.

    Attributes:
      name: its anchor on the page, and what `mossa.Run(DIR).figures[name]` asks for.
      title: of the figure.
      caption: what it shows, for readers who cannot see it.
      views: the first is drawn among the files.
      data: the numbers that it draws, one tidy row each; the CSV behind it.
      choices: name -> choice; the views are its combinations.
      request: label of the menu of marks on request, such as "Follow a task"; "" for none.
      paper: number of the paper's figure that it corresponds to; 0 for none. It begins the name of the file.
      width, height: of the figure in inches, per panel.
      rows_menu: whether the page offers search, groups and sorting of the rows of its heat map.
      section: name of the analysis that it belongs to; "" for the comparison.
    """

    name: str
    title: str
    caption: str
    views: tuple[View, ...]
    data: pd.DataFrame
    choices: Mapping[str, Choice] = field(default_factory=dict)
    request: str = ""
    paper: int = 0
    width: float = 8.0
    height: float = 4.2
    rows_menu: bool = False
    section: str = ""

    @property
    def file(self) -> str:
        """The name of its files, without suffix: "figure2_layers" where the paper has a counterpart."""
        return f"figure{self.paper}_{self.name}" if self.paper else self.name


def box(at: float, values: Values, hover: Sequence[str] = ()) -> Box | None:
    """Summarises the defined values at one position; None if there are none.

    Args:
      at: the position.
      values: [n], NaN or None where undefined.
      hover: [n] texts, or none.
    """
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    defined = np.isfinite(numbers)
    if not defined.any():
        return None
    numbers, texts = numbers[defined], [text for text, keep in zip(hover, defined, strict=False) if keep]
    low, median, high = np.quantile(numbers, (0.25, 0.5, 0.75))
    reach = 1.5 * (high - low)
    inside = numbers[(numbers >= low - reach) & (numbers <= high + reach)]
    # Quartiles are interpolated, so the last value inside may lie within the box.
    whiskers = min(float(inside.min()), low), max(float(inside.max()), high)
    return Box(at, tuple(numbers.tolist()), (float(low), float(median), float(high)), whiskers, tuple(texts))


def boxes(columns: Sequence[Values] | np.ndarray, hovers: Sequence[Sequence[str]] = (), **mark: Any) -> Boxes:
    """Builds one box per column at positions 0, 1, ...; `mark` are the other fields of `Boxes`."""
    texts = hovers or [()] * len(columns)
    summaries = [box(at, column, hover) for at, (column, hover) in enumerate(zip(columns, texts, strict=True))]
    return Boxes(boxes=tuple(summary for summary in summaries if summary is not None), **mark)


def is_drawn(mark: Mark) -> bool:
    """Returns whether a mark has anything to draw."""
    if isinstance(mark, Boxes):
        return bool(mark.boxes)
    if isinstance(mark, Heat):
        return bool(np.size(mark.values))
    if isinstance(mark, Line | Points | Bars):
        return any(value is not None and np.isfinite(value) for value in mark.y)
    return True


def has_data(panel: Panel) -> bool:
    """Returns whether a panel shows any data: marks other than bands and rules."""
    return any(is_drawn(mark) for mark in panel.marks if not isinstance(mark, Span | Rule))


def first_view(chart: Chart, **choices: str) -> View:
    """Returns the first view with these choices.

    Raises:
      KeyError: if there is none.
    """
    for view in chart.views:
        if all(view.choices.get(name) == value for name, value in choices.items()):
            return view
    raise KeyError(choices)
