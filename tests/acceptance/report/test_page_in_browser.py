"""The report page in a real browser: what the pointer finds, where claims lead, who can read it, and hostile names."""

import base64
import re
from urllib.parse import parse_qs

import numpy as np
import pytest

from mossa_jax.findings.curves import HEADLINE
from mossa_jax.report import write_page
from mossa_jax.report.catalogue import all_charts
from mossa_jax.report.charts.grammar import Heat
from mossa_jax.report.numbers import between, fixed, p_value
from tests.support.browser import (
    PAPER,
    draw_all,
    errors,
    faults,
    hover,
    hover_texts,
    open_browser,
    overflows,
    printed,
    requests,
    shown_at,
    squeezed,
)
from tests.support.hostile_names import hostile_names
from tests.support.paper_like import SHAPES, Shape, paper_like, plain_clusters, planted_answers

# Three tasks a cluster are points, six are boxes; one cluster is held out, and three specialists learned nothing.
SMALL = Shape(
    clusters=plain_clusters(30, 8),
    held_out=("cluster07",),
    layers=8,
    incompetent=("task000", "task001", "task007"),
)


def write(folder, inputs):
    """Writes the page of a run with stand-ins for its figures, which take minutes to draw; returns its path."""
    from PIL import Image

    figures = folder / "figures"
    figures.mkdir()
    for chart in all_charts(inputs).values():
        Image.new("RGB", (2400, 1200), "#dddddd").save(figures / f"{chart.file}.png", dpi=(300, 300))
    write_page(folder / "report.html", inputs, figures)
    return folder / "report.html"


@pytest.fixture(scope="module")
def inputs():
    return paper_like(SMALL, answers=planted_answers(SMALL.places))


@pytest.fixture(scope="module")
def charts(inputs):
    return all_charts(inputs)


@pytest.fixture(scope="module")
def path(inputs, tmp_path_factory):
    return write(tmp_path_factory.mktemp("report"), inputs)


@pytest.fixture(scope="module")
def browser(path, tmp_path_factory):
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    driver.get(path.as_uri())
    draw_all(driver)
    yield driver
    driver.quit()


def script(driver, text, *arguments):
    return driver.execute_script(f"return {text}", *arguments)


def fresh(driver, path):
    """Opens a page as for the first time, at its head."""
    driver.get("about:blank")
    driver.get(path.as_uri())


def unfold(driver):
    """Opens what is folded, apart from the tables behind the charts, which have thousands of rows."""
    script(driver, "document.querySelectorAll('details:not(.numbers)').forEach((e) => { e.open = true; })")


