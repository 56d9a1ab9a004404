"""Charts as figures: what is drawn is what the chart says, nothing is cut, nothing lies over the data."""

from itertools import pairwise

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from mossa_jax.report import STYLE_SHEET
from mossa_jax.report.charts.grammar import (
    Axis,
    Bars,
    Boxes,
    Chart,
    Heat,
    Line,
    Panel,
    Points,
    Rule,
    Span,
    View,
    box,
    boxes,
)
from mossa_jax.report.drawing import marks
from mossa_jax.report.drawing.saving import picture
from mossa_jax.report.drawing.static import draw
from mossa_jax.report.palette import ROLES, make_palette


def chart(*panel_marks, x=None, y=None, columns=1, panels=None, **fields):
    """Builds a chart of one panel with these marks, or of `panels`."""
    panels = panels or (Panel(x or Axis("x"), y or Axis("y"), panel_marks, title="A panel"),)
    return Chart("name", "A title", "A caption", (View(tuple(panels), columns=columns),), pd.DataFrame(), **fields)


def texts(figure):
    """Returns the visible texts of a figure."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def words(figure):
    return " | ".join(text.get_text() for text in texts(figure))


def collection(axes, label):
    """Returns what a collection of the axes draws, [parts, points, 2]; empty if there is none of this label."""
    parts = [path.vertices for item in axes.collections if item.get_label() == label for path in item.get_paths()]
    return np.array(parts)


def assert_nothing_is_cut(figure):
    """Checks that all of a figure lies on it; labels of ticks beyond the ends of an axis are not drawn."""
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    above = [text for text in (*figure.texts, figure._supxlabel, figure._supylabel) if text is not None]
    for part in (*figure.axes, *above, *figure.legends):
        extent = part.get_tightbbox()
        assert extent.x0 >= -1 and extent.y0 >= -1, part
        assert extent.x1 <= width + 1 and extent.y1 <= height + 1, part


@pytest.mark.parametrize("seed", range(10))
def test_boxes_are_drawn_at_numpys_quartiles_with_whiskers_within_three_halves_of_their_range(seed):
    rng = np.random.default_rng(seed)
    columns = [rng.standard_t(2, rng.integers(5, 40)) for _ in range(6)]
    axes = draw(chart(boxes(columns, name="all", role="tuned", shift=0.2))).axes[0]
    bodies, medians = collection(axes, marks.QUARTILES), collection(axes, marks.MEDIANS)
    stems = collection(axes, marks.WHISKERS).reshape(6, 2, 2, 2, 2)[:, :, 0]  # [boxes, lower and upper, ends, x and y]
    outliers = [line for line in axes.lines if line.get_label() == marks.OUTLIERS]
    beyond = 0
    for at, values in enumerate(columns):
        low, median, high = np.percentile(values, [25, 50, 75])
        inside = values[(values >= low - 1.5 * (high - low)) & (values <= high + 1.5 * (high - low))]
        assert np.allclose([bodies[at, :, 1].min(), medians[at, 0, 1], bodies[at, :, 1].max()], [low, median, high])
        assert np.allclose(stems[at, :, 1, 1], [min(inside.min(), low), max(inside.max(), high)])
        assert np.allclose(stems[at, :, :, 0], at + 0.2)
        beyond += len(values) - len(inside)
    assert sum(len(line.get_ydata()) for line in outliers) == beyond


def test_fewer_than_five_values_are_points_with_a_line_at_their_median():
    axes = draw(chart(boxes([[0.1, 0.4, 0.9, 0.5], [0.2]], name="few", role="tuned"))).axes[0]
    assert not len(collection(axes, marks.QUARTILES))
    (points,) = [line for line in axes.lines if line.get_label() == marks.FEW]
    assert points.get_ydata().tolist() == [0.1, 0.4, 0.9, 0.5, 0.2]
    assert collection(axes, marks.MEDIANS)[:, :, 1].tolist() == [[0.45, 0.45], [0.2, 0.2]]


def test_a_line_is_broken_where_it_is_undefined_and_has_its_band():
    line = Line(
        name="a", role="tuned", x=[0, 1, 2], y=[0.1, None, 0.3], low=[0, 0, 0.2], high=[0.2, 0, 0.4], dash="dash"
    )
    axes = draw(chart(line)).axes[0]
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, False]
    assert to_rgba(axes.lines[0].get_color()) == to_rgba(ROLES["tuned"]) and axes.lines[0].is_dashed()
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == 0.4


@pytest.mark.parametrize("symbol", marks.SYMBOLS)
def test_points_have_their_symbol_and_intervals(symbol):
    points = Points(x=[1, 2], y=[3, 4], x_low=[0, 1], x_high=[2, 3], y_low=[2, 3], y_high=[4, 6], symbol=symbol)
    axes = draw(chart(points)).axes[0]
    assert axes.lines[0].get_marker() == marks.SYMBOLS[symbol]
    level, upright = (np.array([path.vertices for path in item.get_paths()]) for item in axes.collections)
    assert level[:, :, 0].tolist() == [[0, 2], [1, 3]] and upright[:, :, 1].tolist() == [[2, 4], [3, 6]]


@pytest.mark.parametrize("is_level", [False, True])
def test_bars_stand_or_lie_on_their_base(is_level):
    at, length = [0, 1], [0.3, 0.5]
    bars = Bars(
        x=length if is_level else at, y=at if is_level else length, base=[0.0, 0.3], level=is_level, role="#123456"
    )
    axes = draw(chart(bars)).axes[0]
    begin, size = ("get_x", "get_width") if is_level else ("get_y", "get_height")
    assert [(getattr(bar, begin)(), getattr(bar, size)()) for bar in axes.patches] == [(0.0, 0.3), (0.3, 0.5)]


def test_a_heat_map_hatches_what_is_marked_and_says_what_is_undefined():
    heat = Heat(
        values=np.array([[0.5, np.nan], [-0.2, 0.1]]),
        scale="change",
        hatched=np.array([[False, True], [True, False]]),
        hatched_name="not significant",
        groups=("one", "two"),
        faint_rows=(1,),
        bar="change",
    )
    panel = Panel(Axis("layer", ("1", "2")), Axis(names=("first", "second"), reverse=True), (heat,))
    figure = draw(chart(panels=[panel]))
    axes = figure.axes[0]
    # An undefined cell has a ground of its own.
    assert collection(axes, marks.HATCHED)[:, :4].mean(axis=1).tolist() == [[0.0, 1.0]]
    assert axes.images[0].norm.vmin == -0.5 and axes.images[0].norm.vmax == 0.5 and axes.images[0].cmap.name == "PuOr_r"
    assert axes.yaxis_inverted()
    shown = words(figure)
    assert all(text in shown for text in ("not significant", "undefined", "left out", "one", "two", "change"))
    colours = {label.get_text(): label.get_color() for label in axes.get_yticklabels()}
    assert colours["first"] != colours["second"]


def test_each_group_of_rows_is_named_once():
    groups = ("a cluster",) * 5 + ("another cluster",) * 3
    heat = Heat(values=np.eye(8), groups=groups)
    names = tuple(f"task {row}" for row in range(8))
    figure = draw(chart(panels=[Panel(Axis(names=names), Axis(names=names, reverse=True), (heat,))]))
    assert words(figure).count("a cluster") == 1 and words(figure).count("another cluster") == 1
    assert_nothing_is_cut(figure)


def test_heat_maps_of_one_scale_share_its_bar_and_others_have_their_own():
    def figure(*highs):
        heats = [Heat(values=np.eye(2), high=high, bar="CKA") for high in highs]
        panels = [Panel(Axis(names=("1", "2")), Axis(names=("1", "2")), (heat,)) for heat in heats]
        return draw(chart(panels=panels, columns=2))

    assert len(figure(1.0, 1.0).axes) == 3 and len(figure(1.0, 0.5).axes) == 4


def test_sections_and_rules_are_drawn_behind_the_data_and_named_beside_it():
    line = Line(name="data", x=[0, 1, 2], y=[0, 1, 0])
    figure = draw(
        chart(
            Span(role="shared", low=-0.5, high=0.5, label="shared"),
            Span(role="ink", axis="y", low=-0.1, high=0.1, label="no change"),
            Rule(at=1.5, axis="x", dash="dot", label="half"),
            Rule(axis="diagonal", label="equal"),
            line,
            x=Axis("layer", ("1", "2", "3")),
        )
    )
    axes = figure.axes[0]
    (data,) = [item for item in axes.lines if len(item.get_xdata()) == 3]
    assert all(patch.get_zorder() < data.get_zorder() for patch in axes.patches)
    frame = axes.get_window_extent()
    places = {text.get_text(): text.get_window_extent() for text in texts(figure)}
    assert places["shared"].y0 >= frame.y1 and places["half"].y0 >= frame.y1 and places["no change"].x0 >= frame.x1
    assert "equal" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert_nothing_is_cut(figure)


def test_names_of_narrow_sections_do_not_meet_each_other_or_the_title():
    spans = [Span(low=at - 0.5, high=at + 0.5, label=f"a long name {at}") for at in range(4)]
    panel = Panel(Axis(names=("1", "2", "3", "4")), Axis("y"), (*spans, Line(x=[0, 3], y=[0, 1])), title="A title")
    figure = draw(chart(panels=[panel], width=3.0))
    above = [text for text in texts(figure) if text.get_text().startswith(("a long", "A title")) and text.axes]
    boxes_of = [text.get_window_extent() for text in above]
    assert len(above) == 5
    assert not any(one.overlaps(other) for n, one in enumerate(boxes_of) for other in boxes_of[n + 1 :])


def test_a_note_does_not_meet_a_long_title():
    title = "norm of the update / norm of the base's projections, and more"
    panel = Panel(Axis("x"), Axis("y"), (Line(x=[0, 1], y=[0, 1]),), title=title, note="17 tasks, 3 left out")
    figure = draw(chart(panels=[panel], width=4.0))
    above, note = (text for text in texts(figure) if text.get_text()[:4] in ("norm", "17 t"))
    lines = above.get_text().split("\n")
    # The line of the note is left blank.
    assert lines.pop() == "" and " ".join(lines) == title
    extent = above.get_window_extent()
    assert extent.y0 + extent.height / (len(lines) + 1) >= note.get_window_extent().y1 - 3


def test_the_legend_lies_beside_the_axes_and_the_title_and_names_each_colour_once():
    lines = [
        Line(name=f"a line of number {n} with a long name", role="#%06x" % (n * 99999), x=[0, 1], y=[n, 1])
        for n in range(9)
    ]
    hidden = Line(name="on request", role="tuned", x=[0, 1], y=[0, 99], on_request="t")
    twice = Points(name="a line of number 0 with a long name", role="#000000", x=[0], y=[0])
    figure = draw(chart(*lines, twice, hidden))
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(named) == len(set(named)) == 9 and figure.axes[0].get_ylim()[1] < 20
    legend, title = figure.legends[0].get_window_extent(), figure.texts[0].get_window_extent()
    assert not legend.overlaps(title)
    assert not any(legend.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert_nothing_is_cut(figure)


def test_faint_marks_are_grey_and_roles_take_the_colours_of_the_palette():
    panel = (Line(role="tuned", x=[0, 1], y=[0, 1]), Line(role="tuned", x=[0, 1], y=[1, 0], faint=True))
    axes = draw(chart(*panel), palette=make_palette({"tuned": "#123456"})).axes[0]
    colours = [to_rgba(line.get_color()) for line in axes.lines]
    assert colours[0] == to_rgba("#123456") and len(set(colours[1][:3])) == 1


def test_panels_share_the_labels_of_axes_that_are_equal():
    panels = [
        Panel(Axis("layer", ("1", "2")), Axis("CKA", low=0, high=1), (Line(x=[0, 1], y=[0, n / 4]),)) for n in range(4)
    ]
    figure = draw(chart(panels=panels, columns=2))
    figure.draw_without_rendering()
    assert words(figure).count("layer") == words(figure).count("CKA") == 1
    shown = [
        tuple(any(tick.label1.get_visible() for tick in axis.majorTicks) for axis in (axes.xaxis, axes.yaxis))
        for axes in figure.axes
    ]
    assert shown == [(False, True), (False, False), (True, True), (True, False)]


def test_axes_can_be_shares_logarithmic_reversed_or_bare():
    def axes(**axis):
        figure = draw(chart(Line(x=[1, 2], y=[0.01, 0.9]), y=Axis("y", **axis)))
        figure.draw_without_rendering()
        return figure.axes[0]

    assert "40 %" in [label.get_text() for label in axes(percent=True, low=0, high=1).get_yticklabels()]
    assert axes(log=True).get_yscale() == "log" and axes(reverse=True).yaxis_inverted()
    assert axes(low=-1, high=2).get_ylim() == (-1, 2) and not len(axes(ticks=False).get_yticks())


def test_a_panel_without_data_says_so_and_keeps_its_title():
    panels = [Panel(Axis("x"), Axis("y"), (Rule(at=0.5),), title="Empty", empty="Nothing was measured.")]
    figure = draw(chart(panels=panels))
    assert "Nothing was measured." in words(figure) and "Empty" in words(figure)
    undefined = boxes([[np.nan], [None]])
    assert "Nothing is defined here." in words(draw(chart(undefined)))


@pytest.mark.parametrize("layers", [8, 33, 80])
def test_layers_are_labelled_as_far_as_there_is_room(layers):
    names = ("emb", *(str(n) for n in range(1, layers + 1)), "norm")
    marks_of = [
        boxes(np.random.default_rng(0).random((layers + 2, 7)), role=role, shift=shift)
        for role, shift in (("pretrained", -0.2), ("tuned", 0.2))
    ]
    figure = draw(chart(*marks_of, x=Axis("layer", names), width=7.0))
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    places = [label.get_window_extent() for label in labels]
    assert {"emb", "norm"} <= {label.get_text() for label in labels} and len(labels) >= 8
    digits = [place for label, place in zip(labels, places, strict=True) if label.get_text().isdigit()]
    assert not any(one.overlaps(other) for one, other in pairwise(digits))
    assert_nothing_is_cut(figure)


@pytest.mark.parametrize("tasks", [1, 24, pytest.param(200, marks=pytest.mark.slow)])
def test_rows_of_tasks_are_labelled_whole_and_nothing_is_cut(tasks):
    names = tuple(f"task{n}_with_a_name_of_forty_eight_characters_{n:05}" for n in range(tasks))
    heat = Heat(values=np.zeros((tasks, 9)), groups=tuple(f"reading comprehension {n // 7}" for n in range(tasks)))
    panel = Panel(Axis("layer", tuple("123456789")), Axis(names=names, reverse=True), (heat,))
    figure = draw(chart(panels=[panel], width=7.4, height=1.5 + 0.17 * tasks))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(names)
    assert figure.axes[0].get_window_extent().width / figure.dpi > 3.0
    assert_nothing_is_cut(figure)


def test_a_name_is_text_whatever_it_holds():
    names = (r"$\frac{1}$", "cost_$5$", "_begins_with_an_underscore", "a\nb", "x" * 300)
    panel = Panel(
        Axis("x"), Axis(names=names), (Points(name="_hidden?", x=[0] * 5, y=range(5)),), title=r"$\alpha", note="$"
    )
    figure = draw(chart(panels=[panel]))
    shown = words(figure)
    assert all(name in shown for name in (r"$\frac{1}$", "cost_$5$", "_begins_with", "a↵b", r"$\alpha", "_hidden?"))
    assert_nothing_is_cut(figure)


def test_equal_charts_give_equal_files_with_300_dots_per_inch():
    import io

    from PIL import Image

    def files():
        figure = draw(chart(Line(name="a", x=[0, 1], y=[0, 1]), Heat(values=np.eye(2))))
        return [picture(figure, suffix, "A title") for suffix in ("png", "svg", "pdf")]

    first, second = files(), files()
    assert first == second
    with Image.open(io.BytesIO(first[0])) as image:
        assert np.allclose(image.info["dpi"], 300, atol=0.01) and image.width == 2400
    assert b"A title" in first[1] and b"matplotlib v" not in first[1] and b"<text" not in first[1]


def test_the_style_sheet_is_one_that_matplotlib_takes():
    with mpl.rc_context():
        mpl.style.use(STYLE_SHEET)
        assert mpl.rcParams["savefig.dpi"] == 300 and not mpl.rcParams["axes.spines.top"]


def test_a_box_keeps_all_its_values():
    summary = box(0.0, [3.0, np.nan, 1.0, None, 2.0])
    assert summary.values == (3.0, 1.0, 2.0) and isinstance(Boxes(boxes=(summary,)), Boxes)
