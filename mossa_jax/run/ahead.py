"""Programs of the stages to come, compiled in a thread while the devices work on the stage before.

The thread compiles from shapes alone, needs no memory on the devices, and hands nothing over: its programs go into the
cache of compiled programs (`files.compiled`), where the stage's own first call finds them. So a stage computes the same
with and without it, and an error in it changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

import jax

from mossa_jax.files.compiled import is_kept
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.processes.watchdog import unlimited

Programs = Callable[[], Iterable[Callable[[], object]]]
"""Returns what compiles each program of a stage; called in the thread."""


def can_compile_ahead() -> bool:
    """Returns whether programs may be compiled while others run.

    With several processes all must compile the same program at the same time. A GPU's compiler tries kernels on the
    device to find the fastest: beside a running step they would take its memory and be timed wrongly. A CPU has nothing
    to wait for: compiler and step share its cores, and the demo took as long with the thread as without.
    """
    return is_kept() and jax.process_count() == 1 and jax.default_backend() not in ("cpu", "gpu")


class Ahead:
    """The thread, and the stages whose programs it has to compile, in their order."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._waiting: dict[str, Programs] = {}
        self._current = ""  # the stage whose programs are being compiled
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def add(self, stage: str, programs: Programs) -> None:
        """Lets the thread compile a stage's programs, after those of the stages that were added before."""
        if self._is_closed or not can_compile_ahead():
            return
        with self._lock:
            self._waiting[stage] = programs
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)
                self._thread.start()
            self._lock.notify_all()

    def take_over(self, stage: str) -> None:
        """Ends the work for a stage that begins now: what is not begun is left out, what is under way is waited for."""
        with self._lock:
            self._waiting.pop(stage, None)
            # The stage's first program is the one under way, or is behind it: to compile it twice takes longer.
            with goodput.lost("compile"), unlimited():
                while self._current == stage:
                    self._lock.wait()

    def close(self) -> None:
        """Lets the thread end after the program that it compiles now, and does not wait for it."""
        with self._lock:
            self._is_closed = True
            self._waiting.clear()
            self._lock.notify_all()

    @property
    def is_working(self) -> bool:
        """Whether a program is being compiled."""
        return bool(self._current)

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._is_closed:
                    self._lock.wait()
                if self._is_closed:
                    return
                self._current = next(iter(self._waiting))
                programs = self._waiting.pop(self._current)
            try:
                for compile_program in programs():
                    if self._is_closed:
                        break
                    compile_program()
            except Exception as error:  # the stage itself reports what is wrong with it
                log.log(logging.DEBUG, "%s: not compiled ahead: %s", self._current, error)
            finally:
                with self._lock:
                    self._current = ""
                    self._lock.notify_all()
