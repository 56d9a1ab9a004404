"""A run folder is held by one process at a time."""

import dataclasses
import os
import subprocess
import sys

import pytest

from mossa_jax.errors import Refusal
from mossa_jax.files import run_folder as run_folder
from mossa_jax.files.run_folder import RunFolder

HOLD = """
import sys
from mossa_jax.files.run_folder import RunFolder
import dataclasses
Config = dataclasses.make_dataclass("Config", [("seed", int, 0)])
held = RunFolder(sys.argv[1])
held.open(Config(), {})
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_and_free_after_its_death(tmp_path, root):
    config = dataclasses.make_dataclass("Config", [("seed", int, 0)])()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Refusal, match=f"in use by process {holder.pid}") as caught:
            RunFolder(tmp_path).open(config, {})
        assert caught.value.code == 2
        RunFolder(tmp_path, writer=False).open(config, {})  # a process that only reads does not ask
    finally:
        holder.kill()
        holder.communicate()
    (tmp_path / ".torn.1.tmp").write_text("left by a kill")
    run_folder = RunFolder(tmp_path)
    run_folder.open(config, {})
    assert not (tmp_path / ".torn.1.tmp").exists()
    run_folder.close()
    RunFolder(tmp_path).open(config, {})
