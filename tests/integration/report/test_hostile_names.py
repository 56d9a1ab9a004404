"""Names of any characters are drawn and shown as something visible, as text and nothing else."""

import base64
import gzip
import html.parser
import json
import logging
import re
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.t2CharStringPen import T2CharStringPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from mossa_jax.foreign import is_hidden, visible
from mossa_jax.report import write_figures, write_page
from mossa_jax.report.catalogue import all_charts
from mossa_jax.report.drawing import glyphs
from mossa_jax.report.drawing.saving import picture, settle
from mossa_jax.report.drawing.static import draw as draw_chart
from mossa_jax.report.drawing.style import figure_style, new_figure
from tests.support.hostile_names import hostile_names
from tests.support.planted_report import report_change, report_inputs, report_scores, report_table


class Page(html.parser.HTMLParser):
    """Collects the elements and the texts of a page."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.attributes, self._inside = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes
        self._inside.append(tag)

    def handle_data(self, data):
        if self._inside and self._inside[-1] not in ("script", "style"):
            self.texts.append(data)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass


def planted(names):
    """Builds the report of a run whose tasks and clusters have these names."""
    sizes = (2,) * (len(names) // 4)
    places = [f"t{task:02}" for task in range(sum(sizes))] + [f"c{cluster:02}" for cluster in range(len(sizes))]
    table = report_table(sizes, 3, (1, 2), held_out=1, names=dict(zip(places, names, strict=False)))
    about = {"facts": {"base": names[-1]}, "command": names[-2]}
    scores = report_scores(table, (names[1],))
    return report_inputs(table, scores, report_change(table), **about)


def page_of(inputs, folder):
    write_page(folder / "page.html", inputs, folder)
    return (folder / "page.html").read_text(encoding="utf-8")


def check_report(names, folder):
    """Checks that nothing warns, that no element and no hidden character comes from a name, and that names are told."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    for logger in ("matplotlib", "fontTools"):
        logging.getLogger(logger).addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inputs = planted(names)
            write_figures(inputs, folder)
            page = Page(text := page_of(inputs, folder))
    finally:
        for logger in ("matplotlib", "fontTools"):
            logging.getLogger(logger).removeHandler(handler)
    assert not messages
    plain = Page(page_of(planted([f"n{number}" for number in range(len(names))]), folder))
    assert set(page.elements) == set(plain.elements)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [value for _, value in page.attributes if value and value.lower().lstrip().startswith("javascript:")]
    shown = "".join(page.texts)
    assert not {char for char in shown if is_hidden(char)} - {"\n"}
    packs = re.findall(r'<script type="text/plain" class="packed">(.*?)</script>', text, re.S)
    charts = [json.loads(gzip.decompress(base64.b64decode(pack))) for pack in packs]
    (rows,) = {tuple(chart["views"][0]["panels"][0]["y"]["names"]) for chart in charts if chart["name"] == "heatmap"}
    tasks = {re.sub(r" \((held out|left out|held out, left out)\)$", "", row) for row in rows}
    assert tasks == {visible(name) for name in names[: len(tasks)]}
    assert not {char for chart in charts for char in json.dumps(chart["views"], ensure_ascii=False) if is_hidden(char)}
    assert all(visible(name) in shown for name in names[: len(tasks)] if visible(name) == visible(name).strip())


def test_a_report_with_hostile_names_is_drawn_in_silence_and_holds_text_alone(tmp_path):
    check_report(hostile_names(14, seed=1), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_thousand_hostile_names(tmp_path, part):
    check_report(hostile_names(1000)[100 * part :][:100], tmp_path)


def write_font(path, family, chars):
    """Writes a font of TrueType or, by its suffix, PostScript outlines, in which every character is a box."""
    is_postscript = path.suffix == ".otf"
    names = [".notdef", *(f"u{ord(char):X}" for char in chars)]
    builder = FontBuilder(1000, isTTF=not is_postscript)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(char): f"u{ord(char):X}" for char in chars})
    outlines = {}
    for name in names:
        pen = T2CharStringPen(600, None) if is_postscript else TTGlyphPen(None)
        pen.moveTo((100, 0))
        for corner in ((100, 700), (500, 700), (500, 0)):
            pen.lineTo(corner)
        pen.closePath()
        outlines[name] = pen.getCharString() if is_postscript else pen.glyph()
    if is_postscript:
        builder.setupCFF(family, {"FullName": family}, outlines, {})
    else:
        builder.setupGlyf(outlines)
    builder.setupHorizontalMetrics({name: (600, 100) for name in names})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800)
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Two fonts that matplotlib finds, for 任务 and for 日本."""
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist])
    for name, chars in (("one.ttf", "任务"), ("two.otf", "日本")):
        write_font(tmp_path / name, f"Boxes {name}", chars)
        fontManager.addfont(tmp_path / name)
    for cached in (glyphs._installed, glyphs._fonts):
        cached.cache_clear()
    yield
    for cached in (glyphs._installed, glyphs._fonts):
        cached.cache_clear()


def draw(title, ticks):
    with figure_style():
        figure = new_figure(4, 2)
        axes = figure.subplots()
        axes.set_title(title)
        axes.set_yticks(range(len(ticks)), ticks)
    return figure


def test_installed_fonts_draw_what_the_own_one_lacks_and_the_rest_is_spelt_out(installed, caplog):
    figure = draw("任务 of 日本 \U00020000", ["任日", "plain"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settle(figure) == {"\U00020000"}
        assert picture(figure, "pdf").startswith(b"%PDF")
    assert figure.axes[0].get_title(loc="left") + figure.axes[0].get_title() == "任务 of 日本 [U+20000]"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["任日", "plain"]
    assert not caplog.messages


def test_names_that_leave_no_room_are_cut_until_there_is_some():
    figure = draw("title", ["W" * 100, "plain"])
    figure.axes[0].tick_params(axis="y", labelsize=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settle(figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "…" in labels[0] and len(labels[0]) <= 60 and labels[1] == "plain"


def test_without_a_font_characters_are_spelt_out_and_this_is_said_once(tmp_path, caplog):
    caplog.set_level(logging.INFO, "mossa_jax")
    names = {"t00": "任务", "t01": "日本\u200b", "c00": "c\u202e"}
    table = report_table((1,) * 4, 3, None, held_out=0, names=names)
    inputs = report_inputs(table)
    if not glyphs.undrawable(["任务日本"]):
        pytest.skip("this machine has a font for them")
    write_figures(inputs, tmp_path)
    (line,) = [message for message in caplog.messages if message.startswith("figures:")]
    assert "任 U+4EFB" in line and "日 U+65E5" in line and "U+200B" not in line
    write_page(tmp_path / "page.html", inputs, tmp_path)
    assert "务 U+52A1" in (tmp_path / "page.html").read_text(encoding="utf-8")
    axes = draw_chart(all_charts(inputs)["heatmap"]).axes[0]
    shown = {label.get_text() for label in (*axes.get_yticklabels(), *axes.texts)}
    assert {"[U+4EFB U+52A1]", "[U+65E5 U+672C][U+200B]", "c[U+202E]"} <= shown


def test_a_figure_of_any_number_of_tasks_is_no_taller_than_a_picture_may_be():
    figure = new_figure(10.0, 0.2 * 20_000)
    width, height = figure.get_size_inches()
    assert width == 10.0 and height * 300 < 2**16
