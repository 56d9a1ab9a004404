"""Run by test_lost_processes.py: `python -m launch.run` with training steps that are slow, logged, and may hang.

$TRACE/<process>.txt gets a line per batch: model, step and rows. Each step takes $PAUSE seconds longer; process $HANGS
never returns from its third step.
"""

import os
import runpy
import sys
import time
from pathlib import Path

import jax

from mossa_jax.tuning import loop

PAUSE, HANGS = float(os.environ.get("PAUSE", "0")), int(os.environ.get("HANGS", "-1"))


class Run(loop._Run):
    def step(self, base, state, number):
        if number == 2 and jax.process_index() == HANGS:
            time.sleep(10_000)
        time.sleep(PAUSE)
        return super().step(base, state, number)

    def _batch(self, model, number):
        kind, rows = super()._batch(model, number)
        with (Path(os.environ["TRACE"]) / f"{jax.process_index()}.txt").open("a") as file:
            file.write(f"{self.members[model].name} {number} {rows.tolist()}\n")
        return kind, rows


loop._Run = Run
sys.argv[0] = "launch.run"
runpy.run_module("launch.run", run_name="__main__", alter_sys=True)
