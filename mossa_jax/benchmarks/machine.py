"""What every measurement here needs: turns, the machine's peak and versions, and peak memory of one call."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import io
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.log import log

REST = 0.3  # seconds, in which the other's idle threads stop spinning
_PEAK_SIZE, _PEAK_RUNS = 2048, 7
_NAMED = (
    "mossa_jax", "jax", "jaxlib", "flax", "numpy", "scipy", "torch", "transformers", "pytorch-cka", "torch-cka",
    "cka-pytorch", "anatome", "thingsvision", "ckatorch", "tdhook", "netrep", "nnsight",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions of what is installed, the device, cores, and how loaded the machine is before anything runs."""
    versions = {}
    for name in _NAMED:
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
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads() -> None:
    """Gives torch, where it is installed, a thread for every core."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(cores())


def _best(run: Callable[[], Any]) -> float:
    run()
    times = []
    for _ in range(_PEAK_RUNS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def matmul_peak() -> dict[str, float]:
    """GFLOP/s of a square float32 product (2,048, full precision), best of seven, by library; `best` is the peak."""
    a = np.random.default_rng(0).standard_normal((_PEAK_SIZE, _PEAK_SIZE), np.float32)
    work = 2 * _PEAK_SIZE**3 / 1e9
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=jax.lax.Precision.HIGHEST))
    placed = jnp.asarray(a)
    found = {"jax": work / _best(lambda: jax.block_until_ready(product(placed)))}
    if importlib.util.find_spec("torch") is not None:
        import torch

        there = torch.from_numpy(a).to(torch_device())

        def run() -> None:
            there @ there
            if there.is_cuda:
                torch.cuda.synchronize()

        time.sleep(REST)
        found["torch"] = work / _best(run)
    return {name: round(value, 1) for name, value in (*found.items(), ("best", max(found.values())))}


def torch_device() -> str:
    """Where torch computes: its GPU if it sees one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallows other tools' progress bars and warnings."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


class Times(NamedTuple):
    """One run: seconds by the clock, and CPU seconds of all threads of this process."""

    clock: float
    cpu: float


def in_turns(runs: dict[str, Callable[[], Any]], rounds: int, rest: float = REST) -> dict[str, list[Times]]:
    """Times of every run in every round; each round begins with another one, so none always follows the same."""
    times: dict[str, list[Times]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(rest)
            clock, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            times[name].append(Times(time.perf_counter() - clock, time.process_time() - cpu))
        log.info("round %d of %d", number + 1, rounds)
    return times


def or_none(value: float) -> float | None:
    """The number, or None where it is not finite: JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def summary(times: list[Times], base: list[Times]) -> dict[str, Any]:
    """Median seconds, and the ratio to `base` round by round: median, lowest, highest; the same of CPU seconds.

    On a machine that is busy with other things the ratio of CPU seconds, on one core each, is the one to trust.
    """
    found: dict[str, Any] = {}
    for kind, prefix in (("clock", ""), ("cpu", "cpu_")):
        own, other = ([getattr(one, kind) for one in runs] for runs in (times, base))
        ratios = [a / b for a, b in zip(own, other, strict=True)]
        found |= {
            f"{prefix}seconds": statistics.median(own),
            f"{prefix}all_seconds": own,
            f"{prefix}ratio": statistics.median(ratios),
            f"{prefix}ratio_lowest": min(ratios),
            f"{prefix}ratio_highest": max(ratios),
        }
    return found


def extra_peak(run: Callable[[], Any]) -> int | None:
    """Bytes by which a second call of `run` lifts this process's resident peak; None where Linux does not tell.

    The first call compiles and loads; what it left free is handed back to the system before the second one.
    """
    run()
    gc.collect()
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is counted from now on
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return max(_status("VmHWM") - before, 0)


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(f"{field}:"))
