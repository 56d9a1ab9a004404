"""A chart as a figure: panels in a grid, a legend beside the data, and room for every label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mossa_jax.report.charts.grammar import Chart, Heat, Mark, Panel, View, has_data, is_drawn
from mossa_jax.report.drawing.axes import hide_inner_labels, label_rows, set_up_axes
from mossa_jax.report.drawing.glyphs import make_drawable, say_missing
from mossa_jax.report.drawing.marks import draw_mark, heat_scale, legend_entries, role_colour
from mossa_jax.report.drawing.saving import settle
from mossa_jax.report.drawing.style import MUTED, figure_style, new_figure
from mossa_jax.report.drawing.titles import fit, spread_labels, title_panel
from mossa_jax.report.palette import DEFAULT, Palette, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

_PAD = 0.08  # inches around the figure
_LABELS = 0.4  # share of a panel that labels of rows take before the figure becomes wider
_WIDEST = 30.0  # inches
_SHOWN = 120  # characters of a title


def draw(chart: Chart, view: View | None = None, palette: Palette = DEFAULT) -> Figure:
    """Draws a chart.

    Args:
      chart: what to draw; its marks on request are left out.
      view: one of its views; by default the first.
      palette: colours.

    Returns:
      A matplotlib figure, laid out for good: to show, change or save.
    """
    figure, missing = compose(chart, view, palette)
    say_missing(missing)
    return figure


def compose(chart: Chart, view: View | None = None, palette: Palette = DEFAULT) -> tuple[Figure, set[str]]:
    """Draws a chart as `draw`, and returns the characters that no font here has beside it."""
    view = view or chart.views[0]
    with figure_style():
        return _Composition(chart, view, palette).figure()


class _Composition:
    """The making of one figure."""

    def __init__(self, chart: Chart, view: View, palette: Palette):
        self._chart, self._palette = chart, palette
        columns = max(1, min(view.columns, len(view.panels)))
        rows = max(1, -(-len(view.panels) // columns))
        self._figure = new_figure(chart.width * columns, chart.height * rows)
        cells = self._figure.subplots(rows, columns, squeeze=False)
        self._grid: list[list[Axes | None]] = [[None] * columns for _ in range(rows)]
        self._panels: list[list[Panel | None]] = [[None] * columns for _ in range(rows)]
        for number, axes in enumerate(cells.flat):
            row, column = divmod(number, columns)
            if number < len(view.panels):
                self._grid[row][column], self._panels[row][column] = axes, view.panels[number]
            else:
                axes.set_axis_off()

    def figure(self) -> tuple[Figure, set[str]]:
        """Draws all of it; returns the figure and the characters that no font has."""
        for axes, panel in self._places():
            self._draw_panel(axes, panel)
        self._name_axes()
        self._add_colour_bars()
        hide_inner_labels(self._grid, self._panels)
        missing = make_drawable(self._figure)
        self._label_rows()
        missing |= self._head()
        missing |= settle(self._figure)
        return self._figure, missing

    def _places(self) -> list[tuple[Axes, Panel]]:
        return [
            (axes, panel)
            for axes_row, panel_row in zip(self._grid, self._panels, strict=True)
            for axes, panel in zip(axes_row, panel_row, strict=True)
            if axes is not None and panel is not None
        ]

    def _draw_panel(self, axes: Axes, panel: Panel) -> None:
        if not has_data(panel):
            axes.set_axis_off()
            axes.text(
                0.5,
                0.5,
                panel.empty,
                ha="center",
                va="center",
                transform=axes.transAxes,
                color=MUTED,
                wrap=True,
            )
            title_panel(axes, panel, self._width, 0)
            return
        for mark in self._drawn(panel):
            draw_mark(mark, axes, role_colour(mark, self._palette))
        set_up_axes(axes, panel, self._width, max(0.8, self._chart.height - 0.8))
        title_panel(axes, panel, self._width, spread_labels(axes, self._width))

    @property
    def _width(self) -> float:
        """About how wide the axes of a panel will be, in inches, and no wider."""
        return max(1.0, self._chart.width - 1.0)

    def _drawn(self, panel: Panel) -> list[Mark]:
        return [mark for mark in panel.marks if not mark.on_request and is_drawn(mark)]

    def _name_axes(self) -> None:
        """Labels the axes: once for all panels where they say the same."""
        drawn = [(axes, panel) for axes, panel in self._places() if has_data(panel)]
        for is_x in (True, False):
            labels = {(panel.x if is_x else panel.y).label for _, panel in drawn}
            label = next(iter(labels), "")
            has_bar = is_x and any(isinstance(mark, Heat) for _, panel in drawn for mark in panel.marks)
            if len(drawn) > 1 and len(labels) == 1 and label and not has_bar:
                name = self._figure.supxlabel if is_x else self._figure.supylabel
                name(shorten(label, _SHOWN), fontsize=9)
                continue
            for axes, panel in drawn:
                one = panel.x if is_x else panel.y
                (axes.set_xlabel if is_x else axes.set_ylabel)(shorten(one.label, _SHOWN))

    def _add_colour_bars(self) -> None:
        """Adds the scales of heat maps: one for all panels if all have the same."""
        heats = [
            (axes, mark) for axes, panel in self._places() for mark in self._drawn(panel) if isinstance(mark, Heat)
        ]
        scales: dict[tuple[Any, ...], list[Axes]] = {}
        for axes, mark in heats:
            norm, _ = heat_scale(mark)
            scales.setdefault((mark.scale, mark.bar, norm.vmin, norm.vmax), []).append(axes)
        for (_, label, *_), panels in scales.items():
            # Panels between those of one scale would be drawn over.
            groups = [panels] if len(scales) == 1 else [[axes] for axes in panels]
            for group in groups:
                bar = self._figure.colorbar(
                    group[0].images[0], ax=group, location="bottom", shrink=0.7 / len(group) ** 0.5, aspect=34, pad=0.02
                )
                bar.outline.set_visible(False)
                bar.set_label(shorten(label, _SHOWN), fontsize=8)

    def _label_rows(self) -> None:
        """Names the groups of rows, and makes the figure wider where labels leave little room for the data."""
        wider = 0.0
        renderer = self._figure.canvas.get_renderer()  # type: ignore[attr-defined]
        for axes_row, panel_row in zip(self._grid, self._panels, strict=True):
            for column, (axes, panel) in enumerate(zip(axes_row, panel_row, strict=True)):
                if axes is None or panel is None or not axes.axison:
                    continue
                heat = next((mark for mark in panel.marks if isinstance(mark, Heat)), None)
                if heat is not None and (column == 0 or panel.y.names != self._names_left_of(panel_row, column)):
                    label_rows(axes, heat)
                if not panel.y.names:
                    continue
                axes_box, whole = axes.get_window_extent(renderer), axes.get_tightbbox(renderer)
                if whole is not None:
                    labels = (axes_box.x0 - whole.x0) / self._figure.dpi
                    wider = max(wider, labels - _LABELS * self._chart.width)
        width, height = self._figure.get_size_inches()
        self._figure.set_size_inches(min(width + wider, max(_WIDEST, width)), height)

    @staticmethod
    def _names_left_of(panel_row: Sequence[Panel | None], column: int) -> tuple[str, ...]:
        left = panel_row[column - 1]
        return () if left is None else left.y.names

    def _head(self) -> set[str]:
        """Writes the title and the legend above the panels, and keeps their room free."""
        figure, dpi = self._figure, self._figure.dpi
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        width, height = figure.get_size_inches()
        room = width - 2 * _PAD
        title = figure.text(_PAD / width, 1.0, shorten(self._chart.title, _SHOWN), fontsize=11, fontweight="bold")
        title.set(va="top", in_layout=False)
        missing = make_drawable(figure)
        fit(title, room)
        title_box = title.get_window_extent(renderer)
        legend = self._legend(room, renderer)
        head = title_box.height / dpi + 0.06
        beside = legend is not None and (
            title_box.width + legend.get_window_extent(renderer).width + 0.3 * dpi < room * dpi
        )
        top_of_legend = 0.0
        if legend is not None:
            legend_height = legend.get_window_extent(renderer).height / dpi
            top_of_legend = 0.0 if beside else head
            head = max(head, legend_height + 0.06) if beside else head + legend_height + 0.06
        height += head
        figure.set_size_inches(width, height)
        title.set_position((_PAD / width, 1.0 - _PAD / height))
        if legend is not None:
            x = 1.0 - _PAD / width if beside else _PAD / width
            legend.set_loc("upper right" if beside else "upper left")
            legend.set_bbox_to_anchor((x, 1.0 - (_PAD + top_of_legend) / height), figure.transFigure)
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.06, h_pad=0.05, rect=(0.0, 0.0, 1.0, 1.0 - (head + 0.04) / height))
        return missing

    def _legend(self, room: float, renderer: Any) -> Legend | None:
        """Makes the legend of all panels, in as many columns as there is room for; None if nothing has a name."""
        marks = [mark for _, panel in self._places() if has_data(panel) for mark in self._drawn(panel)]
        entries = legend_entries(marks, self._palette)
        if not entries:
            return None
        for columns in range(len(entries), 0, -1):
            legend = self._figure.legend(
                handles=[handle for _, handle in entries],
                labels=[str(number) for number in range(len(entries))],
                ncols=columns,
                columnspacing=1.6,
                loc="upper left",
            )
            # A name may begin with an underscore, which a legend would leave out.
            for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
                text.set_text(shorten(name, _SHOWN))
            legend.set_in_layout(False)
            make_drawable(self._figure)
            if columns == 1 or legend.get_window_extent(renderer).width / self._figure.dpi <= room:
                return legend
            legend.remove()
        return None
