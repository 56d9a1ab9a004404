"""The report page in a real browser: charts are drawn, switches work, hostile names stay text, scripts are optional."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.findings import find
from mossa_jax.monitoring.goodput import times
from mossa_jax.report import page as page_module
from mossa_jax.report import write_page
from mossa_jax.report.page import CAPTIONS
from tests.support.planted import NO_CURVES, NO_SCORES, planted_scores, planted_table, report_inputs

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = [
    "</script><img src=x onerror=\"document.title='broken'\">",
    "\"quoted' & <b>bold</b> {{ 7 * 7 }} <a href='https://example.org'>link</a>",
    "<!-- <script>document.title='broken'</script>",
]
CHARTS = ("layers", "heatmap", "ranking", "cluster", "held-out", "estimators", "training", "scores")


def write_stand_ins(folder):
    """Writes a picture for each static figure: the page only embeds them, and drawing the real ones takes long."""
    for index, name in enumerate(CAPTIONS):
        Image.new("RGB", (600, 200), (20 * index, 120, 160)).save(folder / f"{name}.png")


def planted_parity(layers=6):
    names = ["embed", *map(str, range(1, layers + 1)), "final_norm", "logits"]
    differences = [1.5e-7 * row for row in range(len(names))]
    return pd.DataFrame({"layer": names, "max_abs_difference": differences, "largest": 12.5})


def planted_times():
    """Returns two stages: 75 of 100 s useful on 8 devices in two attempts; 1 h 10 min, all useful, on one device."""
    first = {"stage": "controls", "devices": 8, "label": "", "step": 3}
    later = {"stage": "data", "devices": 1, "label": "", "step": 3, "attempt": 80.0}
    return times(
        [
            first | {"attempt": 0.0, "time": 60.0, "wall": 60.0, "useful": 45.0, "lost": {"compile": 15.0}},
            first | {"attempt": 80.0, "time": 120.0, "wall": 40.0, "useful": 30.0, "lost": {"restart": 10.0}},
            later | {"time": 4320.0, "wall": 4200.0, "useful": 4200.0, "lost": {}},
        ]
    )


def build(folder, **changes):
    names = HOSTILE + [f"task{i}_plain" for i in range(9)]
    table = planted_table(tasks=12, layers=6, held_out=2, breaks=(2, 4), names=names, **changes)
    table.loc[table.cluster == "Paraphrase", "cluster"] = "<svg onload=\"document.title='broken'\">"
    scores = planted_scores(table)
    write_stand_ins(folder)
    inputs = report_inputs(
        table,
        find(table, scores, draws=100),
        scores,
        parity=planted_parity(),
        facts={"base": "<i>model</i>", "layers": 6, "dtype": "bfloat16"},
        command="python -m launch.run --x='<u>'",
        versions={"jax": "<s>0.8</s>"},
        warnings=["<img src=x>"],
        times=planted_times(),
    )
    write_page(folder / "report.html", inputs, folder)
    return inputs, folder / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build(tmp_path_factory.mktemp("report"))


def test_page_refers_to_nothing_outside_itself(page):
    text = page[1].read_text()
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["']?(?!data:|#)[a-z]""", outside.split("<main>")[0])
    assert not re.search(r"https?://", outside.replace("https://example.org", ""))
    assert text.count("plotly.js v") == 1
    assert "default-src 'none'" in text
    assert page[1].stat().st_size < 6.5e6
    assert not list(page[1].parent.glob(".*.tmp"))


def test_style_and_script_are_in_the_page_as_written(page):
    text, folder = page[1].read_text(), Path(page_module.__file__).parent
    for name, closing in (("style.css", "</style"), ("charts.js", "</script")):
        inlined = (folder / name).read_text().strip()
        assert inlined in text and closing not in inlined and text.count(inlined) == 1


def test_the_data_is_embedded_once_and_escaped(page):
    table, path = page[0].table, page[1]
    blocks = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    assert len(blocks) == 1 and "<" not in blocks[0]
    data = json.loads(blocks[0])
    names = [task["name"] for task in data["tasks"]]
    assert set(HOSTILE) <= set(names)
    cell = table[(table.task == HOSTILE[0]) & (table.layer == "3") & (table.estimator == "biased")]
    expected = cell[cell.experimental == "tuned"].cka.item()
    drawn = data["cells"]["tuned"]["biased"]["cka"][names.index(HOSTILE[0])][data["layers"].index("3")]
    assert drawn == pytest.approx(expected, abs=1e-4)


