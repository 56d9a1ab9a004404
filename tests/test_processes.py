"""Two real processes, joined by jax.distributed, give the table that one gives."""

import sys

import numpy as np
import pandas as pd
import pytest
from processes import free_address, together


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
