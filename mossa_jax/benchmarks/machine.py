"""The machine that measurements are made on: its versions, cores and device, and the peak of its matrix products."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

REST = 0.3
"""Seconds before each timed run, in which the idle threads of another library stop spinning."""

_PEAK_SIZE, _PEAK_RUNS = 2048, 7
_DISTRIBUTIONS = (
    "mossa_jax", "jax", "jaxlib", "flax", "numpy", "scipy", "torch", "transformers", "pytorch-cka", "torch-cka",
    "cka-pytorch", "anatome", "thingsvision", "ckatorch", "tdhook", "netrep", "nnsight",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Describes installed versions, the device, the cores, and the machine's load before anything runs."""
    versions = {}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": platform.processor() or platform.machine(),
        "cores": cores(),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads() -> None:
    """Gives torch, if it is installed, one thread per core."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(cores())


def torch_device() -> str:
    """Returns the device that torch computes on: a GPU if it sees one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def matmul_peak() -> dict[str, float]:
    """Measures a square float32 matrix product of size 2,048 at full precision.

    Returns:
      GFLOP/s by library, the best of seven runs each, and `best`, the peak of the machine.
    """
    matrix = np.random.default_rng(0).standard_normal((_PEAK_SIZE, _PEAK_SIZE), np.float32)
    gflop = 2 * _PEAK_SIZE**3 / 1e9
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=jax.lax.Precision.HIGHEST))
    placed = jnp.asarray(matrix)
    rates = {"jax": gflop / _shortest(lambda: jax.block_until_ready(product(placed)))}
    if importlib.util.find_spec("torch") is not None:
        import torch

        tensor = torch.from_numpy(matrix).to(torch_device())

        def run() -> None:
            tensor @ tensor
            if tensor.is_cuda:
                torch.cuda.synchronize()

        time.sleep(REST)
        rates["torch"] = gflop / _shortest(run)
    return {name: round(rate, 1) for name, rate in (*rates.items(), ("best", max(rates.values())))}


def _shortest(run: Callable[[], object]) -> float:
    """Returns the seconds of the shortest of several calls, after one that is not timed."""
    run()
    times = []
    for _ in range(_PEAK_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
