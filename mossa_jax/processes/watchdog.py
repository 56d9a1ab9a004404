"""Signs of life, and the watch that ends a process which gives none.

Long work says `sign()` whenever a piece of it is done: a training step, a batch of prompts, a model or a file read, a
line of progress. Waits that end by themselves and take as long as they take (a compilation, a download, another
process's work) stand in `unlimited()`. What is left is what the watch is for: a device, a collective or a file system
that never answers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import threading
import time
from collections.abc import Callable, Iterator

_POLL = 0.5  # seconds
_STUCK = 60.0  # seconds beyond the limit for which a process may keep this thread from running at all


class _Signs:
    """When this process last gave a sign of life, and how many waits without a limit it is in."""

    def __init__(self):
        self.last = time.monotonic()
        self.unlimited = 0
        self.lock = threading.Lock()


_signs = _Signs()


def sign() -> None:
    """Something is done; the time that the next thing may take begins."""
    _signs.last = time.monotonic()


@contextlib.contextmanager
def unlimited() -> Iterator[None]:
    """What is done inside may take any time."""
    with _signs.lock:
        _signs.unlimited += 1
    try:
        yield
    finally:
        sign()
        with _signs.lock:
            _signs.unlimited -= 1


class Watchdog:
    """A thread that calls for help when there was no sign of life for too long."""

    def __init__(self, seconds: float, silent: Callable[[str], None]):
        """Starts to watch.

        Args:
          seconds: the longest time between two signs of life.
          silent: called once, in the watching thread, with the reason in words; has to end the process.
        """
        self._seconds = seconds
        self._silent = silent
        self._closed = threading.Event()
        sign()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(_POLL):
            # Where native code keeps the interpreter for itself this thread cannot run; then one of faulthandler's,
            # which needs no interpreter, writes the stacks and ends the process, with 1.
            faulthandler.dump_traceback_later(self._seconds + _STUCK, exit=True)
            if _signs.unlimited:
                sign()
            elif time.monotonic() - _signs.last > self._seconds:
                faulthandler.cancel_dump_traceback_later()
                self._silent(f"no sign of life for {self._seconds:g} s (--step_timeout); the stacks are in the log")
                return

    def close(self) -> None:
        """Stops watching."""
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
