"""Runs of several processes that lose one, hang, or are asked to stop: their exit codes, and what a new start makes."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.paths import ROOT
from tests.support.processes import cpu, free_address

SCRIPT = ROOT / "tests/support/run_process.py"
TIMEOUT = 8  # seconds
PHASES = {"start": "processes: 4 of 4", "tune": "E 2/10", "compare": "compare 1/3", "report": "compare 3/3"}


class Pod:
    """Processes of one run on this machine; what process i says is in `<i>.err`."""

    def __init__(self, root, config, workdir, logs, count=4, flags=(), **variables):
        self.logs = logs
        logs.mkdir(parents=True)
        address, env = free_address(), cpu(root, 1) | {"TRACE": str(logs)} | variables
        # What one pod has compiled the next one finds.
        env |= {"JAX_COMPILATION_CACHE_DIR": str(config.parent / "compiled")}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        flags = [
            f"--config={config}",
            f"--workdir={workdir}",
            f"--processes={count}",
            f"--coordinator={address}",
            "--verbosity=debug",
            *flags,
        ]
        self.processes = []
        for index in range(count):
            with (logs / f"{index}.err").open("w") as err:
                command = [sys.executable, str(SCRIPT), *flags, f"--process={index}"]
                self.processes.append(subprocess.Popen(command, cwd=root, env=env, stdout=err, stderr=err))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, index):
        return (self.logs / f"{index}.err").read_text()

    def until(self, words, index=0, timeout=300):
        deadline = time.monotonic() + timeout
        while words not in self.said(index):
            assert time.monotonic() < deadline and self.processes[index].poll() is None, self.said(index)[-3000:]
            time.sleep(0.05)

    def codes(self, timeout, but=()):
        """Exit codes of all processes but some; fails when one has not ended in time."""
        deadline = time.monotonic() + timeout
        rest = [process for index, process in enumerate(self.processes) if index not in but]
        return [process.wait(timeout=max(deadline - time.monotonic(), 0.01)) for process in rest]

    def trace(self, index=0):
        return (self.logs / f"{index}.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def alone(root, tiny_config, tmp_path_factory):
    """The same run on four processes that nobody disturbs: (run folder, its batches)."""
    folder = tmp_path_factory.mktemp("pods") / "alone"
    with Pod(root, tiny_config, folder / "run", folder / "logs") as pod:
        assert pod.codes(600) == [0] * 4, pod.said(0)[-3000:]
        assert "processes: 4 of 4 have joined, 1 device each" in pod.said(3)
        assert [pod.trace(index) for index in (1, 2, 3)] == [pod.trace()] * 3
        return folder / "run", pod.trace()


def table(workdir):
    return (workdir / "results/cka.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "sent"), [(2, "SIGKILL"), (1, "SIGSTOP"), (0, "SIGKILL"), (0, "SIGSTOP"), (3, "SIGKILL")]
)
def test_a_process_lost_in_any_phase_ends_all_and_costs_nothing(root, tiny_config, alone, tmp_path, victim, sent):
    others = [index for index in range(4) if index != victim]
    for phase, words in PHASES.items():
        with Pod(
            root, tiny_config, tmp_path / "run", tmp_path / phase, flags=[f"--heartbeat_timeout={TIMEOUT}"]
        ) as pod:
            pod.until(words, victim if phase == "start" else 0)
            pod.processes[victim].send_signal(getattr(signal, sent))
            assert pod.codes(TIMEOUT + 10, but=[victim]) == [7] * 3, phase
            for index in others:
                lines = [line for line in pod.said(index).splitlines() if " error: " in line]
                assert len(lines) == 1 and f"process {victim} on" in lines[0] and "is lost" in lines[0]
                assert "Traceback" not in pod.said(index) and "stack trace" not in pod.said(index)
    with Pod(root, tiny_config, tmp_path / "run", tmp_path / "last") as pod:
        assert pod.codes(600) == [0] * 4, pod.said(0)[-3000:]
    assert table(tmp_path / "run") == table(alone[0])


@pytest.mark.slow
def test_a_step_that_does_not_end_is_ended(root, tiny_config, alone, tmp_path):
    flags = ["--step_timeout=15"]
    with Pod(root, tiny_config, tmp_path / "run", tmp_path / "logs", flags=flags, HANGS="0") as pod:
        pod.until("E, rows of 64: a step takes", 1)
        assert pod.codes(15 + 60) == [7] * 4
        log = (tmp_path / "run/log.txt").read_text()
        for text in (pod.said(0), log):  # where it hangs
            assert re.search(r'run_process.py", line \d+ in step', text) and "no sign of life for 15 s" in text
    with Pod(root, tiny_config, tmp_path / "run", tmp_path / "last") as pod:
        assert pod.codes(600) == [0] * 4, pod.said(0)[-3000:]
    assert table(tmp_path / "run") == table(alone[0])


@pytest.mark.slow
@pytest.mark.parametrize("asked", [(0, 1, 2, 3), (2,)])
def test_a_stop_saves_one_state_and_two_processes_go_on_with_it(root, tiny_config, alone, tmp_path, asked):
    with Pod(root, tiny_config, tmp_path / "run", tmp_path / "first", PAUSE="0.5") as pod:
        pod.until("E 2/10")
        for index in asked:
            pod.processes[index].send_signal(signal.SIGTERM)
        assert pod.codes(60) == [75] * 4
        before = pod.trace()
        assert [pod.trace(index) for index in (1, 2, 3)] == [before] * 3
        for index in range(4):
            assert "stopped on request, state saved" in pod.said(index).splitlines()[-1]
    saved = [int(path.name) for path in (tmp_path / "run/checkpoints/E").iterdir() if path.name.isdigit()]
    assert saved == [len(before)]  # of the last step that was taken
    with Pod(root, tiny_config, tmp_path / "run", tmp_path / "second", count=2) as pod:
        assert pod.codes(600) == [0] * 2, pod.said(0)[-3000:]
        assert before + pod.trace() == alone[1] and pod.trace(1) == pod.trace()
    found, wanted = (pd.read_csv(run / "results/cka.csv") for run in (tmp_path / "run", alone[0]))
    np.testing.assert_allclose(found["cka"], wanted["cka"], atol=1e-4)


@pytest.mark.slow
def test_all_processes_stop_when_the_hours_of_the_first_are_over(root, tiny_config, tiny_run, tmp_path):
    """The limit is over in a step of E or before, as fast as this machine may be: a step takes a minute."""
    with Pod(
        root, tiny_config, tmp_path / "run", tmp_path / "first", count=2, flags=["--max_hours=0.006"], PAUSE="60"
    ) as pod:
        assert pod.codes(300) == [75] * 2, pod.said(0)[-3000:]
        for index in range(2):
            last = pod.said(index).splitlines()[-1]
            assert last == "stopped: --max_hours=0.006 reached, state saved; run the same command again to continue"
    with Pod(root, tiny_config, tmp_path / "run", tmp_path / "second", count=2, flags=["--max_hours=1"]) as pod:
        assert pod.codes(600) == [0] * 2, pod.said(0)[-3000:]
    found, wanted = (pd.read_csv(run / "results/cka.csv") for run in (tmp_path / "run", tiny_run[1]))
    np.testing.assert_allclose(found["cka"], wanted["cka"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "words"), [("score", "scores 1/3"), ("compare", "compare 1/3")])
def test_a_stop_between_tasks_is_agreed_on(root, tiny_config, alone, tmp_path, phase, words):
    with Pod(root, tiny_config, tmp_path / "run", tmp_path / "first") as pod:
        pod.until(words)
        pod.processes[3].send_signal(signal.SIGTERM)
        assert pod.codes(120) == [75] * 4
    with Pod(root, tiny_config, tmp_path / "run", tmp_path / "second") as pod:
        assert pod.codes(600) == [0] * 4, pod.said(0)[-3000:]
    assert table(tmp_path / "run") == table(alone[0])


@pytest.mark.slow
def test_a_failure_of_one_process_is_told_to_all(root, tiny_config, alone, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/results").write_text("no folder")  # process 0 alone writes there
    with Pod(root, tiny_config, tmp_path / "run", tmp_path / "logs") as pod:
        codes = pod.codes(600)
        assert codes[0] in (1, 2) and codes == [codes[0]] * 4
        assert all(f"process 0 ended with exit code {codes[0]}" in pod.said(index) for index in (1, 2, 3))


@pytest.mark.slow
def test_what_one_process_does_for_all_is_stopped_and_gone_on_with(root, tmp_path):
    """Pre-training: by process 0, in checkpoints of its own, while the others wait; one of them is asked to stop."""
    config = Path(shutil.copy(root / "configs/demo.py", tmp_path))
    flags = [
        "--config.tasks.only=('facts_country','sentiment_review','reading_who','struct_owner')",
        *("--config.tasks.max_train=64", "--config.tasks.max_test=48"),
        *("--config.pretraining.steps=100", "--config.pretraining.documents=2000"),
        *("--config.tuning.control.max_steps=10", "--config.tuning.experimental.max_steps=10"),
        *("--config.tuning.score_prompts=16", "--config.compare.permutations=20", "--config.compare.draws=100"),
    ]
    cache = {"MOSSA_CACHE": str(tmp_path / "cache")}
    with Pod(root, config, tmp_path / "run", tmp_path / "first", count=2, flags=flags, **cache) as pod:
        pod.until("pre-training 30/100")
        pod.processes[1].send_signal(signal.SIGTERM)
        assert pod.codes(120) == [75] * 2, pod.said(0)[-3000:]
    saved = [path for path in (tmp_path / "run/checkpoints/pretraining").iterdir() if path.name.isdigit()]
    assert saved and not list((tmp_path / "cache").glob("miniature-*"))
    with Pod(root, config, tmp_path / "run", tmp_path / "second", count=2, flags=flags, **cache) as pod:
        assert pod.codes(600) == [0] * 2, pod.said(0)[-3000:]
        assert "pre-training 30/100" not in pod.said(0) and "pre-training 100/100" in pod.said(0)
