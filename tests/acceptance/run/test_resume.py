"""A run that is killed again and again ends in the same table, byte for byte, as one that is left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.demo import SMALL
from tests.support.paths import ROOT

KILLS = 5


def _command(workdir: Path) -> list[str]:
    return [sys.executable, "-m", "launch.run", "--config=configs/demo.py", f"--workdir={workdir}", *SMALL]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_runs_end_in_the_same_table(tmp_path, number):
    def environment(name: str) -> dict:
        return {**os.environ, "MOSSA_CACHE": str(tmp_path / name)}

    start = time.monotonic()
    subprocess.run(_command(tmp_path / "whole"), cwd=ROOT, env=environment("cache"), check=True)
    whole = time.monotonic() - start
    rng = random.Random(int(number))
    codes = []
    for _ in range(KILLS):
        process = subprocess.Popen(_command(tmp_path / "broken"), cwd=ROOT, env=environment("cache-broken"))
        try:
            process.wait(timeout=rng.uniform(0.15, 0.45) * whole)  # the later ones have less left to do
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        codes.append(process.wait())
    assert set(codes) <= {0, -signal.SIGKILL if number == signal.SIGKILL else 75}
    assert any(codes), "no run was interrupted"
    subprocess.run(_command(tmp_path / "broken"), cwd=ROOT, env=environment("cache-broken"), check=True)
    for name in ("results/cka.csv", "results/scores.csv", "results/curves.csv"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not list((tmp_path / "broken").rglob("*.tmp"))
