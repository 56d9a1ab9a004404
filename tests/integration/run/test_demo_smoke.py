"""The demo in small, by the command that the README gives: it ends with findings, tables and a page."""

import json
import os
import subprocess
import sys

import pandas as pd

from tests.support.demo import SMALL
from tests.support.paths import ROOT

# Two tasks and no generated answers: what is left of the demo takes half as long to compile. With all analyses.
SHORT = (
    "--config.tasks.only=('facts_country','sentiment_review')",
    "--config.tuning.score_prompts=0",
    *(flag for flag in SMALL if not any(name in flag for name in ("tasks.only", "score_prompts", "analyse."))),
)


def test_the_demo_in_small_ends_with_its_findings_and_a_page(tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "launch.run", "--config=configs/demo.py", f"--workdir={workdir}", *SHORT]
    environment = {**os.environ, "MOSSA_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    findings = json.loads((workdir / "results/findings.json").read_text())["findings"]
    assert findings and all(finding["title"] in " ".join(done.stdout.split()) for finding in findings)
    assert f"Report: {workdir / 'report.html'}" in done.stdout and (workdir / "report.html").stat().st_size > 100_000
    table = pd.read_csv(workdir / "results/cka.csv")
    own = table[table.control == table.task]
    assert own.task.nunique() == 2 and set(own.experimental) == {"pretrained", "tuned"}
    # Ten layer states, two experimental models and two estimators per task.
    assert (own.groupby("task").size() == 10 * 2 * 2).all()
