"""The polite stop, on SIGTERM, SIGINT, SIGHUP or after --max_hours: the run saves its state and leaves.

The same command resumes it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mossa_jax.errors import STOPPED, Refusal
from mossa_jax.processes.interrupts import handle_once
from mossa_jax.processes.watchdog import unlimited

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""The signals that ask for a stop: of a scheduler, of a keyboard, and of a terminal that is closed."""

_IMPORTED = time.monotonic()


class Stop:
    """Whether this process was asked to stop; long work checks this between units, and saves before it leaves.

    Attributes:
      asked: True once the process was asked.
      is_out_of_time: True once the time limit of the run asked for it.
      pass_on: called, from a signal handler or a thread, on every request made to this process; None for nothing.
    """

    def __init__(self, max_hours: float = 0) -> None:
        """Starts no clock.

        Args:
          max_hours: hours after which the work is asked to stop, counted from the start of this process; 0 for no
            limit.
        """
        self.asked = False
        self.is_out_of_time = False
        self.pass_on: Callable[[], None] | None = None
        self._max_hours = max_hours

    def ask(self, is_out_of_time: bool = False) -> None:
        """Asks for a stop; a signal handler or a thread may call this.

        Args:
          is_out_of_time: whether the time limit asks.
        """
        self.is_out_of_time |= is_out_of_time
        self.asked = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Turns `SIGNALS` into a request (main thread only); a second one acts as it does by default, but for SIGHUP.

        A SIGHUP that is ignored, as under `nohup`, stays so.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def ask(number: int, frame: object) -> None:
            self.ask()
            if self.pass_on is not None:
                self.pass_on()
            # A terminal that closes sends SIGHUP, and its shell once more.
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else previous[signal.Signals(number)])

        previous: dict[signal.Signals, Any] = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
        if previous[signal.SIGHUP] is signal.SIG_IGN:
            del previous[signal.SIGHUP]
        try:
            for number in previous:
                # Schedulers may send theirs to a process and to its group; a second Ctrl-C is meant.
                (handle_once if number is signal.SIGINT else signal.signal)(number, ask)
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def in_time(self, decides: Callable[[], bool]) -> Iterator[None]:
        """Asks for a stop once the time limit is over, if there is one and if the block still works then.

        Args:
          decides: whether the clock of this process is the one that counts; asked when the limit is reached.
        """
        if not self._max_hours:
            yield
            return

        def ask() -> None:
            if decides():
                self.ask(is_out_of_time=True)
                if self.pass_on is not None:
                    self.pass_on()

        timer = threading.Timer(max(3600 * self._max_hours - process_age(), 0.0), ask)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def asked_anywhere(self) -> bool:
        """Returns whether any process of the run was asked; all processes must call this at the same point."""
        with unlimited():  # the others may still be at work
            return self.asked_after(0.0)[0]

    def asked_after(self, seconds: float) -> tuple[bool, float]:
        """Returns `asked_anywhere`, and the largest number of seconds that any process passes."""
        if jax.process_count() == 1:
            return self.asked, seconds
        values = np.asarray([self.asked, self.is_out_of_time, seconds], np.float32)
        gathered = multihost_utils.process_allgather(values)  # [processes, 3]
        asked, is_out_of_time, slowest = gathered.max(axis=0)
        # The message of `pass_on` may still be under way: all processes give the same reason.
        self.is_out_of_time |= bool(is_out_of_time)
        return bool(asked), float(slowest)

    def leave(self) -> NoReturn:
        """Raises the refusal that ends the process with exit code 75.

        Raises:
          Refusal: 75, always.
        """
        reason = f"--max_hours={self._max_hours:g} reached" if self.is_out_of_time else "stopped on request"
        raise Refusal(STOPPED, f"{reason}, state saved; run the same command again to continue")

    def leave_if_asked(self) -> None:
        """Leaves if any process was asked to stop."""
        if self.asked_anywhere():
            self.leave()


def process_age() -> float:
    """Returns the seconds since this process started; where that is not known, since it imported this module.

    Linux knows it.
    """
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            # Field 22; the name of the program, in field 2, may hold spaces and brackets.
            ticks = int(file.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = 0.0
    return max(age, time.monotonic() - _IMPORTED)
