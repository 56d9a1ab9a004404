"""Small charts as SVG: where their points are, where lines break, and what they say to the pointer and the ear."""

import math
import re
import xml.etree.ElementTree as etree

import pytest

from mossa_jax.report.numbers import percent
from mossa_jax.report.page.sparkline import BOTTOM, LEFT, RIGHT, TOP, Sparkline, Trace

VALUES = [0.1, 0.25, None, 0.75, float("nan"), 0.9, 1.0]


def chart(**fields):
    values = [0.5, *VALUES[1:]]
    low, high = ([None if value is None else value + shift for value in values] for shift in (-0.1, 0.05))
    traces = (Trace("tuned", "tuned", values, low, high), Trace("ceiling", "ceiling", [0.9] * 7, dashed=True))
    plain = {"places": [*map(str, range(1, 7)), "norm"], "x": range(7), "traces": traces}
    return Sparkline(
        **({"title": "CKA by layer", "unit": "layer", "low": 0.0, "high": 1.0, "ticks": (0, 0.5, 1)} | plain | fields)
    )


def drawn(path):
    """Returns the values of the points of a path between 0 and 1, as [(share of the width, value)]."""
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)]
    return [((x - LEFT) / (RIGHT - LEFT), (BOTTOM - y) / (BOTTOM - TOP)) for x, y in points]


@pytest.fixture
def svg():
    return etree.fromstring(str(chart().svg()))


def test_points_stand_where_their_values_are_and_lines_break_where_there_is_none(svg):
    (line,) = svg.findall(".//path[@class='line tuned']")
    points = drawn(line.get("d"))
    wanted = [(place / 6, value) for place, value in enumerate([0.5, *VALUES[1:]]) if value and not math.isnan(value)]
    assert [at for point in points for at in point] == pytest.approx([at for pair in wanted for at in pair], abs=1e-3)
    assert line.get("d").count("M") == 3 and line.get("d").count("h0") == 1  # the lone point has round ends
    (band,) = svg.findall(".//path[@class='band tuned']")
    upper, lower = drawn(band.get("d"))[:2], drawn(band.get("d"))[2:4]
    assert [value for _, value in upper] == pytest.approx([0.55, 0.3], abs=1e-3)
    assert [value for _, value in lower] == pytest.approx([0.15, 0.4], abs=1e-3)
    assert svg.findall(".//path[@class='line ceiling dashed']")


def test_the_pointer_finds_every_place_with_its_values(svg):
    strips = svg.findall(".//g[@class='hits']/rect")
    texts = [strip.findtext("title") for strip in strips]
    assert texts[1] == "layer 2\ntuned 0.250 (0.150 to 0.300)\nceiling 0.900"
    assert texts[2] == texts[4].replace("5", "3") == "layer 3\ntuned undefined\nceiling 0.900"
    ends = [(float(strip.get("x")), float(strip.get("width"))) for strip in strips]
    assert ends[0][0] == LEFT and sum(width for _, width in ends) == pytest.approx(RIGHT - LEFT, abs=0.5)


def test_a_reader_who_cannot_see_it_hears_the_ends_and_extremes_of_every_line(svg):
    said = svg.get("aria-label")
    assert svg.get("role") == "img" and said.startswith("CKA by layer. tuned: 0.500 at layer 1, 1.000 at layer norm, ")
    assert "between 0.250 and 1.000. ceiling: 0.900 at layer 1" in said


def test_nothing_and_a_single_value_are_drawn_and_said():
    empty = chart(traces=(Trace("tuned", "tuned", [None] * 7),))
    assert "tuned: undefined." in empty.text() and 'class="line' not in empty.svg()
    lone = chart(places=["3"], x=[3], traces=(Trace("tuned", "tuned", [0.25]),), write=percent)
    assert lone.text() == "CKA by layer. tuned: 25 % at layer 3." and lone.svg().count("<rect") == 1


def test_texts_in_it_are_no_markup():
    svg = chart(title='"><script>alert(1)</script>', places=["<b>"] * 7).svg()
    assert "<script" not in svg and "<b>" not in svg
    assert etree.fromstring(str(svg)).findtext("g/rect/title").startswith("layer <b>\n")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 34, 82])
def test_the_axis_names_its_ends_and_a_few_places_between(count):
    traces = (Trace("tuned", "tuned", [0.5] * count),)
    svg = etree.fromstring(str(chart(places=[*map(str, range(count))], x=range(count), traces=traces).svg()))
    names = [int(text.text) for text in svg.findall(".//text[@class='x']")]
    assert names[0] == 0 and names[-1] == count - 1 and 1 <= len(names) <= 6 and names == sorted(set(names))
