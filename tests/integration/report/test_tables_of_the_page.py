"""The tables of the page beside its charts: parity, time, definitions; what is left out, and how verdicts look."""

import re

import pytest
from PIL import Image

from mossa_jax.findings import RULES
from mossa_jax.report import write_page
from mossa_jax.report.catalogue import all_charts
from mossa_jax.report.page.html_parts import STYLES, inlined
from tests.support.paper_like import planted_parity, planted_times
from tests.support.planted_report import report_change, report_inputs, report_scores, report_table

LEFT_OUT = tuple(f"t{number:02}" for number in range(13))


def html_of(folder, **fields):
    """Writes the page of a run in which 13 of 22 specialists do not use their prompts."""
    table = report_table()
    inputs = report_inputs(table, report_scores(table, LEFT_OUT), report_change(table), **fields)
    for chart in all_charts(inputs).values():
        Image.new("RGB", (60, 20)).save(folder / f"{chart.file}.png", dpi=(300, 300))
    write_page(folder / "report.html", inputs, folder)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return html_of(tmp_path_factory.mktemp("page"), parity=planted_parity(8), times=planted_times())


def words(html):
    html = re.sub(r'<span class="definition".*?</span>', "", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html).replace("&#39;", "'")).strip()


def rows(html, start):
    """Returns the cells of the first table behind a place, row by row."""
    table = re.search(r"<tbody>(.*?)</tbody>", html[html.index(start) :], re.S)[1]
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.S)
    return [[words(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S)] for row in found]


def test_parity_names_the_worst_layer_and_lists_all(html):
    parity = planted_parity(8)
    table = rows(html, 'id="parity"')
    assert [row[0] for row in table] == list(parity["layer"])
    assert table[-1] == ["logits", "3.0e−06", "12.5", f"{3e-6 / 12.5:.1e}".replace("-", "−")]
    assert re.search(r"largest difference is 2.4e−07 of the largest value, at logits\.", words(html))


def test_parity_that_was_not_checked_says_why(tmp_path):
    assert "Not checked: torch is not installed. The next report" in words(
        html_of(tmp_path, parity="torch is not installed")
    )


def test_the_time_table_has_a_row_per_stage_and_the_sum(html):
    times, table = planted_times(), rows(html, 'aria-label="Time per stage"')
    assert [row[0] for row in table] == [*times["stage"], "all"]
    assert table[-1][4] == f"{round(100 * times['useful'].sum() / times['wall'].sum())} %"
    assert table[0][:5] == ["data", "1", "5:10", "5:00", "97 %"]


def test_definitions_stand_beside_the_papers_with_layers_and_depth(html):
    table = rows(html, 'id="definitions"')
    assert len(table) == 4 and all(len(row) == 4 and row[0] and row[1] for row in table)
    assert table[-1][3] == "of 32 layers"


def test_fewer_than_half_of_the_specialists_is_said_at_the_claims(html):
    claims = words(html[html.index('id="section-claims"') : html.index('class="claims"')])
    assert "Fewer than half of the specialists are shown to use their prompts: 9 of 22" in claims
    assert "named with the reason and shown in grey" in claims


def test_tasks_that_findings_leave_out_are_grey_in_the_table_of_scores(html):
    table = html[html.index('<table id="competent">') :]
    grey = re.findall(r'<tr class="left-out">\s*<th scope="row">(t\d\d)', table[: table.index("</table>")])
    assert sorted(grey) == list(LEFT_OUT)


def test_each_verdict_has_a_colour_of_its_own_in_the_style_and_a_rule_in_words(html):
    style = inlined(*STYLES)
    colours = {}
    for verdict in RULES:
        name = verdict.replace(" ", "-")
        found = re.search(rf"\.claim\.{name},\n\.chip\.{name} \{{\n  --verdict: var\((--\w+)\)", style)
        assert found, f"{verdict} has no colour"
        colours[verdict] = found[1]
        assert f"<dt>{verdict}</dt>" in html
    assert len(set(colours.values())) == len(RULES)
    verdicts = re.findall(r'<span class="chip ([\w-]+)">([\w ]+)</span>', html)
    assert verdicts and all(name == text.replace(" ", "-") and text in RULES for name, text in verdicts)
