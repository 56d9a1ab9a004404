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

from mossa_jax.tuning import population_run
from mossa_jax.tuning.roster import Roster

PAUSE, HANGS = float(os.environ.get("PAUSE", "0")), int(os.environ.get("HANGS", "-1"))


train = population_run.train


def slow_train(label, total, state, step, *reports, **options):
    def slow_step(state, number):
        if number == 2 and jax.process_index() == HANGS:
            time.sleep(10_000)
        time.sleep(PAUSE)
        return step(state, number)

    return train(label, total, state, slow_step, *reports, **options)


class TracedRoster(Roster):
    def batch(self, model, step):
        which, rows = super().batch(model, step)
        with (Path(os.environ["TRACE"]) / f"{jax.process_index()}.txt").open("a") as file:
            file.write(f"{self.members[model].name} {step} {rows.tolist()}\n")
        return which, rows


population_run.train, population_run.Roster = slow_train, TracedRoster
sys.argv[0] = "launch.run"
runpy.run_module("launch.run", run_name="__main__", alter_sys=True)
