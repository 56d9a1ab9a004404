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


# Joins, and says whether JAX keeps compiled programs.
KEEPS = """
import sys
from mossa_jax.files.compiled import is_kept, keep_compiled
from mossa_jax.processes.life import Process, Settings
import jax
jax.config.update("jax_compilation_cache_dir", None)
settings = Settings(platform="cpu", processes=2, coordinator=sys.argv[1], process=int(sys.argv[2]))
sys.exit(Process(settings, keep_compiled).run(lambda process: print("kept:", is_kept(), flush=True)))
"""


@pytest.mark.parametrize("is_shared", [True, False])
def test_programs_are_kept_only_in_a_folder_that_all_processes_see(root, tmp_path, is_shared):
    """Otherwise one process could find a program that another has to compile, and on GPUs they compile together."""
    address = free_address()
    caches = [tmp_path / ("cache" if is_shared else f"cache{index}") for index in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", KEEPS, address, str(index)],
            cwd=root,
            env=cpu(root, 1) | {"MOSSA_CACHE": str(caches[index])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process, (said, errors) in [(process, process.communicate(timeout=240)) for process in processes]:
        assert process.returncode == 0, errors
        assert f"kept: {is_shared}" in said and ("not every process sees" in errors) != is_shared
    # Nothing is left of the look around.
    assert not [path for path in tmp_path.rglob("meeting-*")]
