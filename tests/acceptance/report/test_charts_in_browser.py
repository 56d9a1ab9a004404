"""The renderer of charts in a real browser, with a chart that has every mark: pointer, menus, address, files, keys."""

import csv
import io
import time

import numpy as np
import pytest
from PIL import Image

from mossa_jax.files.csv_text import csv_text
from mossa_jax.report.page.html_parts import CHART_SCRIPTS, STYLES, inlined, templates
from mossa_jax.report.page.interactive import packed, page_charts
from tests.support.browser import draw_all, errors, open_browser, overflows, requests, shown_at
from tests.support.every_mark import HOSTILE, every_mark

PAGE = """{% from "chart.html.j2" import chart with context %}<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
style-src 'unsafe-inline'; img-src data: blob:"><link rel="icon" href="data:,"><title>whole</title>
<style>{{ style | safe }}</style></head><body><main>
<p><a id="link" href="#every" data-view="estimator=biased&amp;mark=1-2">the evidence</a></p>
<div style="height:3000px"></div>{{ chart("every") }}{{ chart("second") }}<div style="height:3000px"></div></main>
<script type="text/plain" id="plotly">{{ plotly }}</script>
<script>document.documentElement.classList.add("js");</script><script>{{ script | safe }}</script></body></html>"""
LINES, POINTS, BARS, HEAT = ("x", "y"), ("x2", "y2"), ("x3", "y3"), ("x4", "y4")


@pytest.fixture(scope="module")
def chart():
    return every_mark()


@pytest.fixture(scope="module")
def path(chart, tmp_path_factory):
    from plotly.offline import get_plotlyjs

    charts = page_charts({"every": chart, "second": chart}, {})
    text = (
        templates()
        .from_string(PAGE)
        .render(
            charts={**charts, "second": charts["second"] | {"name": "second"}},
            style=inlined(*STYLES),
            script=inlined(*CHART_SCRIPTS),
            plotly=packed(get_plotlyjs()),
        )
    )
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def started(downloads, tmp_path_factory):
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    yield driver
    driver.quit()


@pytest.fixture
def browser(started, path):
    """The page, opened anew and drawn."""
    started.get("about:blank")
    started.get(path.as_uri())
    draw_all(started)
    return started


def script(driver, text, *arguments):
    return driver.execute_script(f"return {text}", *arguments)


def pointed(driver, axes, x, y):
    """Moves the pointer to a place of a panel; returns what the chart then shows."""
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 1, "y": 1})
    left, top = driver.execute_script(
        """
        const place = document.querySelector('#every .drawing'), layout = place._fullLayout;
        place.scrollIntoView({block: 'center', behavior: 'instant'});
        const axis = (name) => layout[name[0] + 'axis' + name.slice(1)];
        const [across, up] = [axis(arguments[0]), axis(arguments[1])], frame = place.getBoundingClientRect();
        return [frame.left + across._offset + across.c2p(arguments[2]), frame.top + up._offset + up.c2p(arguments[3])];
        """,
        *axes,
        x,
        y,
    )
    for offset in (2, 0):
        move = {"type": "mouseMoved", "x": left + offset, "y": top + offset / 2}
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", move)
        time.sleep(0.15)
    return script(
        driver,
        "[...document.querySelectorAll('#every .hoverlayer .hovertext')]"
        ".map((e) => [...e.querySelectorAll('tspan.line')].map((l) => l.textContent).join('|') || e.textContent)"
        ".join('/')",
    )


def values_of(driver, chart="every"):
    return script(
        driver,
        "Object.fromEntries([...document.querySelectorAll(`#${arguments[0]} [data-key]`)]"
        ".map((e) => [e.dataset.key, e.value]))",
        chart,
    )


def choose(driver, key, value, chart="every"):
    driver.execute_async_script(
        """
        const control = document.querySelector(`#${arguments[0]} [data-key=${arguments[1]}]`), done = arguments[3];
        control.value = arguments[2];
        control.dispatchEvent(new Event(control.type === 'search' ? 'input' : 'change'));
        window.mossa.charts.get(arguments[0]).drawing.then(() => done());
        """,
        chart,
        key,
        value,
    )


