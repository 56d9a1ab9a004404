"""Cells of text that a spreadsheet would run are guarded in CSV, nothing else changes, and reading gives them back."""

import csv
import io
import random
import re

import numpy as np
import pandas as pd
import pytest

from mossa_jax.files.checked import write_table
from mossa_jax.files.csv_text import csv_text, guard, read_csv, unguard
from mossa_jax.files.write import read_parquet
from tests.support.paths import ROOT

FORMULAS = ["=1+1", "+x", "-x", "@x", "\t=x", "\rx", "\n=x", " =1", "\u3000@x", "'=x", "''-x", '"=x', "＝1", "-1+1|cmd"]
PLAIN = ["", "x", "a=b", "1", "-1.5", "+1e-9", ".5", "'x", "x'", "task-1", "'", '"', "日本", "embed"]


def test_only_what_a_spreadsheet_would_run_gets_an_apostrophe():
    assert [guard(text) for text in FORMULAS] == [f"'{text}" for text in FORMULAS]
    assert [guard(text) for text in PLAIN] == PLAIN
    assert [guard(value) for value in (-1.5, None, True)] == [-1.5, None, True]


def test_taking_the_guard_off_gives_every_text_back_and_no_two_texts_fall_together():
    draw = random.Random(0)
    texts = {"".join(draw.choices("=+-@'\" \t\r\n1.e+xа＝\ufeff", k=draw.randrange(9))) for _ in range(20_000)}
    assert all(unguard(guard(text)) == text for text in texts)
    assert len({guard(text) for text in texts}) == len(texts) > 5_000


@pytest.mark.parametrize("kind", ["object", "str", "category"])
def test_a_table_comes_back_as_it_was(tmp_path, kind):
    names = [*FORMULAS, *PLAIN[1:]]
    table = pd.DataFrame({"task": pd.Series(names, dtype=kind), "cka": -1.5 - np.arange(len(names)), "is": True})
    text = csv_text(table)
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[0] == ["task", "cka", "is"] and [row[0] for row in rows[1:]] == [guard(name) for name in names]
    assert [float(row[1]) for row in rows[1:]] == table["cka"].tolist()
    (tmp_path / "table.csv").write_bytes(text.encode())
    again = read_csv(tmp_path / "table.csv", dtype={"task": str}, keep_default_na=False)
    assert again["task"].tolist() == names and again["cka"].equals(table["cka"])
    assert table["task"].tolist() == names  # the table itself is left alone


def test_column_names_are_guarded_and_may_repeat():
    table = pd.DataFrame([["=1", 2]], columns=["=a", "=a"])
    assert csv_text(table) == "'=a,'=a\n'=1,2\n"


def test_a_table_of_a_run_is_guarded_in_csv_and_as_it_is_in_parquet(tmp_path):
    table = pd.DataFrame({"task": FORMULAS, "cka": -0.5})
    write_table(tmp_path / "cka.parquet", table)
    assert read_parquet(tmp_path / "cka.parquet")["task"].tolist() == FORMULAS
    assert read_csv(tmp_path / "cka.csv")["task"].tolist() == FORMULAS
    with (tmp_path / "cka.csv").open(newline="", encoding="utf-8") as file:
        assert {row[0][0] for row in list(csv.reader(file))[1:]} == {"'"}


def test_all_csv_is_written_by_the_one_function_that_guards():
    writers = re.compile(r"\.to_csv\(|csv\.writer|csv\.DictWriter")
    places = [
        path.relative_to(ROOT).as_posix()
        for room in ("mossa_jax", "launch")
        for path in sorted((ROOT / room).rglob("*.py"))
        if writers.search(path.read_text(encoding="utf-8"))
    ]
    # The second one digests a table and writes no file.
    assert places == ["mossa_jax/files/csv_text.py", "mossa_jax/run/analyse/map.py"]
