"""Charts as data for the page: every mark in JSON, what is small, and what is packed."""

import base64
import csv
import gzip
import io
import json

import numpy as np
import pandas as pd
import pytest

from mossa_jax.files.csv_text import csv_text
from mossa_jax.report.charts.grammar import Boxes, box
from mossa_jax.report.page.html_parts import templates
from mossa_jax.report.page.interactive import chart_json, packed_chart, page_charts, requests
from tests.support.every_mark import HOSTILE, every_mark


@pytest.fixture(scope="module")
def chart():
    return every_mark()


@pytest.fixture(scope="module")
def plain(chart):
    return chart_json(chart)


def marks(plain):
    """Returns the first mark of every kind."""
    every = [mark for panel in plain["views"][0]["panels"] for mark in panel["marks"]]
    return {mark["kind"]: mark for mark in reversed(every)}


def rendered(charts, name):
    template = templates().from_string('{% from "chart.html.j2" import chart with context %}{{ chart(name) }}')
    return template.render(charts=charts, name=name)


def test_every_kind_of_mark_becomes_plain_json(plain):
    assert set(marks(plain)) == {"line", "points", "boxes", "bars", "heat", "span", "rule"}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_undefined_numbers_are_null_and_others_keep_five_digits(plain):
    assert marks(plain)["line"]["y"] == [0.12346, None, 0.3, 0.4]
    assert marks(plain)["heat"]["values"][0][1] is None


def test_fields_with_their_default_are_left_out(plain):
    assert "dash" not in marks(plain)["points"] and "faint" not in marks(plain)["line"]
    assert marks(plain)["line"]["dash"] == "dash"


def test_a_box_says_whether_it_is_one_and_what_its_quartiles_are(chart, plain):
    boxes = next(mark for panel in chart.views[0].panels for mark in panel.marks if isinstance(mark, Boxes))
    many, few = marks(plain)["boxes"]["boxes"]
    assert many["is_box"] and not few["is_box"]
    assert many["quartiles"] == pytest.approx(np.quantile(boxes.boxes[0].values, (0.25, 0.5, 0.75)))
    assert marks(plain)["boxes"]["summaries"] == ["spread\nmedian 0.300\nquartiles 0.200 to 0.400\nn = 5",
                                                  "spread\nmedian 0.600\nquartiles 0.500 to 0.700\nn = 2"]  # fmt: skip


def test_the_summary_of_a_box_without_a_name_has_no_empty_line():
    assert Boxes(boxes=(box(0, [1.0]),)).summaries == ["median 1.000\nquartiles 1.000 to 1.000\nn = 1"]


def cells(table):
    """Puts the columns of a packed table together again, row by row, names first."""
    columns = [[column["name"], *(column["texts"][row] for row in column["rows"])] if "rows" in column
               else [column["name"], *column["texts"]] for column in table]  # fmt: skip
    return [list(row) for row in zip(*columns, strict=True)]


def test_the_numbers_of_the_page_are_the_cells_of_the_files_to_five_digits(chart, plain):
    rows = list(csv.reader(io.StringIO(csv_text(chart.data), newline="")))
    assert cells(plain["table"]) == rows
    assert any("'=cmd()" in cell for row in rows for cell in row)
    data = pd.DataFrame({"layer": ["1"] * 4, "n": [1234567, 2, 3, 4], "value": [0.12345678, np.nan, 0.5, 0.25]})
    layer, n, value = chart_json(every_mark(data))["table"]
    assert layer == {"name": "layer", "texts": ["1"], "rows": [0] * 4}
    assert n["texts"][0] == "1234567" and value == {"name": "value", "texts": ["0.12346", "", "0.5", "0.25"]}
    assert chart_json(every_mark(data[:0]))["table"] == [{"name": name, "texts": [], **({"rows": []})} for name in data]


def test_characters_that_show_nothing_have_a_sign_and_lines_of_a_hover_text_stay_lines(plain):
    text = marks(plain)["points"]["hover"][1]
    assert text == "t[U+200B]1\nvalue 2"


def test_a_packed_chart_is_the_same_every_time_and_opens_again(chart, plain):
    packed = packed_chart(chart)
    assert packed == packed_chart(chart)
    assert unfolded(json.loads(gzip.decompress(base64.b64decode(packed)))) == plain


def unfolded(value):
    """Puts the hover texts of a packed chart together again, as `packing.js` does."""
    if isinstance(value, list):
        return [unfolded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "lines" not in value:
        return {name: unfolded(item) for name, item in value.items()}
    columns = [[column["texts"][row] for row in column["rows"]] if "rows" in column else column["texts"]
               for column in value["lines"]]  # fmt: skip
    texts = ["\n".join(line for line in lines if line is not None) for lines in zip(*columns, strict=True)]
    width = value.get("width")
    return [texts[at : at + width] for at in range(0, len(texts), width)] if width else texts


def test_the_menu_of_requests_names_each_once(chart):
    assert requests(chart) == ["task one", HOSTILE]


def test_the_html_of_a_chart_has_its_menus_and_escapes_what_is_in_them(chart):
    text = rendered(page_charts({"every": chart}, {"every": "data:image/png;base64,AAAA"}), "every")
    assert 'id="every"' in text and "The paper’s Figure 2." in text
    for key in ("estimator", "task", "rows", "group", "sort"):
        assert f'data-key="{key}"' in text
    assert 'src="data:image/png;base64,AAAA"' in text
    assert HOSTILE not in text and "&lt;img" in text


def test_an_absent_chart_is_absent_from_the_page():
    assert rendered({}, "every").strip() == ""


def test_a_small_table_is_written_out_and_a_large_one_names_its_file(chart):
    small = rendered(page_charts({"every": chart}, {}), "every")
    assert "<td>−0.5000</td>" in small and "figures/figure2_every.csv" not in small
    large = every_mark(pd.DataFrame({"value": np.arange(100.0)}))
    text = rendered(page_charts({"every": large}, {}), "every")
    assert "<td>" not in text and "figures/figure2_every.csv" in text
