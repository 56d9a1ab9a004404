"""The charts of the page as data: a chart in JSON's own types, packed, which `figure.js` draws."""

from __future__ import annotations

import base64
import csv
import dataclasses
import gzip
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.files.csv_text import csv_text
from mossa_jax.foreign import visible
from mossa_jax.report.charts.grammar import Box, Boxes, Chart, Mark, Panel, has_data
from mossa_jax.report.numbers import fixed

_DIGITS = 5
"""Significant digits of the numbers of a page: more than a screen can show, or a text says."""
_ROW = 17
"""Pixels of a row of a heat map; `figure.js` draws rows of this height."""
_INCH = 88
"""Pixels of the page for an inch of a figure."""
_SMALL_TABLE = 24
"""The most rows of numbers that the page writes out, so that they can be read without scripts."""


def chart_json(chart: Chart) -> dict[str, Any]:
    """Returns what `figure.js` draws.

    Every dataclass of the grammar becomes an object with its field names, without the fields that have their default.
    A mark has its `kind` as well ("line"), boxes their `summaries`, a box its `is_box`, a panel `has_data`, and the
    chart its numbers as `table`, column by column. Undefined numbers are null. Characters of a name that show nothing
    have a sign.
    """
    fields = {name: value for name, value in _fields(chart).items() if name != "data"}
    return fields | {"file": chart.file, "table": _table(chart.data)}


def _table(data: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the cells of the CSV file of a chart, to five digits, as its columns pack best.

    Row by row a packed page would be a tenth larger.
    """
    header, *rows = csv.reader(io.StringIO(csv_text(_rounded_columns(data)), newline=""))
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return [{"name": name} | _column(cells) for name, cells in zip(header, columns, strict=True)]


def _column(cells: Sequence[str | None]) -> dict[str, Any]:
    """Returns the `texts` of some cells; where they repeat, each text once, and in `rows` the place of every cell's."""
    places = {text: place for place, text in enumerate(dict.fromkeys(cells))}
    if 2 * len(places) > len(cells):
        return {"texts": list(cells)}
    return {"texts": list(places), "rows": [places[text] for text in cells]}


def _rounded_columns(data: pd.DataFrame) -> pd.DataFrame:
    """Rounds a table's numbers, whose last digits are noise and half of a packed page."""
    floats = data.select_dtypes("floating")
    return data.assign(**{str(name): floats[name].map(_rounded_float) for name in floats})


def packed(text: str) -> str:
    """Packs a text for the page: gzip in base64, the same bytes for the same text."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")


def packed_chart(chart: Chart) -> str:
    """Packs the JSON of a chart, its hover texts line by line (`_folded`)."""
    return packed(json.dumps(_folded(chart_json(chart)), separators=(",", ":"), allow_nan=False))


def _folded(value: Any) -> Any:
    """Replaces the lists of hover texts in the JSON of a chart by their first lines, their second lines and so on.

    Lines of one kind pack better beside each other than one text behind the other: a page is 5 % smaller for it.
    """
    if isinstance(value, list):
        return [_folded(item) for item in value]
    if not isinstance(value, dict):
        return value
    folded = {}
    for name, item in value.items():
        if name == "cells":
            folded[name] = _lines([text for row in item for text in row]) | {"width": len(item[0]) if item else 0}
        elif name == "hover":
            folded[name] = _lines(item)
        else:
            folded[name] = _folded(item)
    return folded


def _lines(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the `lines` of some texts, a `_column` for the first line of each, one for the second, and so on."""
    parts = [text.split("\n") for text in texts]
    most = max(map(len, parts), default=0)
    return {"lines": [_column([part[at] if at < len(part) else None for part in parts]) for at in range(most)]}


def page_charts(charts: Mapping[str, Chart], pictures: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Returns what the macro `chart` of `chart.html.j2` shows, by name of the chart.

    Args:
      charts: from `catalogue.all_charts`.
      pictures: name of a chart -> its static picture as a data URI.
    """
    return {
        name: {
            "name": name,
            "title": chart.title,
            "caption": chart.caption.rstrip("."),
            "paper": chart.paper,
            "file": chart.file,
            "choices": chart.choices,
            "request": chart.request,
            "requests": requests(chart),
            "rows_menu": chart.rows_menu,
            "groups": _groups(chart),
            "picture": pictures.get(name, ""),
            "height": _height(chart),
            "columns": [str(column) for column in chart.data.columns],
            "rows": _small_table(chart.data),
            "packed": packed_chart(chart),
        }
        for name, chart in charts.items()
    }


def requests(chart: Chart) -> list[str]:
    """Returns what a reader can ask a chart for, in the order of its marks."""
    marks = (mark for view in chart.views for panel in view.panels for mark in panel.marks)
    return list(dict.fromkeys(mark.on_request for mark in marks if mark.on_request))


def _groups(chart: Chart) -> list[str]:
    """Returns the groups of the rows of a chart's heat maps, in their order."""
    marks = (mark for view in chart.views for panel in view.panels for mark in panel.marks)
    return list(dict.fromkeys(group for mark in marks for group in getattr(mark, "groups", ())))


def _height(chart: Chart) -> int:
    """Returns about how high the drawing will be, in pixels, so that little moves when it is drawn."""
    view = chart.views[0]
    rows = -(-len(view.panels) // view.columns)
    names = max((len(panel.y.names) for panel in view.panels), default=0)
    return round(rows * max(_INCH * chart.height, _ROW * names) + 60)


def _small_table(data: pd.DataFrame) -> list[list[str]]:
    """Returns the rows of a small table as texts; none of a large one, which `charts.js` writes on opening."""
    if len(data) > _SMALL_TABLE:
        return []
    return [[_cell(value) for value in row] for row in data.itertuples(index=False, name=None)]


def _cell(value: Any) -> str:
    """Writes a cell of a table of numbers."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value).replace("-", "−")
    if isinstance(value, float | np.floating):
        number = float(value)
        if number.is_integer():
            return fixed(number, 0)
        return f"{number:.1e}".replace("-", "−") if 0 < abs(number) < 1e-4 else fixed(number, 4)
    return "" if value is None or value is pd.NA else str(value)


def _fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass of the grammar that differ from their defaults, and what its kind adds."""
    fields = {}
    for field in dataclasses.fields(value):
        item = _plain(getattr(value, field.name))
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if item is not None and item != _plain(default):
            fields[field.name] = item
    if isinstance(value, Mark):
        fields["kind"] = type(value).__name__.lower()
    if isinstance(value, Panel):
        fields["has_data"] = has_data(value)
    if isinstance(value, Boxes):
        fields["summaries"] = _plain(value.summaries)
    if isinstance(value, Box):
        fields["is_box"] = value.is_box
    return fields


def _plain(value: Any) -> Any:
    """Converts a value of the grammar to JSON's own types."""
    if isinstance(value, str):
        # A line end parts the lines of a hover text.
        return "\n".join(visible(line) for line in value.split("\n"))
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return _rounded(float(value))
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if dataclasses.is_dataclass(value):
        return _fields(value)
    return None if isinstance(value, pd.DataFrame) else [_plain(item) for item in value]


def _rounded_float(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = _rounded_float(value)
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
