"""Two real processes, joined by jax.distributed, give the table that one gives."""

import os
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_give_the_table_of_one(root, tiny_config, tiny_run, tmp_path, devices):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(root),
    }
    logs = [(tmp_path / f"{index}.log").open("w+") for index in range(2)]
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "launch.run", f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}",
                "--processes=2", f"--coordinator=localhost:{port}", f"--process={index}",
            ],
            cwd=root, env={**os.environ, **flags}, stdout=logs[index], stderr=subprocess.STDOUT,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    texts = []
    for log in logs:
        log.seek(0)
        texts.append(log.read())
        log.close()
    assert codes == [0, 0], "\n----\n".join(text[-3000:] for text in texts)
    found = pd.read_parquet(tmp_path / "run/results/cka.parquet")
    wanted = pd.read_parquet(tiny_run[1] / "results/cka.parquet")
    labels = ["experimental", "control", "task", "layer", "estimator", "n", "undefined"]
    pd.testing.assert_frame_equal(found[labels], wanted[labels])
    for name in ("cka", "low", "high"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4)
