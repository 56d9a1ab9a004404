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
from mossa_jax.findings import RULES
from mossa_jax.findings.warnings import RunWarning
from mossa_jax.monitoring.goodput import times
from mossa_jax.report import write_page
from mossa_jax.report.page import page as page_module
from mossa_jax.report.page.page import CAPTIONS
from tests.support.planted_report import CEILING, NO_CURVES, report_change, report_inputs, report_scores, report_table

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = [
    "</script><img src=x onerror=\"document.title='broken'\">",
    "\"quoted' & <b>bold</b> {{ 7 * 7 }} <a href='https://example.org'>link</a>",
    "<!-- <script>document.title='broken'</script>",
]
HOSTILE_CLUSTER = "<svg onload=\"document.title='broken'\">"
CHARTS = ("layers", "heatmap", "ranking", "cluster", "held-out", "specificity", "estimators", "training", "scores")
# One task of a cluster, all of another, and a held-out one.
INCOMPETENT = ("t05", "t06", "t07", "t20")


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


def build(folder):
    names = dict(zip(("t00", "t01", "t19"), HOSTILE, strict=True)) | {"c01": HOSTILE_CLUSTER}
    table = report_table(names=names)
    write_stand_ins(folder)
    inputs = report_inputs(
        table,
        report_scores(table, INCOMPETENT),
        report_change(table),
        parity=planted_parity(),
        facts={"base": "<i>model</i>", "layers": 8, "dtype": "bfloat16"},
        command="python -m launch.run --x='<u>'",
        versions={"jax": "<s>0.8</s>"},
        warnings=(RunWarning("bad_rows", "<img src=x>"),),
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
    for name, closing in (("style.css", "</style"), ("drawing.js", "</script"), ("charts.js", "</script")):
        inlined = (folder / name).read_text().strip()
        assert inlined in text and closing not in inlined and text.count(inlined) == 1


def own_rows(table, estimator):
    """Returns the rows of E with each task's own specialist."""
    return table[
        (table.control == table.task) & (table.experimental == "tuned") & (table.estimator == estimator)
    ].dropna(subset="cka")


def test_the_data_is_embedded_once_and_escaped(page):
    table, path = page[0].table, page[1]
    blocks = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    assert len(blocks) == 1 and "<" not in blocks[0]
    data = json.loads(blocks[0])
    names = [task["name"] for task in data["tasks"]]
    assert set(HOSTILE) <= set(names)
    cell = own_rows(table, "biased")
    expected = cell[(cell.task == HOSTILE[0]) & (cell.layer == "3")].cka.item()
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
    # Eight blocks and the final norm, twice; the embedding is undefined.
    assert boxes == 18


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
    for values, estimator in ((before, "debiased"), (after, "biased")):
        rows = own_rows(page[0].table, estimator)
        # The boxes show the tasks that the findings rest on.
        expected = sorted(rows[~rows.held_out & ~rows.task.isin(INCOMPETENT)].cka.round(4))
        assert sorted(values) == pytest.approx(expected, abs=1e-4)
    other = browser.execute_script("return document.getElementById('estimator-heatmap').value")
    assert other == "biased"
    choose(browser, "estimator-heatmap", "debiased")
    assert drawn(browser, "layers", 1, "y") == before


def test_the_ceiling_follows_the_estimator(browser):
    for estimator, expected in (("biased", CEILING + 0.02), ("debiased", CEILING)):
        choose(browser, "estimator-layers", estimator)
        for chart in ("layers", "cluster"):
            assert drawn(browser, chart, 2, "name") == list("ceiling")
            values = drawn(browser, chart, 2, "y")
            assert values[0] is values[-1] is None and values[1:-1] == pytest.approx([expected] * 8)


def rows_of(browser, selector):
    """Returns the cells of a table's body as a person reads them, row by row."""
    script = """return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(
        (e) => [...e.children].map((c) => c.textContent.trim().replace(/\\s+/g, ' ')))"""
    return browser.execute_script(script, selector)


def test_findings_show_the_claim_before_the_answer(browser, page):
    notice = browser.execute_script("return document.getElementById('competence').innerText")
    said = "18 of 22 specialists are shown to use their prompts; all findings rest on the tasks of these alone."
    assert notice.startswith(said)
    items = browser.execute_script(
        "return [...document.querySelectorAll('.findings li')].map((e) => [e.querySelector('.chip').innerText, "
        "Boolean(e.querySelector('.tag')), ...[...e.querySelectorAll('p')].map((p) => p.textContent)])"
    )
    for (verdict, is_tagged, claim, sentence), finding in zip(items, page[0].analysis["findings"], strict=True):
        assert verdict == finding["verdict"] and is_tagged == (finding["family"] == "exploratory")
        assert claim == f"Claim: {finding['claim']}" and finding["sentence"] in sentence
    claims = rows_of(browser, "#all-claims")
    for row, finding in zip(claims, page[0].analysis["findings"], strict=True):
        assert row[0] == finding["id"] + finding["claim"] and row[-1] == finding["verdict"]


def test_verdicts_differ_in_colour_and_contradicted_is_no_alarm(browser):
    script = """const chip = document.querySelector('.chip'), old = chip.className;
    const colours = arguments[0].map((name) => {
      chip.className = 'chip ' + name.replace(' ', '-');
      return getComputedStyle(chip).color;
    });
    chip.className = old;
    return colours;"""
    colours = dict(zip(RULES, browser.execute_script(script, list(RULES)), strict=True))
    assert len(set(colours.values())) == len(RULES) == 5
    red, _, blue = (int(part) for part in re.findall(r"\d+", colours["contradicted"])[:3])
    assert blue > red


def test_the_definitions_stand_beside_the_papers(browser):
    names = [row[0] for row in rows_of(browser, "#definitions")]
    assert [name.split("where")[0].split("from")[0].split("Llama")[0].strip() for name in names] == [
        "Parting",
        "Plateau of E",
        "Crossing",
        "The paper",
    ]
    assert "transition 4 to 5" in rows_of(browser, "#definitions")[0][1]


def test_a_change_shows_its_test_and_a_dot_where_it_is_not_significant(browser, page):
    choose(browser, "heatmap-show", "difference")
    texts = drawn(browser, "heatmap", 0, "text")
    tested = [text for text in texts if "q = 0.004" in text]
    assert tested and all("95 % of the difference" in text and "not significant" not in text for text in tested)
    change = page[0].change
    marked = change[(change.estimator == "debiased") & (change.q > 0.05)]
    assert sum("p = 0.200, q = 0.400 (not significant: q > 0.05)" in text for text in texts) == len(marked)
    assert len(drawn(browser, "heatmap", 2, "x")) == len(marked) > 0
    visible = browser.execute_script("return document.querySelectorAll('#chart-heatmap .scatterlayer .point').length")
    assert visible == len(marked)
    choose(browser, "heatmap-show", "tuned")
    assert browser.execute_script("return document.getElementById('chart-heatmap').data.length") == 2
    choose(browser, "heatmap-show", "difference")


def test_incompetent_tasks_are_grey_everywhere(browser):
    faint = browser.execute_script(
        "const e = document.querySelector('tr.left-out td'); return getComputedStyle(e).color"
    )
    for chart in ("heatmap", "scores"):
        labels = browser.execute_script(
            "return [...document.querySelectorAll(`#chart-${arguments[0]} .ytick text`)].map((e) => "
            "[e.textContent, getComputedStyle(e.querySelector('tspan[style*=fill]') || e).fill])",
            chart,
        )
        grey = {text for text, fill in labels if fill == faint}
        assert {text.split(" · ")[1].split(" (")[0] for text in grey} == set(INCOMPETENT), chart
        assert all("(left out)" in text for text in grey) and len(labels) == 22
    hovers = [text for text in drawn(browser, "heatmap", 0, "text") if text.startswith("t05<br>")]
    assert all("left out: its specialist does not use" in text for text in hovers) and len(hovers) == 10
    options = browser.execute_script("return [...document.querySelectorAll('#layers-task option')].map((e) => e.text)")
    assert {text.split(" ")[0] for text in options if text.endswith("(left out)")} == set(INCOMPETENT)
    veils = browser.execute_script(
        "return document.getElementById('chart-heatmap').layout.shapes.filter((s) => s.type === 'rect').length"
    )
    assert veils == len(INCOMPETENT)
    clusters = rows_of(browser, "#clusters")
    assert clusters[-1][:2] == ["–", "c03"] and clusters[-1][-1] == "left out: t06, t07"


def test_trust_shows_specificity_variance_and_what_was_repaired(browser):
    names = browser.execute_script("return document.getElementById('chart-specificity').data.map((t) => t.name)")
    assert names[1::2] == ["own minus twin", "own minus specialists of other clusters"]
    assert all("95 %" in text and "layer" in text for text in drawn(browser, "specificity", 1, "text"))
    parts = {row[0]: row[1:] for row in rows_of(browser, "#variance")}
    assert list(parts) == ["row", "template", "seed of C", "seed of E", "task", "cluster"]
    assert parts["row"][0] == "0.0150" and parts["template"][0] == "–" and "templates" in parts["template"][2]
    text = browser.execute_script("return document.getElementById('trust').innerText")
    assert "Cells above what re-pairing rows gives" in text and "says nothing about a change" in text


def test_scores_can_be_switched_and_stand_in_tables(browser):
    assert browser.execute_script("return document.getElementById('chart-scores').data.length") == 3
    choose(browser, "scores-show", "exact_match")
    assert "".join(drawn(browser, "scores", 3, "name")) == "most frequent answer"
    choose(browser, "scores-show", "information")
    competent = {row[0]: row for row in rows_of(browser, "#competent")}
    assert competent["t05"][-1].startswith("no: its specialist is not shown to use its prompts")
    assert competent["t02"][-1] == "yes" and competent["t02"][-2] == "0.420"
    means = {row[0]: row[1:] for row in rows_of(browser, "#means")}
    assert means["specialist (C_t), twin"][:2] == ["0.000 (15)", "0.400 (15)"]


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
        assert len(images) == len(CAPTIONS) == 8
        assert all(image.is_displayed() and image.size["height"] > 100 for image in images)
        assert not any(chart.is_displayed() for chart in driver.find_elements(By.CSS_SELECTOR, ".chart"))
        assert page[0].analysis["findings"][0]["sentence"] in driver.find_element(By.TAG_NAME, "main").text
    finally:
        driver.quit()


def test_a_page_with_nothing_defined_opens(browser, tmp_path):
    table = report_table((1,) * 3, 4, None, held_out=0).assign(cka=float("nan"), undefined="not finite")
    write_stand_ins(tmp_path)
    inputs = report_inputs(table, curves=NO_CURVES, parity=HOSTILE[0])
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


def test_few_competent_specialists_are_announced(page, tmp_path):
    table = page[0].table
    scores = report_scores(table, tuple(table.task.unique()[:14]))
    write_stand_ins(tmp_path)
    write_page(tmp_path / "r.html", report_inputs(table, scores), tmp_path)
    text = (tmp_path / "r.html").read_text()
    assert 'class="notice few"' in text and "Fewer than half of the specialists are shown to use their prompts" in text
    assert 'class="notice"' in page[1].read_text()


def test_without_a_transition_the_shape_is_named_and_nothing_is_shaded(browser, page, tmp_path):
    browser.get(page[1].as_uri())
    assert len(browser.execute_script("return document.getElementById('chart-layers').layout.shapes")) == 3
    table = report_table(breaks=None)
    write_stand_ins(tmp_path)
    inputs = report_inputs(table)
    write_page(tmp_path / "r.html", inputs, tmp_path)
    browser.get((tmp_path / "r.html").as_uri())
    assert errors(browser) == []
    assert browser.execute_script("return document.getElementById('chart-layers').layout.shapes") == []
    section = browser.execute_script("return document.getElementById('layers').innerText")
    assert f"No sections are shaded: {inputs.analysis['sections']['reason']}." in section
    assert "Changes of single cells were not tested." in browser.execute_script("return document.body.textContent")


def test_a_page_without_a_competent_specialist_opens(browser, page, tmp_path):
    table = page[0].table
    write_stand_ins(tmp_path)
    inputs = report_inputs(table, report_scores(table, tuple(table.task.unique())), report_change(table))
    write_page(tmp_path / "r.html", inputs, tmp_path)
    browser.get((tmp_path / "r.html").as_uri())
    assert errors(browser) == []
    assert browser.execute_script("return document.documentElement.dataset.drawn") == "yes"
    assert len(rows_of(browser, "#competent")) == 22
    shown = browser.execute_script("return document.getElementById('chart-heatmap').data[0].z.length")
    assert shown == 22 and len(browser.find_elements("css selector", "#clusters tr.left-out")) == 9
