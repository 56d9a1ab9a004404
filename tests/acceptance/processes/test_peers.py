"""Processes meet and watch each other: who is missing, lost or failed is named, and nobody waits for the dead."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from mossa_jax.errors import Refusal
from mossa_jax.processes import rendezvous as processes
from mossa_jax.processes.rendezvous import Place, find_place, has_tpu
from mossa_jax.processes.watchdog import Watchdog, sign, unlimited
from tests.support.paths import ROOT

SCRIPT = ROOT / "tests/support/peers_meeting.py"
WORK = {"0": "work", "1": "work", "2": "work"}
SCENARIOS = {
    "missing": {"processes": 4, "do": {"0": "0", "1": "0", "3": "0"}, "start_timeout": 1.5},
    "no coordinator": {"processes": 2, "do": {"1": "0"}, "start_timeout": 1},
    "twice the same": {"processes": 3, "do": WORK, "indices": {"2": 1}, "start_timeout": 3},
    "another number": {"processes": 2, "do": {"0": "0", "1": "0"}, "of": {"1": 3}, "start_timeout": 1.5},
    "killed": {"processes": 3, "do": WORK, "signals": {"2": "SIGKILL"}},
    "coordinator killed": {"processes": 3, "do": WORK, "signals": {"0": "SIGKILL"}},
    "stopped": {"processes": 3, "do": WORK, "signals": {"1": "SIGSTOP"}},
    "coordinator stopped": {"processes": 3, "do": WORK, "signals": {"0": "SIGSTOP"}},
    "failed": {"processes": 3, "do": WORK | {"1": "6 the disk is full"}},
    "coordinator failed": {"processes": 3, "do": WORK | {"0": "6 the disk is full"}},
    "hangs": {"processes": 3, "do": WORK | {"1": "7 no sign of life"}},
    "ends at different times": {"processes": 3, "do": {"0": "wait 2 75", "1": "75", "2": "75"}},
    "all refuse": {"processes": 3, "do": {"0": "3 bad row", "1": "3 bad row", "2": "wait 0.5 3 bad row"}},
    "stop at one": {"processes": 3, "do": {"0": "until stopped", "1": "stop", "2": "until stopped"}},
    "out of time": {"processes": 3, "do": {"0": "out of time", "1": "until stopped", "2": "until stopped"}},
    "differs": {"processes": 3, "do": WORK, "ranks": {"2": 8}},
    "differs and one is missing": {"processes": 3, "do": {"0": "work", "2": "work"}, "ranks": {"2": 8}},
    "exchange": {"processes": 3, "do": {"0": "exchange rows 9", "1": "exchange rows 500000", "2": "exchange rows 1"}},
    "ends before an exchange": {"processes": 3, "do": {"0": "exchange rows 1", "1": "0", "2": "exchange rows 1"}},
    "refuses before an exchange": {"processes": 2, "do": {"0": "exchange rows 1", "1": "3 bad row"}},
    "at other points": {"processes": 2, "do": {"0": "exchange rows 1", "1": "exchange base 1"}},
    "aborts": {"processes": 2, "do": {"0": "abort", "1": "work"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def met(root, tmp_path_factory):
    """scenario -> (exit codes, what each process was told), in the order of its `do`."""
    folder = tmp_path_factory.mktemp("peers")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(list(SCENARIOS.values())), str(folder)], cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]

    def said(name, number):
        path = folder / f"{name}-{number}.txt"
        return path.read_text() if path.exists() else ""

    return {
        label: (codes, [said(number, each) for each in scenario["do"]])
        for number, ((label, scenario), codes) in enumerate(
            zip(SCENARIOS.items(), json.loads(done.stdout), strict=True)
        )
    }


HOST = socket.gethostname()
CLOSED, SILENT = "is lost: its connection closed", "is lost: silent for 3 s (--heartbeat_timeout)"
FULL = "ended with exit code 6 (the disk is full)"


@pytest.mark.parametrize(
    ("scenario", "codes", "words"),
    [
        ("missing", [7, 7, 7], ["3 of 4 have joined, missing: process 2"] * 3),
        ("no coordinator", [7], ["process 0 did not answer at 127.0.0.1:"]),
        ("another number", [7, 2], ["missing: process 1", "it is one of 3, process 0 of 2"]),
        ("killed", [7, 7, -9], [f"process 2 on {HOST} {CLOSED}"] * 2),
        ("coordinator killed", [-9, 7, 7], ["", *[f"process 0 on 127.0.0.1 {CLOSED}"] * 2]),
        ("stopped", [7, -19, 7], [f"process 1 on {HOST} {SILENT}", "", f"process 1 on {HOST} {SILENT}"]),
        ("coordinator stopped", [-19, 7, 7], ["", *[f"process 0 on 127.0.0.1 {SILENT}"] * 2]),
        ("failed", [6, 6, 6], [f"process 1 on {HOST} {FULL}", "alone", f"process 1 on {HOST} {FULL}"]),
        ("coordinator failed", [6, 6, 6], ["alone", f"process 0 {FULL}", f"process 0 {FULL}"]),
        (
            "hangs",
            [7, 7, 7],
            [f"hangs: process 1 on {HOST} ended with exit code 7 (no sign of life)", "alone", "hangs: "],
        ),
        ("ends at different times", [75, 75, 75], ["together"] * 3),
        ("all refuse", [3, 3, 3], ["together"] * 3),
        ("stop at one", [75, 0, 75], ["together"] * 3),
        ("out of time", [75, 75, 75], ["together late"] * 3),
        ("differs", [2, 2, 2], [f"process 2 on {HOST} has rank=8, process 0 has 4; give all"] * 3),
        ("differs and one is missing", [2, 2], [f"process 2 on {HOST} has rank=8, process 0 has 4"] * 2),
        ("exchange", [0, 0, 0], ["together [('0', 9), ('1', 500000), ('2', 1)]"] * 3),
        ("ends before an exchange", [7, 0, 7], [f"process 1 on {HOST} ended with exit code 0 while", "alone"]),
        ("refuses before an exchange", [3, 3], [f"process 1 on {HOST} ended with exit code 3 (bad row)", "alone"]),
        ("at other points", [7, 7], [f"process 1 on {HOST} is at 'base', process 0 at 'rows'"] * 2),
        ("aborts", [-6, 7], ["", f"process 0 on 127.0.0.1 {CLOSED}"]),
    ],
)
def test_everyone_is_told_how_the_run_ends(met, scenario, codes, words):
    found, said = met[scenario]
    assert found == codes, said
    for text, wanted in zip(said, words, strict=False):
        assert wanted in text and text.startswith("hangs") == wanted.startswith("hangs")


def test_one_place_is_given_once(met):
    codes, said = met["twice the same"]
    assert codes[0] == 7 and "missing: process 2" in said[0]
    assert sorted(codes[1:]) == [2, 7]
    assert "another process has this index" in said[1 + codes[1:].index(2)]


OMPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.0.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOBID": "123456",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
}


@pytest.mark.parametrize("processes", [0, 4])
def test_a_cluster_says_who_we_are(monkeypatch, processes):
    for name, value in OMPI.items():
        monkeypatch.setenv(name, value)
    place = find_place(processes, "", -1, 1)
    assert (place.processes, place.process, list(place.devices)) == (4, 2, [1])
    assert place.address[0] == "10.0.0.1"
    with pytest.raises(Refusal, match=r"--processes=3, but the cluster's environment says 4") as caught:
        find_place(3, "", -1, 1)
    assert caught.value.code == 2


def test_slurm_says_who_we_are(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    place = find_place(0, "", -1, 1)
    assert (place.processes, place.process, list(place.devices), place.address[0]) == (16, 9, [1], "node01")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((0, "", -1), "--processes and --coordinator and --process"),
        ((2, "", 1), "--coordinator"),
        ((2, "localhost:1234", -1), "--process"),
        ((2, "localhost:1234", 2), "--process=2: processes are numbered from 0 to 1"),
        ((2, "localhost", 0), "--coordinator=localhost: give it as host:port"),
    ],
)
def test_what_nobody_says_is_asked_for(given, words):
    with pytest.raises(Refusal, match=words) as caught:
        find_place(*given, 1)
    assert caught.value.code == 2


def test_alone_and_told():
    assert find_place(1, "", -1, 1) is None
    assert find_place(2, "[::1]:1234", 1, 1).address == ("::1", 1234)
    assert find_place(2, "localhost:1234", 0, 1) == Place("localhost:1234", 2, 0)


def test_a_host_with_tpus_is_known(tmp_path, monkeypatch):
    for number, (vendor, device) in enumerate([("0x8086", "0x1237"), ("0x1ae0", "0x0042")]):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/vendor").write_text(f"{vendor}\n")
        (tmp_path / f"{number}/device").write_text(f"{device}\n")
    assert not has_tpu(tmp_path) and not has_tpu(tmp_path / "nowhere")
    (tmp_path / "1/device").write_text("0x0063\n")
    assert has_tpu(tmp_path)
    monkeypatch.setattr(processes, "has_tpu", lambda: True)
    monkeypatch.setattr(processes.jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(processes.jax, "config", type("Config", (), {"jax_platforms": None}))
    with pytest.raises(Refusal, match="this host has TPUs") as caught:
        processes.check_platform()
    assert caught.value.code == 2
    processes.jax.config.jax_platforms = "cpu"
    processes.check_platform()


def test_the_watch_speaks_when_there_is_no_sign_of_life():
    heard = []
    dog = Watchdog(0.6, heard.append)
    try:
        for _ in range(8):
            time.sleep(0.2)
            sign()
        assert not heard
        with unlimited():
            time.sleep(1.5)
        assert not heard
        deadline = time.monotonic() + 30
        while not heard and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(heard) == 1 and "0.6 s (--step_timeout)" in heard[0]
    finally:
        dog.close()
