"""Whatever a run records is a function of the run and not of its interruptions.

A run is stopped at 20 moments of every stage, one attempt after another, and compared with one that was left alone.
A polite stop acts where the run asks whether it was asked to stop: between two steps, two tasks or two stages. So these
are the moments; the stops are asked for in this process. A few runs get real signals.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from mossa_jax.config import Config
from mossa_jax.config.data import config_to_data
from mossa_jax.errors import STOPPED, Refusal
from mossa_jax.monitoring import goodput
from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from tests.support.paths import ROOT, SHARED

MOMENTS = 20
TASKS = 4
MODEL, DATA = SHARED / "models/stories260K", SHARED / "data/instructions"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (MODEL.exists() and DATA.exists()), reason="the real model and tasks are not here"),
]


class CountingStop(Stop):
    """Counts how often each stage looks whether it was asked to stop, and asks at a given number of looks."""

    def __init__(self, numbers=None):
        self._numbers, self.looks, self.where = numbers or {}, {}, None
        super().__init__()

    @property
    def asked(self):
        stage = getattr(goodput._open.get(), "name", "between")
        self.looks[stage] = self.looks.get(stage, 0) + 1
        if self.where is None and self.looks[stage] == self._numbers.get(stage):
            self.where = stage
        return self._is_asked or self.where is not None

    @asked.setter
    def asked(self, value):
        self._is_asked = value


def small_config():
    config = Config(base=str(MODEL), name="stops")
    names = list(json.loads((DATA / "tasks.json").read_text()))[:TASKS]
    config.tasks.suite, config.tasks.folder, config.tasks.only = "folder", str(DATA), tuple(names)
    config.tasks.held_out = ()
    config.tasks.max_train, config.tasks.max_test = 48, 24
    config.tokens.max_tokens, config.tokens.row_length = 256, 256
    for schedule in (config.tuning.control, config.tuning.experimental):
        schedule.batch_rows, schedule.max_steps, schedule.epochs, schedule.learning_rate = 2, 24, 4.0, 1e-3
    config.tuning.slots, config.tuning.checkpoint_every, config.tuning.log_every = 3, 7, 5
    config.tuning.snapshots, config.tuning.score_prompts, config.tuning.score_tokens = 2, 8, 4
    config.compare.permutations, config.compare.draws, config.analyse.factor_permutations = 9, 50, 9
    config.analyse.profile_prompts, config.analyse.profile_layers = 4, 2
    return config


def attempt(config, workdir, stop):
    """Runs until the end or until it is stopped; returns whether it came to the end."""
    run_folder = pipeline.open_run(config, str(workdir))
    run = pipeline.Run(config, run_folder, stop)
    try:
        pipeline.run_all(run)
        return True
    except Refusal as refusal:
        assert refusal.code == STOPPED, refusal
        return False
    finally:
        run.ahead.close()
        run_folder.close()


def recorded(folder):
    """What a run says of itself, times aside: tables, findings, curves, adapters."""
    kinds = ("results/*.csv", "results/findings.json", "adapters/*/*.safetensors", "snapshots/*/*/*.safetensors")
    files = {str(path.relative_to(folder)): path.read_bytes() for kind in kinds for path in folder.glob(kind)}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {(line["model"], line["step"]): line for line in lines if "loss" in line}
    return {**files, "losses": sorted(losses.items())}


def differing(one, other):
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is left alone: (config, folder, looks of each stage)."""
    folder, config, stop = tmp_path_factory.mktemp("stops") / "whole", small_config(), CountingStop()
    assert attempt(config, folder, stop)
    return config, folder, stop.looks


def test_stops_at_many_moments_of_every_stage_leave_no_trace(whole, tmp_path):
    config, folder, looks = whole
    before, workdir, stops = recorded(folder), tmp_path / "broken", dict.fromkeys(looks, 0)
    numbers = {stage: max(count // MOMENTS, 1) for stage, count in looks.items()}
    while not attempt(config, workdir, stop := CountingStop(numbers)):
        stops[stop.where] += 1
        # A stage that begins anew is stopped later each time; one that goes on, a little further each time.
        if stop.where in ("data", "report", "between"):
            numbers[stop.where] += 1
    unlike = differing(before, recorded(workdir))
    print("\nstage | looks in a whole run | stops")
    for stage, count in looks.items():
        print(f"{stage} | {count} | {stops[stage]}")
    print("files compared:", len(before), "unlike:", unlike or "none")
    assert not unlike
    assert all(stops[stage] for stage in looks if stage != "between")
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name]
    assert not any((workdir / "checkpoints").glob("*"))


def test_signals_at_any_time_leave_no_trace(whole, tmp_path):
    config, folder, _ = whole
    path, workdir = tmp_path / "stops.json", tmp_path / "signalled"
    path.write_text(json.dumps(config_to_data(config)))
    command = [sys.executable, "-m", "launch.run", f"--config={path}", f"--workdir={workdir}"]
    environment, rng, codes = {**os.environ, "MOSSA_CACHE": str(tmp_path / "cache")}, random.Random(3), []
    for _ in range(6):
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        time.sleep(rng.uniform(8, 25))
        process.send_signal(signal.SIGTERM)
        codes.append(process.wait())
    assert set(codes) <= {0, 75, -signal.SIGTERM} and 75 in codes
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert not differing(recorded(folder), recorded(workdir))