def test_a_missing_figure_is_refused(page, tmp_path):
    with pytest.raises(Refusal) as refused:
        write_page(tmp_path / "r.html", page[0], tmp_path)
    assert refused.value.code == BAD_INPUT and not list(tmp_path.iterdir())


def open_browser(folder, scripts=True):
    if not (CHROMIUM and DRIVER):
        if os.environ.get("MOSSA_REQUIRE_BROWSER") == "1":
            pytest.fail("MOSSA_REQUIRE_BROWSER=1, but chromium or chromedriver is not installed")
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        f"disable-component-update disable-sync window-size=1400,1000 user-data-dir={folder}"
    ).split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    return webdriver.Chrome(service=Service(DRIVER), options=options)


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    driver.get(page[1].as_uri())
    yield driver
    driver.quit()


def errors(driver):
    return [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_every_chart_is_drawn_without_an_error(browser):
    assert errors(browser) == []
    assert browser.execute_script("return document.documentElement.dataset.drawn") == "yes"
    for name in CHARTS:
        marks = browser.execute_script(
            "return document.querySelectorAll(`#chart-${arguments[0]} svg :is(.trace, .hm)`).length", name
        )
        assert marks >= 2, f"chart {name} has {marks} drawn traces"
    boxes = browser.execute_script("return document.querySelectorAll('#chart-layers svg path.box').length")
    # Six blocks and the final norm, twice; the embedding is undefined.
    assert boxes == 14


def drawn(browser, chart, trace, key):
    script = "return Array.from(document.getElementById(arguments[0]).data[arguments[1]][arguments[2]]).flat()"
    return browser.execute_script(script, f"chart-{chart}", trace, key)


def choose(browser, select, value):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element(By.ID, select)).select_by_value(value)


def test_estimator_switch_changes_the_data(browser, page):
    before = drawn(browser, "layers", 1, "y")
    choose(browser, "estimator-layers", "biased")
    after = drawn(browser, "layers", 1, "y")
    table = page[0].table
    rows = table[~table.held_out & (table.experimental == "tuned") & table.cka.notna()]
    for values, estimator in ((before, "debiased"), (after, "biased")):
        expected = sorted(rows[rows.estimator == estimator].cka.round(4))
        assert sorted(values) == pytest.approx(expected, abs=1e-4)
    other = browser.execute_script("return document.getElementById('estimator-heatmap').value")
    assert other == "biased"
    choose(browser, "estimator-heatmap", "debiased")
    assert drawn(browser, "layers", 1, "y") == before


def test_views_of_layers_and_heatmap(browser):
    choose(browser, "layers-show", "difference")
    assert browser.execute_script("return document.getElementById('chart-layers').data.length") == 1
    choose(browser, "layers-task", "0")
    assert browser.execute_script("return document.getElementById('chart-layers').data.length") == 2
    difference = drawn(browser, "heatmap", 0, "z")
    choose(browser, "heatmap-show", "tuned")
    assert drawn(browser, "heatmap", 0, "z") != difference
    choose(browser, "heatmap-sort", "mean")
    rows = browser.execute_script("return document.getElementById('chart-heatmap').data[0].z")
    means = [sum(v for v in row if v is not None) / sum(v is not None for v in row) for row in rows]
    assert means == sorted(means, reverse=True)
    reasons = set(drawn(browser, "heatmap", 1, "text"))
    assert any("undefined" in text and "no variance" in text for text in reasons)
    assert errors(browser) == []


def test_hostile_names_create_no_element(browser):
    for selector in (
        "img:not(.static)",
        "section b",
        "section i",
        "section u",
        "section s",
        "a[href^=http]",
        "[onload]",
        "[onerror]",
    ):
        elements = browser.execute_script("return document.querySelectorAll(arguments[0]).length", selector)
        assert elements == 0, selector
    assert "Where multi-task learning happens" in browser.title
    body = browser.execute_script("return document.body.textContent")
    assert all(name in body for name in HOSTILE) and "{{ 7 * 7 }}" in body


def parity_section(browser):
    return browser.execute_script("return document.getElementById('parity').innerText")


def test_parity_has_a_row_per_layer_and_names_the_worst(browser):
    text = parity_section(browser)
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#parity tbody tr')].map((e) => [...e.children].map((c) => c.innerText))"
    )
    assert [row[0] for row in rows] == [*planted_parity().layer]
    assert rows[0][1:] == ["0", "12.5", "0"] and rows[2][1:] == ["3.0e-07", "12.5", "2.4e-08"]
    assert "9.6e-08 of the largest value, at logits" in text and "in bfloat16 against float32" in text
    assert "Not checked" not in text


