"""The page as a text: the result first, links that lead somewhere, words that are explained, and the set-up."""

import re

import pandas as pd
import pytest
from PIL import Image

from mossa_jax.findings.story import STORY
from mossa_jax.report import write_page
from mossa_jax.report.catalogue import all_charts
from mossa_jax.report.numbers import with_minus
from mossa_jax.report.page.glossary import WORDS
from tests.support.planted_report import report_change, report_inputs, report_scores, report_table

HOSTILE = "<b onclick=x>&amp;\u202e"
SETUP = {"Base model": {"Model": HOSTILE, "Layers": "8"}, "Empty": {}}
ORDER = ("summary claims where clusters tasks unseen trust training setup time warnings limits words").split()


def page_of(folder, inputs):
    for chart in all_charts(inputs).values():
        Image.new("RGB", (60, 20)).save(folder / f"{chart.file}.png", dpi=(300, 300))
    write_page(folder / "report.html", inputs, folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def text_of(html):
    """Returns what a reader sees of some HTML, without the explanations of words."""
    html = re.sub(r'<span class="definition".*?</span>', "", html, flags=re.S)
    html = re.sub(r"<(script|style)\b.*?</\1>|<[^>]+>", "", html, flags=re.S)
    return re.sub(r"\s+", " ", html.replace("&lt;", "<").replace("&#39;", "'").replace("&amp;", "&"))


def section(html, name):
    return re.search(rf'<section[^>]* id="section-{name}">.*?</section>', html, re.S)[0]


@pytest.fixture(scope="module")
def inputs():
    table = report_table()
    times = pd.DataFrame(
        [{"stage": "tune", "attempts": 1, "wall": 90.0, "useful": 80.0, "compile": 10.0, "restart": 0.0, "load": 0.0,
          "input": 0.0, "checkpoint": 0.0, "export": 0.0, "profile": 0.0, "other": 0.0, "device_wall": 330.0,
          "device_useful": 300.0}]
    )  # fmt: skip
    times.attrs["outside"] = 2400.0
    config = {"base": HOSTILE, "tuning": {"rank": 8}}
    facts = {"base": HOSTILE, "date": "2026-01-02"}
    return report_inputs(
        table,
        report_scores(table, ("t05",)),
        report_change(table),
        setup=SETUP,
        config=config,
        facts=facts,
        times=times,
    )


@pytest.fixture(scope="module")
def html(inputs, tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("page"), inputs)


def test_the_page_begins_with_the_result_and_ends_with_the_words(html):
    assert [name for name in re.findall(r'<section[^>]* id="section-([\w-]+)"', html) if name in ORDER] == ORDER


def test_the_result_is_told_in_the_three_sentences_of_the_findings(html, inputs):
    text = text_of(section(html, "summary"))
    for key, heading in STORY.items():
        assert f"{heading}. {with_minus(inputs.analysis['summary'][key])}" in text


def test_every_link_leads_to_something_and_no_anchor_stands_twice(html):
    anchors = re.findall(r'\bid="([^"]+)"', html)
    assert len(anchors) == len(set(anchors))
    assert {href for href in re.findall(r'href="#([^"]+)"', html)} <= set(anchors)
    assert all(re.findall(r'aria-describedby="([^"]+)"', html))
    assert set(re.findall(r'aria-describedby="([^"]+)"', html)) <= set(anchors)


def test_each_card_says_claim_verdict_and_figures_and_leads_to_its_chart(html, inputs):
    for finding in inputs.analysis["findings"]:
        card = re.search(rf'<li class="claim [^"]*" id="claim-{finding["id"]}">.*?</li>', html, re.S)[0]
        text = text_of(card)
        assert text.index(finding["claim"]) < text.index(finding["verdict"], len(finding["claim"]))
        assert with_minus(finding["sentence"]) in text
        if finding["headline"]["units"]:
            assert with_minus(finding["headline"]["figure"]).strip("-") in text
    assert 'data-view="estimator=debiased&amp;mark=5-8"' in html


def test_words_are_explained_where_they_are_used_and_once_more_at_the_end(html):
    used = re.findall(r'<dt id="word-[^"]+">([^<]+)</dt>', section(html, "words"))
    assert used == sorted(used, key=str.lower) and {"CKA", "E", "specialist", "ceiling", "change", "p"} <= set(used)
    assert set(used) <= set(WORDS)
    for tip in re.findall(r'role="tooltip" id="term-([\w-]+)-\d+"', html):
        assert f'id="word-{tip}"' in html


def test_the_set_up_stands_in_tables_and_its_values_stay_texts(html):
    text = text_of(section(html, "setup"))
    assert "Base model" in text and "Layers" in text and "Empty" not in text
    assert "Device-hours" in text and "0.092" in text and '"rank": 8' in text.replace("&#34;", '"')
    assert "<b onclick" not in html and "\u202e" not in html


def test_pauses_are_no_lost_work(html):
    text = text_of(section(html, "time"))
    assert "Between the stages and attempts lie 40:00 more: pauses" in text and "0.092 device-hours" in text


def test_numbers_have_true_signs(html):
    """Changes have a sign, and no table has a hyphen for a minus."""
    cells = re.findall(r'<td class="number">(.*?)</td>', html, re.S)
    assert cells and not [cell for cell in cells if re.search(r"(?<![\d\w])-\d", text_of(cell))]
    changes = re.findall(r"<td class=\"number\">([^<]*)", section(html, "unseen"))
    assert changes and all(cell[0] in "+−" for cell in changes)


def test_undefined_embeddings_raise_no_alarm(html):
    assert "all cells defined but" in text_of(html) and "As expected" in text_of(section(html, "trust"))


def test_the_pretrained_model_has_its_specificity_beside_that_of_e(html, inputs):
    base = inputs.analysis["specificity"]["other"]["pretrained"]
    assert with_minus(f"{base['mean']:+.3f} [{base['low']:+.3f}, {base['high']:+.3f}]") in text_of(html)


def test_a_run_of_nothing_has_a_page(tmp_path):
    html = page_of(tmp_path, report_inputs(report_table((1,), 3, None, held_out=0)))
    assert "Not recorded." in text_of(section(html, "setup")) and "No task was held out" in text_of(
        section(html, "unseen")
    )
