"""Host memory that loading a large model takes, in one process and in two."""

import json
import sys

import pytest

from mossa_jax.llama.published import write_random
from tests.support.processes import free_address, together


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """438 MB in four files: far more than the process itself needs."""
    folder = tmp_path_factory.mktemp("random") / "llama-110m"
    write_random(folder, "llama-110m", "float32", shard_gb=0.12)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def measured(root, checkpoint, processes: int, folder) -> list[dict]:
    command = [sys.executable, "-m", "launch.bench_load", f"--base={checkpoint}", "--dtype=float32", "--nosequential"]
    if processes > 1:
        command += [f"--processes={processes}", f"--coordinator={free_address()}"]
    commands = [[*command, *([f"--process={index}"] if processes > 1 else [])] for index in range(processes)]
    return [json.loads(out.splitlines()[-1]) for out in together(commands, root, 1, folder)]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "share"), [(1, 1.15), (2, 0.65)])
def test_loading_stays_below_the_peak_of_host_memory(root, checkpoint, processes, share, tmp_path):
    for actual in measured(root, checkpoint, processes, tmp_path):
        # What python and jax take for themselves is a tenth of a 7B model but as much as this one.
        own = actual["peak_host_bytes"] - actual["peak_before_loading"]
        assert own <= share * actual["model_bytes"]
        assert actual["bytes_here"] <= actual["model_bytes"] * (1.01 / processes)
