"""Times of programs on an accelerator, with what their compilation took, and sizes that shrink until they fit."""

from __future__ import annotations

import dataclasses
import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.log import log

# What XLA says when memory is short: of a GPU's or TPU's allocator, and of the TPU's compiler.
_NO_ROOM = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|exceeds available HBM")
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock:
    """The time that a benchmark may take, and has taken."""

    def __init__(self, minutes: float):
        """Starts now."""
        self._start, self._seconds = time.monotonic(), 60 * minutes

    def spent(self) -> float:
        """Returns the seconds since the start."""
        return time.monotonic() - self._start

    def left(self) -> float:
        """Returns the seconds that are left; negative behind the end."""
        return self._seconds - self.spent()


@dataclasses.dataclass(frozen=True)
class Timing:
    """The time of one call, and of the programs that its first run compiled.

    Attributes:
      seconds: the median of the timed runs.
      all_seconds: of each.
      compile_seconds: of XLA, during the first run.
      programs: how many were compiled.
      program_bytes: memory of the largest of them, with arguments and results; None if the runtime does not tell.
    """

    seconds: float
    all_seconds: list[float]
    compile_seconds: float
    programs: int
    program_bytes: int | None


class Compilations:
    """Counts the programs that are compiled in a block: `seconds`, `programs`, and the bytes of the largest."""

    def __enter__(self) -> Compilations:
        self._before = _compile_seconds().copy()
        # Held, so that no later program gets the identity of one of these.
        self._older = _executables()
        return self

    def __exit__(self, *_: object) -> None:
        new = _compile_seconds()[len(self._before) :]
        self.seconds, self.programs = sum(new), len(new)
        older = set(map(id, self._older))
        sizes = [_program_bytes(program) for program in _executables() if id(program) not in older]
        self.largest = max((size for size in sizes if size is not None), default=None)


def time_calls(run: Callable[[], Any], repeats: int, clock: Clock) -> Timing:
    """Times a call several times, after one that compiles.

    Args:
      run: the call; what it returns is waited for.
      repeats: timed runs; fewer, but at least one, where the time is up.
      clock: of the benchmark.
    """
    with Compilations() as compilations:
        jax.block_until_ready(run())
    seconds: list[float] = []
    while len(seconds) < repeats and not (seconds and clock.left() < seconds[-1]):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return Timing(
        statistics.median(seconds), seconds, compilations.seconds, compilations.programs, compilations.largest
    )


def time_pair(runs: Mapping[str, Callable[[], Any]], repeats: int, clock: Clock) -> dict[str, Timing]:
    """Times calls in turns, after one run of each that compiles; arguments and results as in `time_calls`, by name."""
    first = {name: time_calls(run, 1, clock) for name, run in runs.items()}
    seconds = {name: list(timing.all_seconds) for name, timing in first.items()}
    round_seconds = sum(timing.seconds for timing in first.values())
    for _ in range(repeats - 1):
        if clock.left() < round_seconds:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {
        name: dataclasses.replace(timing, seconds=statistics.median(seconds[name]), all_seconds=seconds[name])
        for name, timing in first.items()
    }


def shrink(size: int, attempt: Callable[[int], Any], label: str) -> Any:
    """Calls `attempt` with a size that is halved until it fits the device's memory, and returns its result.

    Args:
      size: the first one.
      attempt: takes the size.
      label: names the measurement in log lines and in the refusal.

    Raises:
      Refusal: 3 if not even 1 fits.
    """
    while True:
        try:
            return attempt(size)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and not _NO_ROOM.search(str(error)):
                raise
        # Behind the handler, so that the error's frames no longer hold arrays.
        gc.collect()
        if size == 1:
            raise Refusal(BAD_INPUT, f"{label}: the device has no room for the smallest size; choose another shape")
        log.warning("%s: %d does not fit, trying %d", label, size, size // 2)
        size //= 2


@cache
def _compile_seconds() -> list[float]:
    """Returns the list that the seconds of every compilation are added to, from the first call on."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def _executables() -> list[Any]:
    try:
        return list(jax.devices()[0].client.live_executables())
    except (AttributeError, jax.errors.JaxRuntimeError):
        return []


def _program_bytes(executable: Any) -> int | None:
    """Returns the memory of a program on a device; a result that overwrites an argument counts once."""
    try:
        memory = executable.get_compiled_memory_stats()
    except (AttributeError, jax.errors.JaxRuntimeError):
        return None
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return size + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
