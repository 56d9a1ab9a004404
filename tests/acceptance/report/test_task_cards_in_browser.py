"""Task cards in a real browser: they open by click, link, search and from a chart, packed or not; all can read them."""

import pytest

from mossa_jax.report.page import task_cards
from mossa_jax.report.page.html_parts import CHART_SCRIPTS, STYLES, inlined, templates
from tests.support.browser import errors, faults, open_browser, overflows, shown_at
from tests.support.paper_like import planted_answers
from tests.support.planted_report import report_change, report_inputs, report_scores, report_table

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">\n\u202e<b>"
LONG = "a task with a name of many words that a chart breaks into lines"


def build(folder, limit, patch):
    """Writes a page of cards alone, which are packed from `limit` characters on."""
    names = {"t00": "0 " + HOSTILE, "t01": LONG, "c03": "sea"}
    table = report_table((2,) * 5, names=names)
    answers = planted_answers(table.drop_duplicates("task")[["task", "cluster", "held_out"]], ["x" * 600, HOSTILE])
    inputs = report_inputs(table, report_scores(table, ("t05",)), report_change(table), answers=answers)
    patch.setattr(task_cards, "MOST_INLINE", limit)
    section = templates().get_template("task_cards.html.j2")
    cards = section.render(cards=task_cards.task_cards(inputs), analysis=inputs.analysis)
    style, script = inlined(*STYLES), inlined(*CHART_SCRIPTS, "task_cards.js")
    page = folder / f"cards{limit}.html"
    page.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>cards</title><style>{style}</style></head>'
        f'<body><main><h1>Cards</h1>{cards}</main><script>document.documentElement.classList.add("js")</script>'
        f"<script>{script}</script></body></html>",
        encoding="utf-8",
    )
    return page.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(params=[10**9, 1000], ids=["inline", "packed"])
def page(request, browser, tmp_path, monkeypatch):
    address = build(tmp_path, request.param, monkeypatch)
    browser.get(address)
    yield address
    assert not errors(browser) and browser.title == "cards"


def opened(driver):
    """Waits for the one open card to be filled; returns its name and its text."""
    from selenium.webdriver.support.ui import WebDriverWait

    script = (
        "const cards = [...document.querySelectorAll('details.task[open]')];"
        "return cards.length === 1 && cards[0].querySelector('svg.spark') ?"
        " [cards[0].dataset.task, cards[0].innerText] : null"
    )
    return WebDriverWait(driver, 10).until(lambda d: d.execute_script(script))


def click(driver, element):
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def search(driver, *keys):
    driver.find_element("id", "task-search").send_keys(*keys)


def visible_cards(driver):
    return [card.get_attribute("data-task") for card in driver.find_elements("css selector", "details.task") if
            card.is_displayed()]  # fmt: skip


def test_a_card_opens_by_click_and_by_its_link(browser, page):
    from selenium.webdriver.support.ui import WebDriverWait

    click(browser, browser.find_element("css selector", "#task-t03 > summary"))
    name, text = opened(browser)
    assert name == "t03" and "specialist (C_t)" in text and "Example 3" in text and "Is it one?" in text
    browser.get("about:blank")
    browser.get(f"{page}#task-t04")
    assert opened(browser)[0] == "t04"
    top = "return document.querySelector('#task-t04').getBoundingClientRect().top"
    WebDriverWait(browser, 10).until(lambda d: 0 <= d.execute_script(top) < 100)
    browser.execute_script("document.querySelector('#task-t04').open = false; location.hash = '#task-t06'")
    assert opened(browser)[0] == "t06"


def test_a_chart_opens_a_card_by_the_lines_of_its_task(browser, page):
    browser.execute_script(
        "document.dispatchEvent(new CustomEvent('open-task', {detail: arguments[0]}))",
        LONG.replace("many words", "many\nwords") + "\nc00\nlayer 3: 0.5",
    )
    assert opened(browser)[0] == LONG
    assert browser.execute_script("return location.hash === '#' + document.querySelector('details[open]').id")


def test_search_leaves_what_has_all_words_and_enter_opens_the_first(browser, page):
    from selenium.webdriver.common.keys import Keys

    assert len(visible_cards(browser)) == 10
    search(browser, "SEA")
    assert visible_cards(browser) == ["t06", "t07"]
    assert browser.find_element("id", "task-count").text == "2 of 10 tasks"
    assert [title.text for title in browser.find_elements("css selector", ".task-cluster") if title.text] == ["sea"]
    search(browser, " 7", Keys.ENTER)
    assert opened(browser)[0] == "t07"
    assert browser.execute_script("return document.activeElement.closest('details').dataset.task") == "t07"
    search(browser, Keys.ESCAPE)
    assert len(visible_cards(browser)) == 10 and browser.find_element("id", "task-count").text == ""


def test_hostile_texts_stay_texts_and_long_ones_open(browser, page):
    browser.execute_script("document.querySelector('details.task').open = true")
    name, text = opened(browser)
    assert name.startswith("0 </script>") and "[U+202E]" in name
    assert "<img src=x onerror=\"document.title='broken'\">\n[U+202E]<b>" in text
    assert not browser.find_elements("css selector", "main img, main b")
    rest = browser.find_element("css selector", "details.task[open] details.rest")
    assert "x" * 100 not in rest.text
    click(browser, rest.find_element("tag name", "summary"))
    assert "x" * 100 in rest.text


@pytest.mark.parametrize("width", [390, 1280])
def test_cards_fit_and_are_accessible_in_light_and_dark(browser, page, width):
    browser.execute_script("document.querySelector('#task-t05').open = true")
    opened(browser)
    for scheme in ("light", "dark"):
        with shown_at(browser, width, scheme=scheme):
            assert overflows(browser) == [] and faults(browser) == []
