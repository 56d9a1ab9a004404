"""Ctrl-C at many moments of a command's life: it ends at once, and Python says nothing of it."""

import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support.processes import cpu

MOMENTS = [0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0]  # seconds


@pytest.fixture(scope="module")
def commands(tmp_path_factory, tiny_config):
    """name -> (words, signals to be sent)."""
    here = tmp_path_factory.mktemp("interrupts")
    (here / "states").mkdir()
    np.save(here / "states/1.npy", np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    states = [f"--states_{side}={here}/states" for side in "ab"]
    return {
        "compare": (["launch.compare", *states, f"--out={here}/table.csv"], [signal.SIGINT]),
        "tasks": (["launch.tasks", f"--config={tiny_config}"], [signal.SIGINT]),
        "plan": (["launch", "plan", "--config=demo", "--nocompile"], [signal.SIGINT]),
        "help": (["launch.run", "--help"], [signal.SIGINT]),
        "run": (["launch.run", f"--config={tiny_config}", "--workdir=WORKDIR"], [signal.SIGINT] * 2),
        "run, hung up": (["launch.run", f"--config={tiny_config}", "--workdir=WORKDIR"], [signal.SIGHUP]),
    }


def is_started(file):
    """Returns whether Python has imported the package of commands; before that its own start is what is interrupted."""
    return re.search(r"\| +launch$", file.read_text(errors="replace"), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compare", "tasks", "plan", "help", "run", "run, hung up"])
def test_it_ends_without_a_traceback_whenever_it_comes(root, commands, tmp_path, name):
    words, signals = commands[name]
    ends = []
    for moment in MOMENTS:
        errors = tmp_path / f"{moment}.err"
        line = [word.replace("WORKDIR", str(tmp_path / f"run{moment}")) for word in words]
        with errors.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-X", "importtime", "-m", *line],
                cwd=root, env=cpu(root, 1), stdout=subprocess.DEVNULL, stderr=file,
            )  # fmt: skip
        try:
            while not is_started(errors):
                assert process.poll() is None
                time.sleep(0.002)
            time.sleep(moment)
            for number, sent in enumerate(signals):
                # Two that come at the same time count once.
                time.sleep(0.2 * number)
                process.send_signal(sent)
            begin = time.monotonic()
            code = process.wait(timeout=120)
        finally:
            process.kill()
            process.wait()
        said = errors.read_text()
        assert "Traceback" not in said and "KeyboardInterrupt" not in said, (moment, said[-2000:])
        # Done before it came, ended by it, or stopped politely where that took less time than the second.
        assert code in {0, 75, -signals[0]} and (code != 75 or "launch.run" in words)
        ends.append(f"{moment:g} s: {code} after {time.monotonic() - begin:.1f} s")
    print(f"{name}: " + "; ".join(ends))