def test_the_page_needs_nothing_but_itself(browser, path):
    text = re.sub(r"<script\b.*?</script>", "", path.read_text(), flags=re.S)
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?(?!data:|#)[a-z]""", text)
    assert "default-src 'none'" in text
    assert requests(browser) == [] and errors(browser) == []


def test_every_chart_of_the_run_is_on_the_page_in_order(browser, charts):
    shown = script(browser, "[...document.querySelectorAll('figure.chart')].map((e) => e.id)")
    assert sorted(shown) == sorted(charts) and len(charts) > 15
    for name in charts:
        marks = script(browser, "document.querySelectorAll(`#${arguments[0]} svg :is(.trace, .hm)`).length", name)
        assert marks, f"chart {name} is not drawn"


def test_the_pointer_finds_the_text_of_the_mark_below_it_in_every_chart(browser, charts):
    without = []
    for name, chart in charts.items():
        found = hover(browser, name)
        if found is None:
            without.append(name)
            continue
        wanted, shown = found
        assert squeezed(shown) in hover_texts(chart), f"{name}: {shown!r} instead of {wanted!r}"
    assert without == []


def heats(chart):
    return [mark for panel in chart.views[0].panels for mark in panel.marks if isinstance(mark, Heat)]


def test_the_pointer_finds_the_reason_of_an_undefined_cell_in_every_chart_of_cells(browser, charts):
    with_undefined = [
        name for name, chart in charts.items() if any(np.isnan(np.asarray(h.values, float)).any() for h in heats(chart))
    ]
    assert {"heatmap", "layer_matrix"} <= set(with_undefined)
    for name in with_undefined:
        _, shown = hover(browser, name, "undefined")
        assert "no variance" in shown and squeezed(shown) in hover_texts(charts[name])


def test_numbers_under_the_pointer_are_those_of_the_tables_to_the_printed_digits(browser, inputs, charts):
    """Of every chart: what has three digits is a number of the chart's CSV or a table of the results, rounded."""
    everything = [inputs.scores, inputs.change, *inputs.analyses.values()]
    checked = 0
    for name, chart in charts.items():
        _, shown = hover(browser, name)
        floats = [frame.select_dtypes("floating") for frame in (chart.data, inputs.table, *everything)]
        values = np.concatenate([frame.to_numpy().ravel() for frame in floats])
        values = values[np.isfinite(values)]
        for word in re.findall(r"(?<![\d.])[+−]?\d+\.\d{3}(?!\d)", shown):
            number = float(word.replace("−", "-"))
            assert np.min(np.abs(values - number)) <= 0.0005 + 1e-9, f"{name}: {word} of {shown!r} is in no table"
            checked += 1
    assert checked > 30


def own_cells(inputs, model):
    table = inputs.table
    rows = table[(table.control == table.task) & (table.experimental == model) & (table.estimator == HEADLINE)]
    return rows.set_index(["task", "layer"])


def test_the_heat_map_shows_value_interval_and_tests_of_the_tables_under_the_pointer(browser, inputs):
    _, shown = hover(browser, "heatmap", "n = 512")
    change = inputs.change[inputs.change.estimator == HEADLINE].set_index(["task", "layer"])
    task = next(name for name in inputs.tasks.task if name in shown)
    layer = re.search(r"layer (\d+)", shown).group(1)
    row = change.loc[(task, layer)]
    assert fixed(row.change, signed=True) in shown
    assert squeezed(between(row.low, row.high, signed=True)) in squeezed(shown)
    assert f"q {p_value(row.q)}" in shown
    for model in ("tuned", "pretrained"):
        assert fixed(own_cells(inputs, model).cka.loc[(task, layer)]) in shown


def state(driver, chart):
    """Returns what the controls of a chart say, by key."""
    return dict(
        script(
            driver,
            "[...document.querySelectorAll(`#${arguments[0]} [data-key]`)].map((e) => [e.dataset.key, e.value])",
            chart,
        )
    )


def arrived(driver, chart):
    """Waits until a chart is drawn; returns how far its upper edge is below that of the window."""
    from selenium.webdriver.support.ui import WebDriverWait

    is_drawn = "return window.mossa.charts.get(arguments[0]).isDrawn"
    WebDriverWait(driver, 30).until(lambda d: d.execute_script(is_drawn, chart))
    return driver.execute_async_script(
        "const chart = window.mossa.charts.get(arguments[0]), done = arguments[1];"
        "chart.drawing.then(() => setTimeout(() => done(chart.figure.getBoundingClientRect().top), 700))",
        chart,
    )


def test_every_claim_leads_to_its_view_of_its_chart(browser, path, charts):
    fresh(browser, path)
    links = script(
        browser,
        "[...document.querySelectorAll('.claim a[data-view]')].map((e) => [e.closest('.claim').id, "
        "e.getAttribute('href').slice(1).split('?')[0], e.dataset.view])",
    )
    assert len({claim for claim, _, _ in links}) >= 6
    for index, (claim, chart, view) in enumerate(links):
        assert chart in charts, f"{claim} leads to {chart}"
        script(browser, "document.querySelectorAll('.claim a[data-view]')[arguments[0]].click()", index)
        assert -5 < arrived(browser, chart) < 300, claim
        name, _, query = script(browser, "location.hash.slice(1)").partition("?")
        wanted = parse_qs(view)
        assert name == chart and parse_qs(query) == wanted, claim
        shown = state(browser, chart)
        for key in shown.keys() & wanted.keys():
            assert shown[key] == wanted[key][0], f"{claim}: {key} is {shown[key]}, not {wanted[key][0]}"
        assert wanted.keys() - shown.keys() <= {"mark"}, f"{claim}: {chart} has no control for {wanted}"
    # A co-author who is sent the address sees the same.
    address, before = script(browser, "location.href"), state(browser, chart)
    browser.get("about:blank")
    browser.get(address)
    assert -5 < arrived(browser, chart) < 300 and state(browser, chart) == before
    assert errors(browser) == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "dark"), (390, "light")])
