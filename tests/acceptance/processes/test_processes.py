"""Two real processes, joined by jax.distributed, give the table that one gives; what may go wrong before they do."""

import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.processes.rendezvous import find_place
from tests.support.processes import cpu, free_address, together

# Devices that take their time.
SLOW_START = """
import runpy, sys, time
from mossa_jax.processes import life
def slow():
    print("starting", flush=True)
    time.sleep(2)
life.check_platform = slow
runpy.run_module("launch.tune", run_name="__main__", alter_sys=True)
"""


def test_a_stop_while_devices_start_is_polite(root, tiny_config, tmp_path):
    command = [sys.executable, "-c", SLOW_START, f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}"]
    with subprocess.Popen(
        command, cwd=root, env=cpu(root, 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "starting\n"
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 75 and "stopped on request" in said.splitlines()[-1]


def test_a_cluster_that_does_not_say_where_process_0_is_may_be_asked_again(monkeypatch):
    def silent(*given):
        raise RuntimeError("Failed to resolve coordinator address")

    monkeypatch.setattr("jax._src.clusters.ClusterEnv.auto_detect_unset_distributed_params", silent)
    with pytest.raises(Refusal, match=r"within 3 s \(--start_timeout\): Failed to resolve") as caught:
        find_place(0, "", -1, 3)
    assert caught.value.code == 7


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_give_the_table_of_one(root, tiny_config, tiny_run, tmp_path, devices):
    address = free_address()
    flags = [f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}", "--processes=2", f"--coordinator={address}"]
    commands = [[sys.executable, "-m", "launch.run", *flags, f"--process={index}"] for index in range(2)]
    together(commands, root, devices, tmp_path)
    found = pd.read_parquet(tmp_path / "run/results/cka.parquet")
    wanted = pd.read_parquet(tiny_run[1] / "results/cka.parquet")
    labels = ["experimental", "control", "task", "layer", "estimator", "n", "undefined"]
    pd.testing.assert_frame_equal(found[labels], wanted[labels])
    for name in ("cka", "low", "high"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4)
