"""The page of several runs in a real browser: charts, switches, the pointer, hostile names, small screens, paper."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mossa_jax.findings.between_runs import compare_runs
from mossa_jax.report.between_runs.inputs import RunFacts, RunsInputs
from mossa_jax.report.between_runs.page import write_runs_page
from tests.support.browser import errors, open_browser
from tests.support.planted_runs import planted_run, truth

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"> & <b>b</b>"


def drawn(browser, chart, trace, key):
    script = "return Array.from(document.getElementById(arguments[0]).data[arguments[1]][arguments[2]]).flat()"
    return browser.execute_script(script, f"chart-{chart}", trace, key)


def choose(browser, select, value):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element(By.ID, select)).select_by_value(value)


def build(folder):
    rng = np.random.default_rng(1)
    runs = [
        planted_run("a", rng, truth(12, 6), rows=0.005, seeds=0.005),
        planted_run(HOSTILE, rng, truth(12, 6, 0.2), rows=0.005, seeds=0.005, rank="<u>"),
        planted_run("deep", rng, truth(12, 9)),
    ]
    table = runs[1].table.copy()
    gone = (table.task == "t03") & (table.layer == "2") & (table.control == "t03")
    table.loc[gone, "cka"] = np.nan
    runs[1] = replace(runs[1], table=table)
    facts = [
        RunFacts(run.name, f"runs/{number}", "<i>base</i>", len(run.blocks), dict.fromkeys(run.prompts, "mixture"),
                 run.settings, {"jax": "1"}, [], None)
        for number, run in enumerate(runs)
    ]  # fmt: skip
    comparison = compare_runs(runs)
    write_runs_page(folder / "runs.html", RunsInputs(facts, comparison, "mossa runs <x> y"))
    return comparison, folder / "runs.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    driver.get(page[1].as_uri())
    yield driver
    driver.quit()


def test_charts_are_drawn_and_hostile_names_stay_text(browser):
    assert errors(browser) == []
    assert browser.execute_script("return document.documentElement.dataset.drawn") == "yes"
    assert browser.title == f"Runs compared: a, {HOSTILE}, deep"
    # A band and a line per run.
    assert browser.execute_script("return document.getElementById('chart-curves').data.length") == 6
    assert (
        browser.execute_script("return document.querySelectorAll('main img[src=x], main u, main i, main b').length")
        == 0
    )
    assert HOSTILE in browser.execute_script("return document.querySelector('#runs').textContent")


def test_the_cells_follow_the_choices_and_the_pointer_reads_them(browser, page):
    cells = page[0].cells
    for quantity in ("tuned", "change"):
        choose(browser, "cells-quantity", quantity)
        rows = cells[(cells.quantity == quantity) & (cells.estimator == "debiased")].dropna(subset="difference")
        values = [value for value in drawn(browser, "cells", 0, "z") if value is not None]
        assert sorted(values) == pytest.approx(sorted(rows.difference), abs=1e-4)
    assert all("95 %" in text for text in drawn(browser, "cells", 0, "text") if "undefined" not in text)
    # E stands 0.2 above: all tested cells are marked.
    assert (
        len(drawn(browser, "cells", 2, "x"))
        == cells[(cells.quantity == "change") & (cells.estimator == "debiased") & (cells.q <= 0.05)].shape[0]
        > 50
    )
    text = hover(browser, 0.5, 0.5)
    assert re.search(r"difference [-0-9.]+", text) and "same test prompts" in text
    pick_run(browser, 1)
    assert browser.execute_script("return document.getElementById('chart-cells').textContent") == (
        "Nothing is defined here."
    )
    pick_run(browser, 0)
    assert drawn(browser, "cells", 0, "z")


def pick_run(browser, number):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element(By.ID, "cells-run")).select_by_index(number)


def hover(browser, x, y):
    """Moves the pointer to a place in the chart of cells, in shares of its width and height, and reads the label."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    area = browser.find_element(By.CSS_SELECTOR, "#chart-cells .nsewdrag")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", area)
    size = area.size
    ActionChains(browser).move_to_element_with_offset(
        area, int((x - 0.5) * size["width"]), int((y - 0.5) * size["height"])
    ).perform()
    script = (
        "return [...document.querySelectorAll('#chart-cells .hoverlayer text')].map((e) => e.textContent).join(' ')"
    )
    WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(script))
    return browser.execute_script(script)


def test_a_narrow_screen_and_paper_show_everything(browser):
    command = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", command)
    browser.refresh()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = browser.execute_script(
        "return [...document.querySelectorAll('img.static')].map((e) => getComputedStyle(e).display !== 'none')"
    )
    assert shown == [True] * 3
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_page_refers_to_nothing_outside_itself_and_is_small(page):
    text = page[1].read_text()
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"https?://", outside) and text.count("plotly.js v") == 1
    assert len(text) < 6_500_000
