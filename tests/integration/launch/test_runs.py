"""`launch.runs`: what it prints and writes for finished runs, and its refusals."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.support.run_folders import rewrite, rewrite_table


def command(root, *words):
    return subprocess.run(
        [sys.executable, "-m", "launch.runs", *map(str, words)],
        cwd=root, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tiny_run, tmp_path_factory):
    """A finished run; another one with other values and another rank; one that is not finished."""
    here = tmp_path_factory.mktemp("runs")
    first = here / "first"
    shutil.copytree(tiny_run[1], first, ignore=shutil.ignore_patterns(".lock", ".holder", "adapters", "checkpoints"))
    second = shutil.copytree(first, here / "second")
    rewrite(second / "config.json", lambda record: record["tuning"].update(rank=16))
    table = pd.read_parquet(second / "results/cka.parquet")
    noise = np.random.default_rng(0).normal(0, 0.01, len(table))
    rewrite_table(second / "results/cka.parquet", table.assign(cka=table.cka + noise))
    change = pd.read_parquet(second / "results/change.parquet")
    rewrite_table(second / "results/change.parquet", change.assign(change=change.change + 0.01))
    unfinished = here / "unfinished"
    unfinished.mkdir()
    shutil.copy(first / "config.json", unfinished)
    return here


def test_two_runs_are_printed_and_written_as_a_page_with_tables(root, folders):
    page = folders / "both.html"
    done = command(root, folders / "first", folders / "second", f"--out={page}")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    rows = [line.split() for line in said.splitlines()]
    assert ["tuning.rank", "2", "16"] in rows
    words = " ".join(said.split())  # lines are wrapped
    assert "first and second differ by 0." in words and "two seeds of one specialist by 0." in words
    assert max(map(len, said.splitlines())) <= 160
    cells = pd.read_csv(folders / "both.cells.csv")
    changes = cells[(cells.quantity == "change") & cells.difference.notna()]
    assert np.allclose(changes.difference, 0.01) and (changes.low <= 0.01).all() and changes.same_prompts.all()
    text = page.read_text()
    assert "2 runs compared" in text and "tuning.rank" in text and len(text) < 6_500_000
    assert {path.name for path in folders.glob("both.*")} == {
        "both.html", "both.cells.csv", "both.curves.csv", "both.means.csv", "both.sizes.csv",
    }  # fmt: skip


def test_the_same_run_twice_is_zero_everywhere_as_json(root, folders):
    done = command(root, folders / "first", folders / "first", "--format=json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert [run["name"] for run in value["runs"]] == ["first", "first (2)"]
    defined = [cell for cell in value["cells"] if cell["difference"] is not None]
    assert defined and all(cell["difference"] == cell["low"] == cell["high"] == 0 for cell in defined)
    assert all(row["mean"] == 0 for row in value["means"] if row["n_tasks"])
    assert value["sentences"][0].endswith("no cell differs.")


def test_markdown_has_a_heading_and_a_table_per_question(root, folders):
    done = command(root, folders / "first", folders / "second", "--format=markdown")
    headings = [line for line in done.stdout.splitlines() if line.startswith("## ")]
    assert headings[0] == "## Runs" and "## How much, beside seeds?" in headings
    assert "| tuning.rank | 2 | 16 |" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "0 of at least 2 words given: RUN RUN; see --help"),
        (["first"], 2, "1 of at least 2 words given"),
        (["first", "nowhere"], 3, "nowhere is no run folder: it does not exist; give the --workdir of a run"),
        (["first", "first/results"], 3, "first/results is no run folder: it has no config.json"),
        (["first", "first/variants/other"], 3, "first has no variant 'other'; there is none"),
        (["first", "unfinished"], 3, "unfinished has no findings.json yet; mossa run --workdir="),
        (["first", "second", "--out=page.pdf"], 2, "--out=page.pdf: must end in .html"),
        (["first", "second", "--out=first/config.json/page.html"], 2, "config.json is a file"),
        (["first", "second", "--format=xml"], 2, "--format"),
        (["first", "second", "--paired=perhaps"], 2, "--paired"),
        (["first", "second", "--pair"], 2, "Unknown command line flag 'pair'"),
        (["first", "second", "--config=demo"], 2, "Unknown command line flag 'config'"),
    ],
)
def test_wrong_uses_are_refused_in_one_line_before_jax_is_imported(root, folders, words, code, message):
    code_text = (
        "import os, runpy, sys\n"
        f"os.chdir({str(folders)!r})\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        f"sys.argv = ['launch.runs', *{words!r}]\n"
        "try:\n    runpy.run_module('launch.runs', run_name='__main__', alter_sys=True)\n"
        "finally:\n    print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code_text], capture_output=True, text=True, timeout=120)
    assert done.returncode == code and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == "False\n"
