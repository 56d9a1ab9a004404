"""Run by test_lost_processes.py: `python -m launch.run` whose training steps are slow, leave a trace, and may hang.

In $TRACE/<process>.txt stands a line for each batch that was taken: model, step and rows. Steps take $PAUSE seconds
more; the process $HANGS does not come back from its third one.
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