def test_axe_finds_no_serious_fault_and_nothing_overflows(browser, path, width, scheme):
    with shown_at(browser, width, scheme=scheme):
        fresh(browser, path)
        draw_all(browser)
        unfold(browser)
        assert overflows(browser) == []
        assert faults(browser) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_word_is_explained_beside_it_within_the_window(browser, path, width):
    with shown_at(browser, width):
        fresh(browser, path)
        script(browser, "document.documentElement.style.scrollBehavior = 'auto'")
        boxes = browser.execute_script(
            "return [...document.querySelectorAll('.term')].filter((e) => e.checkVisibility()).map((term) => {"
            "  term.scrollIntoView({block: 'center'}); term.focus({preventScroll: true});"
            "  const box = term.querySelector('.definition').getBoundingClientRect();"
            "  return [box.left, box.right, box.top, box.bottom, box.height]; })"
        )
        page, window = script(browser, "[document.documentElement.scrollWidth, innerHeight]")
        assert len(boxes) > 15 and page <= width
        for left, right, top, bottom, height in boxes:
            assert height > 10 and left >= 0 and right <= width and top >= 0 and bottom <= window + 1


@pytest.mark.parametrize("paper", PAPER)
def test_nothing_is_cut_on_paper_and_what_is_folded_opens(browser, path, charts, paper):
    import pypdfium2

    fresh(browser, path)
    document = pypdfium2.PdfDocument(printed(browser, paper))
    text, pictures = "", 0
    for page in document:
        width, height = page.get_size()
        words = page.get_textpage()
        for index in range(words.count_rects()):
            left, bottom, right, top = words.get_rect(index)
            assert -1 <= left and right <= width + 1 and -1 <= bottom and top <= height + 1
        for picture in page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE]):
            left, bottom, right, top = picture.get_bounds()
            assert -1 <= left and right <= width + 1 and -1 <= bottom and top <= height + 1
            pictures += 1
        text += words.get_text_range()
    text = squeezed(text)
    assert pictures >= len(charts)
    # Every word of every table and every explanation that is folded on the screen.
    folded = script(
        browser,
        "[...document.querySelectorAll('details:not(.js-only) :is(td, th, dd, p, li)')]"
        ".filter((e) => !e.closest('.js-only, .on-screen') && !e.querySelector('.definition'))"
        ".map((e) => e.textContent)",
    )
    missing = {word for words in folded for word in words.split() if word not in text}
    assert len(folded) > 100 and missing == set()
    assert "hover" not in text.lower()


def test_the_page_is_readable_without_scripts(path, charts, inputs, tmp_path):
    driver = open_browser(tmp_path / "profile", scripts=False)
    try:
        driver.get(path.as_uri())
        from selenium.webdriver.common.by import By

        images = driver.find_elements(By.CSS_SELECTOR, "figure.chart img.static")
        assert len(images) == len(charts)
        assert all(image.is_displayed() and image.size["height"] > 100 for image in images if not in_details(image))
        for selector in (".drawing", ".controls", ".js-only", ".downloads"):
            assert not any(each.is_displayed() for each in driver.find_elements(By.CSS_SELECTOR, selector)), selector
        claims = driver.find_elements(By.CSS_SELECTOR, ".claim")
        titles = [claim.find_element(By.TAG_NAME, "details").text for claim in claims]
        for finding in inputs.analysis["findings"]:
            assert any(finding["title"] in title for title in titles), finding["title"]
        assert len(driver.find_elements(By.CSS_SELECTOR, "details.task, .task-card, [data-task]")) >= len(inputs.tasks)
    finally:
        driver.quit()


def in_details(element):
    return bool(element.find_elements("xpath", "ancestor::details"))


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(browser, path):
    from selenium.webdriver.common.keys import Keys

    fresh(browser, path)
    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    assert script(browser, "document.activeElement.className") == "skip"
    assert script(browser, "getComputedStyle(document.activeElement).outlineStyle") == "solid"
    unreachable = script(
        browser,
        "[...document.querySelectorAll('a, select, button, summary, input, .term, .drawing, .scroll')]"
        ".filter((e) => e.tabIndex < 0 && !e.closest('.modebar') && e.checkVisibility()).map((e) => e.outerHTML)",
    )
    assert unreachable == []