def names_of_rows(driver):
    return script(driver, "[...document.querySelector('#every .drawing').layout.yaxis4.ticktext]")


def traces(driver, kind):
    return script(driver, "document.querySelector('#every .drawing').data.filter((t) => t.type === arguments[0])", kind)


def test_the_page_draws_every_mark_without_an_error_or_a_request(browser):
    assert errors(browser) == [] and requests(browser) == []
    assert {trace["type"] for kind in ("scatter", "box", "bar", "heatmap") for trace in traces(browser, kind)} == {
        "scatter", "box", "bar", "heatmap"
    }  # fmt: skip
    assert "Nothing was measured." in script(browser, "document.querySelector('#every .drawing').textContent")


def test_the_pointer_finds_points_lines_bars_and_medians(browser):
    assert pointed(browser, POINTS, 0.5, 10.0) == "t[U+200B]1|value 2"
    assert pointed(browser, LINES, 2, 0.3) == "line 2|value 0.0"
    assert pointed(browser, BARS, 1.5, 1) == "bar b"
    assert pointed(browser, LINES, 0.86, 0.3).startswith("spread|median 0.300")


def test_the_pointer_finds_defined_undefined_and_hatched_cells(browser):
    assert pointed(browser, HEAT, 2, 0) == "row one|value 0.300"
    assert pointed(browser, HEAT, 1, 0) == "row one|undefined: no variance"
    assert pointed(browser, HEAT, 0, 0) == "row one|value 0.100"


def test_few_values_are_points_with_a_line_at_their_median(browser):
    (box,) = traces(browser, "box")
    assert box["q1"] == [0.2] and box["median"] == [0.3] and box["q3"] == [0.4]
    assert any(trace.get("y") == [0.6, 0.6, None] for trace in traces(browser, "scatter"))
    assert pointed(browser, LINES, *script(browser, """(() => {
        const points = document.querySelector('#every .drawing').data.find((t) => (t.text || []).includes('few b'));
        const i = points.text.indexOf('few b');
        return [points.x[i], points.y[i]];
    })()""")) == "few b"  # fmt: skip


def test_names_stay_text(browser):
    choose(browser, "task", HOSTILE)
    assert script(browser, "document.querySelectorAll('main img[src=x]').length") == 0
    assert script(browser, "document.title") == "whole"
    assert pointed(browser, POINTS, 0.9, 100.0) == HOSTILE


def test_the_estimator_is_the_same_in_all_charts(browser):
    choose(browser, "estimator", "biased")
    assert values_of(browser, "second")["estimator"] == "biased"
    assert pointed(browser, HEAT, 2, 0) == "row one|value 0.400"


def test_a_mark_on_request_is_drawn_when_asked_for(browser):
    before = len(traces(browser, "scatter"))
    choose(browser, "task", "task one")
    assert len(traces(browser, "scatter")) == before + 1


def test_rows_are_searched_filtered_and_sorted(browser):
    choose(browser, "rows", "row t")
    assert names_of_rows(browser) == ["row three"]
    choose(browser, "rows", "nothing like it")
    assert "No row has this name." in script(browser, "document.querySelector('#every .drawing').textContent")
    choose(browser, "rows", "")
    choose(browser, "group", "right")
    assert "row one" not in names_of_rows(browser)
    choose(browser, "group", "")
    choose(browser, "sort", "mean")
    assert names_of_rows(browser)[:2] == ["row three", "row one"]
    assert pointed(browser, HEAT, 2, 0) == "row three|value 0.500"


def test_what_is_chosen_stands_in_the_address_which_opens_the_same(browser, path):
    choose(browser, "estimator", "biased")
    choose(browser, "task", HOSTILE)
    choose(browser, "sort", "name")
    wanted, address = values_of(browser), script(browser, "location.href")
    browser.get("about:blank")
    browser.get(address)
    draw_all(browser)
    assert values_of(browser) == wanted and wanted["task"] == HOSTILE
    assert errors(browser) == []