def test_the_time_has_a_row_per_stage_with_a_bar_in_proportion(browser):
    text = browser.execute_script("return document.getElementById('time').innerText")
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#time tbody tr')].map((e) => [...e.children].map((c) => c.innerText))"
    )
    head = browser.execute_script("return [...document.querySelectorAll('#time thead th')].map((e) => e.innerText)")
    assert head[2:] == ["Attempts", "Time", "useful", "goodput", "restart", "compile"]
    assert rows == [
        ["controls", "", "2", "100.0 s", "75.0 s", "75 %", "10.0 s", "15.0 s"],
        ["data", "", "1", "1:10:00", "1:10:00", "100 %", "–", "–"],
        ["all", "", "", "1:11:40", "1:11:15", "99 %", "10.0 s", "15.0 s"],
    ]
    assert "1.39 device-hours in all, 1.33 of them useful (99 % of the time)" in text
    assert "Another 20.0 s belong to no stage" in text and "checkpoint" not in text
    bars = browser.execute_script(
        "return [...document.querySelectorAll('#time .bar')].map((e) => [e.getBoundingClientRect().width, "
        "[...e.children].map((c) => c.getBoundingClientRect().width)])"
    )
    for (whole, parts), shares in zip(bars, [(75, 10, 15), (4200, 0, 0), (4275, 10, 15)], strict=True):
        longest = sum(shares) if sum(shares) > 4200 else 4200
        assert parts == pytest.approx([whole * share / longest for share in shares], abs=0.5) and whole > 100


def test_nothing_is_offered_for_upload(browser):
    titles = browser.execute_script(
        "return [...document.querySelectorAll('.modebar-btn')].map((e) => e.dataset.title || e.ariaLabel || '')"
    )
    assert titles and not [title for title in titles if re.search("share|cloud|edit", title, re.I)]
    script = "return performance.getEntriesByType('resource').map((e) => e.name)"
    assert [name for name in browser.execute_script(script) if not name.startswith("data:")] == []


def test_the_page_is_readable_without_scripts(page, tmp_path):
    driver = open_browser(tmp_path / "profile", scripts=False)
    try:
        driver.get(page[1].as_uri())
        from selenium.webdriver.common.by import By

        images = driver.find_elements(By.CSS_SELECTOR, "img.static")
        assert len(images) == 7
        assert all(image.is_displayed() and image.size["height"] > 100 for image in images)
        assert not any(chart.is_displayed() for chart in driver.find_elements(By.CSS_SELECTOR, ".chart"))
        assert page[0].analysis["findings"][0]["sentence"] in driver.find_element(By.TAG_NAME, "main").text
    finally:
        driver.quit()


def test_a_page_with_nothing_defined_opens(browser, tmp_path):
    table = planted_table(tasks=3, layers=4, held_out=0).assign(cka=float("nan"), undefined="not finite")
    analysis = find(table, NO_SCORES, draws=20)
    write_stand_ins(tmp_path)
    inputs = report_inputs(table, analysis, NO_SCORES, curves=NO_CURVES, parity=HOSTILE[0])
    write_page(tmp_path / "r.html", inputs, tmp_path)
    browser.get((tmp_path / "r.html").as_uri())
    assert errors(browser) == []
    assert browser.execute_script("return document.documentElement.dataset.drawn") == "yes"
    chart = browser.execute_script("return document.getElementById('chart-layers').textContent")
    assert chart == "Nothing is defined here."
    assert f"Not checked: {HOSTILE[0]}." in parity_section(browser)
    assert browser.execute_script("return document.querySelectorAll('#parity :is(table, img)').length") == 0
    assert "Not recorded." in browser.execute_script("return document.getElementById('time').innerText")


def test_a_parity_that_is_not_finite_is_the_worst(page, tmp_path):
    parity = planted_parity()
    parity.loc[3, "max_abs_difference"] = float("nan")
    write_stand_ins(tmp_path)
    write_page(tmp_path / "r.html", replace(page[0], parity=parity), tmp_path)
    section = (tmp_path / "r.html").read_text().split('<section id="parity">')[1].split("</section>")[0]
    assert "the largest difference is not finite, at layer 3." in section
