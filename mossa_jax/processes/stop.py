"""The polite stop on SIGTERM and SIGINT: the run saves its state and leaves; the same command resumes it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mossa_jax.errors import STOPPED, Refusal
from mossa_jax.processes.watchdog import unlimited


class Stop:
    """Whether this process was asked to stop; long work checks this between units, and saves before it leaves.

    Attributes:
      asked: True once the process was asked.
      pass_on: called, from a signal handler, on every request made to this process; None for nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self.pass_on: Callable[[], None] | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Turns SIGTERM and SIGINT into a request (main thread only); a second signal acts as it does by default."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def ask(number: int, frame: object) -> None:
            self.asked = True
            if self.pass_on is not None:
                self.pass_on()
            signal.signal(number, previous[signal.Signals(number)])

        previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def asked_anywhere(self) -> bool:
        """Returns whether any process of the run was asked; all processes must call this at the same point."""
        with unlimited():  # the others may still be at work
            return self.asked_after(0.0)[0]

    def asked_after(self, seconds: float) -> tuple[bool, float]:
        """Returns `asked_anywhere`, and the largest number of seconds that any process passes."""
        if jax.process_count() == 1:
            return self.asked, seconds
        gathered = multihost_utils.process_allgather(np.asarray([self.asked, seconds], np.float32))  # [processes, 2]
        return bool(gathered[:, 0].any()), float(gathered[:, 1].max())

    def leave(self) -> NoReturn:
        """Raises the refusal that ends the process with exit code 75.

        Raises:
          Refusal: 75, always.
        """
        raise Refusal(STOPPED, "stopped on request, state saved; run the same command again to continue")

    def leave_if_asked(self) -> None:
        """Leaves if any process was asked to stop."""
        if self.asked_anywhere():
            self.leave()
