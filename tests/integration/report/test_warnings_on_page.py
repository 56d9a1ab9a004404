"""Warnings on the page: each stands once, in its group, and what it qualifies leads to it and back."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from mossa_jax.findings.warnings import RunWarning
from mossa_jax.report import write_page
from mossa_jax.report.catalogue import all_charts
from mossa_jax.report.numbers import with_minus
from tests.support.planted_report import report_inputs, report_scores, report_table

INCOMPETENT = ("t05", "t06", "t07", "t20")
CUT = ("t02", "t03", "t08", "t09")
WARNINGS = (
    RunWarning("bad_rows", "unusable rows of <b>t02</b> are left out"),
    RunWarning("cut_prompts", f"prompts are cut: {', '.join(CUT)}; states are those of cut prompts", CUT, grave=CUT),
    RunWarning("few_repeated_rows", "some rows repeat: t02 (1); there are too few to matter much"),
)
# None of the cut tasks is held out; no layers are profiled and no factors split.
QUALIFIED = ("transition", "shift", "specificity", "shared", "clusters", "ability")


class Reader(HTMLParser):
    """Reads text and links of a page, each with the ids of the elements around it."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.links, self.headings = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append((tag, dict(attributes)))
        if tag == "a":
            self.links.append((self.places(), dict(attributes).get("href")))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"}.intersection(tag for tag, _ in self.open):
            self.texts.append((self.places(), data))
        if self.open and self.open[-1][0] == "h3":
            self.headings.append((self.places(), data))

    def places(self):
        return [attributes["id"] for _, attributes in self.open if "id" in attributes]

    def text(self, place=None):
        words = "".join(data for places, data in self.texts if place is None or place in places)
        return re.sub(r"\s+", " ", words).strip()


def page_of(folder, **fields):
    """Writes a page with stand-ins for its pictures; returns what its inputs were and what it shows."""
    table = report_table()
    inputs = report_inputs(table, report_scores(table, fields.pop("incompetent", ())), **fields)
    for chart in all_charts(inputs).values():
        Image.new("RGB", (60, 20)).save(folder / f"{chart.file}.png", dpi=(300, 300))
    write_page(folder / "report.html", inputs, folder)
    return inputs, Reader((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("page"), incompetent=INCOMPETENT, warnings=WARNINGS)


def test_each_warning_stands_once_with_its_way_out(page):
    inputs, reader = page
    warnings = inputs.analysis["warnings"]
    kinds = ["cut_prompts", "bad_rows", "idle_specialists", "few_repeated_rows"]
    assert [warning["kind"] for warning in warnings] == kinds
    for warning in warnings:
        sentence = with_minus(warning["sentence"])
        assert reader.text().count(sentence) == 1
        own = reader.text(f"warning-{warning['kind']}")
        assert own.startswith(sentence) and warning["knob"] in own
    assert [word for places, word in reader.headings if "section-warnings" in places] == [
        "Data",
        "Training",
        "Worth knowing",
    ]
    assert reader.text().count("3 warnings") == 2  # the badge, and the section that it leads to
    assert ([], "#section-warnings") in reader.links


def test_what_is_qualified_leads_to_its_warning_and_back(page):
    reader = page[1]
    there = {(places[-1], href) for places, href in reader.links if href.startswith("#warning-")}
    # The cards of tasks lead there, too.
    there = {(place, href) for place, href in there if place.startswith("claim-")}
    assert there == {(f"claim-{name}", "#warning-cut_prompts") for name in QUALIFIED}
    back = {(places[-1], href) for places, href in reader.links if href.startswith("#claim-")}
    assert back == {("warning-cut_prompts", f"#claim-{name}") for name in QUALIFIED}
    for name in QUALIFIED:
        total = 22 - 4 if name == "ability" else 18 - 3
        said = f"But 4 of its {total} tasks have more than half of the test prompts cut."
        assert said in reader.text(f"claim-{name}")
    assert "But " not in reader.text("claim-unseen")


def test_a_sound_run_says_that_there_is_no_warning(tmp_path):
    inputs, reader = page_of(tmp_path)
    assert inputs.analysis["warnings"] == []
    assert reader.text("section-warnings") == "Warnings None." and "no warnings" in reader.text()
    assert not [href for _, href in reader.links if href.startswith(("#warning-", "#claim-"))]
