"""Signs of life, and the watchdog that ends a process which gives none.

Long work calls `sign()` whenever a piece of it is done: a training step, a batch of prompts, a model or file that was
read, a line of progress. Waits that end by themselves, however long they take (a compilation, a download, another
process's work), are inside `unlimited()`. The watchdog is for the rest: a device, a collective or a file system that
never answers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import threading
import time
from collections.abc import Callable, Iterator

_POLL = 0.5  # seconds between two looks
_STUCK = 60.0  # seconds beyond the limit for which native code may keep this thread from running at all


class _Signs:
    """The time of the last sign of life, and the number of unlimited waits that are under way."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.unlimited = 0
        self.lock = threading.Lock()


_signs = _Signs()


def sign() -> None:
    """Gives a sign of life: the time limit of the next piece of work begins."""
    _signs.last = time.monotonic()


@contextlib.contextmanager
def unlimited() -> Iterator[None]:
    """Lets the work inside take any time."""
    with _signs.lock:
        _signs.unlimited += 1
    try:
        yield
    finally:
        sign()
        with _signs.lock:
            _signs.unlimited -= 1


class Watchdog:
    """A thread that calls a function when there was no sign of life for too long."""

    def __init__(self, seconds: float, end_process: Callable[[str], None]):
        """Starts watching.

        Args:
          seconds: the longest time between two signs of life.
          end_process: called once, in the watching thread, with the reason; has to end the process.
        """
        self._seconds = seconds
        self._end_process = end_process
        self._is_closed = threading.Event()
        sign()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_closed.wait(_POLL):
            # If native code never releases the interpreter, this thread cannot run. Then a thread of faulthandler,
            # which needs no interpreter, writes the stacks and ends the process with exit code 1.
            faulthandler.dump_traceback_later(self._seconds + _STUCK, exit=True)
            if _signs.unlimited:
                sign()
            elif time.monotonic() - _signs.last > self._seconds:
                faulthandler.cancel_dump_traceback_later()
                self._end_process(
                    f"no sign of life for {self._seconds:g} s (--step_timeout); the stacks are in the log"
                )
                return

    def close(self) -> None:
        """Stops watching."""
        self._is_closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
