"""Training that is killed or asked to stop at twenty random moments has the bits of an undisturbed run all the way."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT
from tests.support.processes import cpu

SCRIPT = ROOT / "tests/support/training_process.py"
INTERVAL = 10  # steps between checkpoints


def begin(root, tiny, workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "ready.txt").unlink(missing_ok=True)
    log = (workdir / "log.txt").open("a")
    command = [sys.executable, str(SCRIPT), str(tiny.folder), str(workdir)]
    return subprocess.Popen(command, cwd=root, env=cpu(root, 1), stdout=log, stderr=log)


def steps(workdir):
    path = workdir / "steps.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def outcome(workdir):
    """Returns all results of a finished run: digests of adapters and last state, and metrics by model and step."""
    digests = {path.name: path.read_text() for path in sorted(workdir.glob("model*.txt"))}
    metrics = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that a kill cut short
        before = metrics.setdefault((record["model"], record["step"]), record)
        assert before == record  # a step that was taken twice had the same loss to the bit
    return digests, (workdir / "state.txt").read_text(), metrics


@pytest.fixture(scope="module")
def alone(root, tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("kills") / "alone"
    assert begin(root, tiny, workdir).wait(timeout=300) == 0
    assert len(set(steps(workdir))) == len(steps(workdir)) > 100
    assert len(list(workdir.glob("model*.step*.txt"))) == 9 * 3
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM"])
def test_twenty_interruptions_change_no_bit(root, tiny, alone, kind):
    rng, workdir = random.Random(kind), alone.parent / kind
    redone, interruptions = [], 0
    process = begin(root, tiny, workdir)
    try:
        while interruptions < 20:
            before = len(steps(workdir))
            deadline = time.monotonic() + 120
            # Some interruptions while loading and compiling, most in the middle of steps and saves.
            wanted = rng.choice([0, *range(1, 14 if kind == "SIGKILL" else 6)])
            while process.poll() is None and time.monotonic() < deadline:
                is_reached = (workdir / "ready.txt").exists() if wanted == 0 else len(steps(workdir)) >= before + wanted
                if is_reached:
                    break
                time.sleep(0.005)
            assert process.poll() is None, (workdir / "log.txt").read_text()[-2000:]
            time.sleep(rng.uniform(0, 0.05))
            asked = time.monotonic()
            process.send_signal(getattr(signal, kind))
            code = process.wait(timeout=60)
            if kind == "SIGTERM":
                assert time.monotonic() - asked < 10 + 30 * (
                    len(steps(workdir)) == before
                )  # a compilation is not interrupted
                assert code == 75
            interruptions += 1
            reached = max(steps(workdir), default=-1)
            process = begin(root, tiny, workdir)
            deadline, count = time.monotonic() + 120, len(steps(workdir))
            while len(steps(workdir)) == count and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            redone.append(reached + 1 - steps(workdir)[count])
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        process.wait()
    print(f"{kind}: steps redone {redone}")
    digests, state, metrics = outcome(workdir)
    wanted = outcome(alone)
    assert digests == wanted[0] and state == wanted[1]
    assert metrics == wanted[2]
    if kind == "SIGTERM":
        assert set(redone) == {0}  # no finished step is lost, none is taken twice
    else:
        assert max(redone) <= 2 * INTERVAL  # one interval, and the steps taken while the last save was being written
