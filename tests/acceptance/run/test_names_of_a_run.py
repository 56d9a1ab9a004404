"""A whole run over tasks with names that nobody wants: nothing breaks, and no cell of a CSV file is a formula."""

import csv
import json
import random

import pandas as pd
import pytest

from mossa_jax.files.csv_text import guard, read_csv
from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from mossa_jax.tasks import load_suite
from tests.conftest import load_config
from tests.support.tiny_llama import write_config

pytestmark = pytest.mark.slow

NAMES = ["=1+1", "+x", "-x", "@x", "\t=x", "\r=x", "'=x", "\ufeffx", "a\u202eb", "任务 😀", "<b>$x$\\%</b>", "n" * 300]
WORDS = "the old boat red mill when rain comes from hills".split()


def write_suite(folder):
    draw, table = random.Random(0), {}
    for number, name in enumerate(NAMES):
        table[name] = {"cluster": f"={NAMES[number // 4]}", "file": f"file{number}"}
        for split, count in (("train", 12), ("test", 8)):
            (folder / split).mkdir(parents=True, exist_ok=True)
            rows = [{"inputs": " ".join(draw.choices(WORDS, k=6)), "targets": draw.choice(WORDS)} for _ in range(count)]
            (folder / split / f"file{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks.json").write_text(json.dumps(table))
    return folder


def test_a_run_over_hostile_names_ends_and_its_csv_files_hold_no_formula(tiny, tmp_path):
    config = load_config(write_config(tmp_path / "config.py", tiny.folder, write_suite(tmp_path / "tasks")))
    config.tuning.control.max_steps = config.tuning.experimental.max_steps = 2
    assert [task.name for task in load_suite(config.tasks).tasks] == NAMES
    run_folder = pipeline.open_run(config, str(tmp_path / "run"))
    try:
        pipeline.run_all(pipeline.Run(config, run_folder, Stop()))
    finally:
        run_folder.close()
    tables = sorted((tmp_path / "run").rglob("*.csv"))
    assert len(tables) >= 4
    for path in tables:
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if guard(cell) != cell and not cell.startswith("'")], path
        whole = pd.read_parquet(path.with_suffix(".parquet"))
        again = read_csv(path, dtype=str, keep_default_na=False)
        for column in {"task", "cluster", "control", "model"} & set(whole.columns):
            assert again[column].tolist() == whole[column].tolist(), (path, column)
    assert (tmp_path / "run/report.html").is_file()
