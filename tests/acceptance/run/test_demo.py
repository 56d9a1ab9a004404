"""The demo as it ships: what people see first has to hold."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from tests.support.paths import ROOT


@pytest.mark.slow
def test_demo(tmp_path):
    command = [sys.executable, "-m", "launch.run", "--config=configs/demo.py", f"--workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "MOSSA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert "Findings" in done.stdout and str(tmp_path / "run" / "report.html") in done.stdout
    # A newcomer reads all of it: nothing twice, nothing about the insides.
    lines = [*done.stderr.splitlines(), *done.stdout.splitlines()]
    assert len(lines) <= 60 and sum("data" in line for line in lines) <= 4, lines
    assert not [line for line in lines if "PyTorch" in line or "MiB" in line or "slots" in line]
    assert sum("controls: 160 steps, 48 of 48 models done" in line for line in lines) == 1

    scores = pd.read_parquet(tmp_path / "run/results/scores.parquet")
    scores = scores[scores.metric == "exact_match"].groupby("model").value.mean()
    assert scores["control"] >= 0.7 and scores["tuned"] >= 0.5 and scores["base"] <= 0.3, scores.to_dict()

    table = pd.read_parquet(tmp_path / "run/results/cka.parquet")
    table = table[table.control == table.task]
    assert table.task.nunique() >= 24 and table.cluster.nunique() >= 12 and table.n.min() >= 256
    cells = table.groupby(["task", "layer", "experimental", "estimator"]).size()
    assert len(cells) == table.task.nunique() * 10 * 2 * 2 and (cells == 1).all()
    undefined = table.undefined != ""
    assert (table.cka.isna() == undefined).all() and undefined.any()
    defined = table[~undefined]
    assert (defined.low <= defined.cka + 1e-9).all() and (defined.cka <= defined.high + 1e-9).all()
