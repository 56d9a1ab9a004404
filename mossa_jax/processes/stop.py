"""The polite stop on SIGTERM and SIGINT: save, leave, and resume with the same command."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from mossa_jax.errors import STOPPED, Refusal
from mossa_jax.processes.watchdog import unlimited


class Stop:
    """Whether somebody asked this process to stop; long work asks between units and saves before it leaves.

    Attributes:
      asked: True once somebody did.
      pass_on: called with every request made to this process, by a signal's handler; None for nothing.
    """

    def __init__(self):
        self.asked = False
        self.pass_on: Callable[[], None] | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Turns SIGTERM and SIGINT into a request (main thread only); a second one acts as it always does."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def ask(number, frame):
            self.asked = True
            if self.pass_on is not None:
                self.pass_on()
            signal.signal(number, previous[number])

        previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def asked_anywhere(self) -> bool:
        """Whether any process of the run was asked; with several, all must come here at the same point."""
        with unlimited():  # for the others' own work
            return self.asked_after(0.0)[0]

    def asked_after(self, seconds: float) -> tuple[bool, float]:
        """`asked_anywhere`, and the most seconds that any process gives."""
        if jax.process_count() == 1:
            return self.asked, seconds
        found = multihost_utils.process_allgather(np.asarray([self.asked, seconds], np.float32))
        return bool(found[:, 0].any()), float(found[:, 1].max())

    def leave(self) -> None:
        """Raises the refusal that ends the process with exit code 75."""
        raise Refusal(STOPPED, "stopped on request, state saved; run the same command again to go on")

    def leave_if_asked(self) -> None:
        """`leave`, if any process was asked to stop."""
        if self.asked_anywhere():
            self.leave()