def test_a_link_of_the_text_opens_its_view_marks_its_layers_and_goes_back(browser):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_script("document.getElementById('link').click()")
    draw_all(browser)
    assert script(browser, "location.hash") == "#every?estimator=biased&mark=1-2"
    assert values_of(browser)["estimator"] == "biased"
    marked = script(
        browser, "document.querySelector('#every .drawing').layout.shapes.filter((s) => s.x0 === 0.5 && s.line)"
    )
    assert [shape["x1"] for shape in marked if shape["line"].get("dash") == "dot"] == [2.5, 2.5, 2.5]
    top = "document.getElementById('every').getBoundingClientRect().top"
    # Pages scroll smoothly.
    WebDriverWait(browser, 10).until(lambda _: -5 < script(browser, top) < 200)
    browser.back()
    assert script(browser, "location.hash") == ""


def test_an_address_that_names_what_there_is_not_opens_the_first_view(browser, path):
    browser.get("about:blank")
    browser.get(path.as_uri() + "#every?estimator=none&task=nobody&mark=90-91&x=%22%3E%3Cimg%20src=x%3E")
    draw_all(browser)
    assert values_of(browser)["estimator"] == "debiased" and values_of(browser)["task"] == ""
    assert errors(browser) == []


def saved(driver, downloads, kind):
    """Presses a button; returns the bytes of the file that it saves."""
    file = downloads / f"figure2_every.{kind}"
    file.unlink(missing_ok=True)
    driver.execute_script("document.querySelector(`#every [data-save=${arguments[0]}]`).click()", kind)
    for _ in range(150):
        if file.exists() and file.stat().st_size:
            return file.read_bytes()
        time.sleep(0.1)
    raise AssertionError(f"no {kind} was saved; there is {list(downloads.iterdir())}")


def test_the_csv_that_is_saved_is_the_csv_of_the_files(browser, chart, downloads):
    assert saved(browser, downloads, "csv").decode() == csv_text(chart.data)


def test_pictures_are_saved_as_svg_and_as_png_of_300_dpi(browser, downloads):
    svg = saved(browser, downloads, "svg").decode()
    assert svg.startswith("<svg") and "Every mark" in svg and "section" in svg
    with Image.open(io.BytesIO(saved(browser, downloads, "png"))) as png:
        assert np.allclose(png.info["dpi"], 300, atol=0.1)
        width = script(browser, "document.querySelector('#every .drawing').clientWidth")
        assert png.width == pytest.approx(width * 300 / 96, abs=4)


def test_arrow_keys_read_the_points_aloud(browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    place = browser.find_element(By.CSS_SELECTOR, "#every .drawing")
    browser.execute_script("arguments[0].focus({preventScroll: true})", place)
    heard = []
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN):
        place.send_keys(key)
        heard.append(script(browser, "document.querySelector('#every .reading').textContent"))
    assert heard[:2] == ["a", "b"] and heard[2].startswith("spread; median")
    assert script(browser, "document.querySelectorAll('#every .hoverlayer .hovertext').length") == 1


def test_the_table_of_numbers_has_the_rows_of_the_csv(browser, chart):
    cells = script(
        browser,
        "[...document.querySelectorAll('#every .numbers tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))",
    )
    names = [row[0] for row in csv.reader(io.StringIO(csv_text(chart.data)))][1:]
    assert [row[0] for row in cells] == [name.lstrip("'") for name in names]
    assert [row[1] for row in cells] == ["0.2500", "−0.5000", "–"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_the_charts_within_its_width(browser, scheme):
    with shown_at(browser, 390, scheme=scheme):
        time.sleep(0.4)
        draw_all(browser)
        assert overflows(browser) == []
        width = script(browser, "document.querySelector('#every .drawing').clientWidth")
        assert script(browser, "document.querySelector('#every .drawing').layout.width") == width
    assert errors(browser) == []


def test_a_chart_out_of_view_is_drawn_when_it_comes_near(started, path):
    started.get("about:blank")
    started.get(path.as_uri())
    for _ in range(100):
        if script(started, "document.documentElement.dataset.drawn") == "yes":
            break
        time.sleep(0.1)
    assert script(started, "window.Plotly === undefined")
    started.execute_script("document.getElementById('every').scrollIntoView({behavior: 'instant'})")
    for _ in range(100):
        if script(started, "Boolean(document.querySelector('#every svg .trace'))"):
            return
        time.sleep(0.1)
    raise AssertionError("the chart was not drawn")
