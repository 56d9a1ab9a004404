"""Measures calls: the time of several in turns, and the peak memory of one."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mossa_jax.benchmarks.machine import REST
from mossa_jax.log import log


class Times(NamedTuple):
    """The time of one call.

    Attributes:
      clock: seconds by the clock.
      cpu: CPU seconds of all threads of this process.
    """

    clock: float
    cpu: float


def time_in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, rest: float = REST) -> dict[str, list[Times]]:
    """Times each call once per round.

    Each round begins with another call, so that no call always follows the same one.

    Args:
      runs: the calls, by name.
      rounds: the number of rounds.
      rest: seconds of rest before each call.

    Returns:
      Name -> the times of all rounds.
    """
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


def summarize(times: Sequence[Times], baseline: Sequence[Times]) -> dict[str, Any]:
    """Returns the median seconds, and the ratio to a baseline round by round: median, lowest and highest.

    Both are given by the clock and in CPU seconds. If the machine is busy with other work, the ratio of CPU seconds on
    one core each is the more reliable one.

    Args:
      times: of a call, one per round.
      baseline: of the call to compare it with, in the same rounds.
    """
    summary: dict[str, Any] = {}
    for field, prefix in (("clock", ""), ("cpu", "cpu_")):
        seconds, base_seconds = ([getattr(run, field) for run in runs] for runs in (times, baseline))
        ratios = [a / b for a, b in zip(seconds, base_seconds, strict=True)]
        summary |= {
            f"{prefix}seconds": statistics.median(seconds),
            f"{prefix}all_seconds": seconds,
            f"{prefix}ratio": statistics.median(ratios),
            f"{prefix}ratio_lowest": min(ratios),
            f"{prefix}ratio_highest": max(ratios),
        }
    return summary


def finite_or_none(value: float | np.floating[Any]) -> float | None:
    """Returns the number, or None if it is not finite: JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the progress bars and warnings of other tools."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def failure(error: Exception) -> str:
    """Returns the type of an error and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def extra_peak_bytes(run: Callable[[], object]) -> int | None:
    """Measures by how many bytes a second call of `run` raises this process's peak of resident memory.

    The first call compiles and loads. The memory that it frees is returned to the system before the second call.

    Returns:
      The bytes; None if this system does not tell (only Linux does).
    """
    run()
    gc.collect()
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # Resets the peak to the memory that is resident now.
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    run()
    return max(_status_bytes("VmHWM") - before, 0)


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(f"{field}:"))
