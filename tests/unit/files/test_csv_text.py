"""Cells of text that a spreadsheet would run are guarded in CSV, nothing else changes, and reading gives them back."""

import csv
import io
import random

import numpy as np
import pandas as pd
import pytest

from mossa_jax.files.csv_text import csv_text, guard, read_csv, unguard

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
