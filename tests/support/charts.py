"""Looking into charts: their marks by name, and what every chart owes its readers."""

import numpy as np

from mossa_jax.report.charts.grammar import Bars, Boxes, Chart, Heat, Line, Mark, Panel, Points, has_data


def marks_of(panel: Panel, name: str) -> list[Mark]:
    """Returns the marks of a panel with this name in the legend."""
    return [mark for mark in panel.marks if mark.name == name]


def mark_of(panel: Panel, name: str) -> Mark:
    """Returns the only mark of a panel with this name."""
    (mark,) = marks_of(panel, name)
    return mark


def panels_of(chart: Chart, **choices: str) -> dict[str, Panel]:
    """Returns the panels of the first view with these choices, by title."""
    views = (view for view in chart.views if choices.items() <= dict(view.choices).items())
    return {panel.title: panel for panel in next(views).panels}


def check_chart(chart: Chart) -> None:
    """Checks what holds for every chart: a text for each point, views for all choices, words, finite ends, a table."""
    assert chart.name and chart.title and chart.caption and chart.width > 0 and chart.height > 0
    first = {name: next(iter(choice.options)) for name, choice in chart.choices.items()}
    assert dict(chart.views[0].choices) == first
    for name, choice in chart.choices.items():
        assert {view.choices[name] for view in chart.views} == set(choice.options)
    for panel in (panel for view in chart.views for panel in view.panels):
        assert panel.empty and "nan" not in f"{panel.title}{panel.note}{panel.x.label}{panel.y.label}"
        assert all(end is None or np.isfinite(end) for axis in (panel.x, panel.y) for end in (axis.low, axis.high))
        for mark in panel.marks:
            _check_mark(mark, panel)
    if any(has_data(panel) for view in chart.views for panel in view.panels):
        assert len(chart.data)


def _check_mark(mark: Mark, panel: Panel) -> None:
    assert not any("nan" in text for text in mark.hover)
    if isinstance(mark, Line | Points | Bars):
        lengths = {len(getattr(mark, name)) for name in ("x", "y")}
        ends = [name for name in ("low", "high", "base", "x_low", "x_high", "y_low", "y_high") if hasattr(mark, name)]
        lengths |= {len(getattr(mark, name)) for name in ends if len(getattr(mark, name))}
        assert len(lengths) == 1
        assert mark.on_request or not mark.hover or {len(mark.hover)} == lengths
        assert mark.on_request or mark.hover or isinstance(mark, Line)
    if isinstance(mark, Heat):
        shape = len(panel.y.names), len(panel.x.names)
        assert mark.values.shape == shape and len(mark.hover) == shape[0]
        assert [len(row) for row in mark.cells] == [shape[1]] * shape[0]
        assert not any("nan" in text for row in mark.cells for text in row)
    assert not isinstance(mark, Boxes) or mark.boxes
