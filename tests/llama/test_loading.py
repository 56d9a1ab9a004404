"""What loading costs: host memory for a model that fills it, one process and two."""

import json
import os
import socket
import subprocess
import sys

import pytest

from mossa_jax.llama.published import write_random


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """438 MB in four files: far above what the process needs for itself."""
    folder = tmp_path_factory.mktemp("random") / "llama-110m"
    write_random(folder, "llama-110m", "float32", shard_gb=0.12)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def measured(root, checkpoint, processes: int) -> list[dict]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = ["-m", "launch.bench_load", f"--base={checkpoint}", "--dtype=float32", "--nosequential"]
    flags += [f"--processes={processes}", f"--coordinator={address}"] if processes > 1 else []
    running = [
        subprocess.Popen(
            [sys.executable, *flags, *([f"--process={index}"] if processes > 1 else [])],
            cwd=root, env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}, stdout=subprocess.PIPE, text=True,
        )
        for index in range(processes)
    ]  # fmt: skip
    return [json.loads(process.communicate(timeout=200)[0].splitlines()[-1]) for process in running]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "share"), [(1, 1.15), (2, 0.65)])
def test_peak_memory(root, checkpoint, processes, share):
    for found in measured(root, checkpoint, processes):
        # What python and jax take for themselves is a tenth of a 7B model but as much as this one.
        own = found["peak_host_bytes"] - found["peak_before_loading"]
        assert own <= share * found["model_bytes"]
        assert found["bytes_here"] <= found["model_bytes"] * (1.01 / processes)