def hostile_shape():
    names = hostile_names(200)
    tasks, clusters, texts, facts = names[:40], names[40:60], names[60:180], names[180:]
    places = {cluster: tuple(tasks[index::20]) for index, cluster in enumerate(clusters)}
    shape = Shape(
        clusters=places,
        held_out=(clusters[-1],),
        layers=6,
        incompetent=tuple(tasks[:3]),
        facts={"base": facts[0], **dict(zip(facts[1::2], facts[2::2], strict=False))},
    )
    return shape, texts


def test_two_hundred_hostile_strings_create_no_element(browser, path, tmp_path):
    shape, texts = hostile_shape()
    inputs = paper_like(shape, answers=planted_answers(shape.places, texts))
    hostile = write(tmp_path, inputs)
    kinds = (
        "[...document.querySelectorAll('*')].map((e) => e.localName + ' ' + [...e.attributes]"
        ".map((a) => a.name).sort().join(' '))"
    )
    fresh(browser, path)
    draw_all(browser)
    unfold(browser)
    harmless = set(script(browser, kinds))
    try:
        browser.get(hostile.as_uri())
        draw_all(browser)
        unfold(browser)
        assert errors(browser) == [] and requests(browser) == []
        elements = {kind.split(" ")[0] for kind in script(browser, kinds)}
        assert elements <= {kind.split(" ")[0] for kind in harmless}
        events = script(
            browser,
            "[...document.querySelectorAll('*')].flatMap((e) => [...e.attributes].map((a) => a.name))"
            ".filter((name) => name.startsWith('on'))",
        )
        assert events == []
        targets = script(
            browser,
            "[...document.querySelectorAll('[href], [src], [action]')].map((e) => e.getAttribute('href') || "
            "e.getAttribute('src') || e.getAttribute('action')).filter((target) => !/^(#|data:|blob:)/.test(target))",
        )
        assert targets == []
        assert script(browser, "document.querySelectorAll('main script:not([type])').length") == 0
        # Names of characters that are none cannot leave the browser, so the page itself is asked.
        for text in ("<script>alert(1)</script>", "{{7*7}}"):
            assert script(browser, r"document.body.textContent.replace(/\s/g, '').includes(arguments[0])", text), text
    finally:
        browser.get(path.as_uri())
        draw_all(browser)


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("paper", "200 tasks", "80 layers")])
def test_a_page_of_an_odd_shape_opens_without_an_error(browser, path, tmp_path, name):
    inputs = paper_like(SHAPES[name])
    charts = all_charts(inputs)
    odd = write(tmp_path, inputs)
    try:
        browser.get(odd.as_uri())
        draw_all(browser)
        assert errors(browser) == []
        assert script(browser, "document.querySelectorAll('figure.chart').length") == len(charts)
        with shown_at(browser, 390):
            assert overflows(browser) == []
        text = script(browser, "document.body.innerText")
        assert not re.search(r"\b(nan|None|undefined undefined|inf)\b", text)
    finally:
        browser.get(path.as_uri())
        draw_all(browser)


def test_pictures_of_the_page_are_the_files(path, charts):
    text = path.read_text()
    pictures = re.findall(r'<img class="static"[^>]*src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == len(charts)
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


def test_boxes_of_the_page_have_numpys_quartiles(browser, inputs, charts):
    boxes = [mark for mark in charts["layers"].views[0].panels[0].marks if hasattr(mark, "boxes")]
    drawn = script(
        browser,
        "document.querySelector('#layers .js-plotly-plot').data.filter((t) => t.type === 'box' && t.q1)"
        ".map((t) => [...t.q1].map((q, n) => [q, t.median[n], t.q3[n]]))",
    )
    quartiles = [[box.quartiles for box in mark.boxes if box.is_box] for mark in boxes]
    assert np.allclose(np.concatenate(drawn), np.concatenate(quartiles), atol=1e-4)
