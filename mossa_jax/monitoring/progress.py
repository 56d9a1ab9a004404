"""How far long work is, with the time left: a live bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from mossa_jax.log import ON_BAR, console, log
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.clock import clock
from mossa_jax.processes.watchdog import sign

# A line is written when as much of the work is done since the last one and as many seconds have passed, or when nothing
# was written for long.
_SHARE, _SECONDS, _SILENCE = 0.3, 10.0, 120.0


class _Mark(NamedTuple):
    time: float
    done: int
    compiled: float  # seconds of compilation until then


class Progress:
    """The progress of one piece of long work, in units."""

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "tasks"):
        """Starts the clock.

        Args:
          label: subject.
          total: number of units.
          done: number of units that are finished already, and do not count for the pace.
          unit: their name, in the plural.
        """
        self.label, self.total = label, total
        self._unit = unit
        self._start = self._said = _Mark(time.monotonic(), done, goodput.compile_seconds())
        self._first: _Mark | None = None
        if done < total:
            self._show(done, "")

    def line(self, done: int, text: str | Callable[[], str] = "") -> None:
        """Says that `done` units are finished, and records the open stage's time; counts as a sign of life.

        The last unit is said at the end of the open stage, with the time that it took.

        Args:
          done: units that are finished now.
          text: about the last of them; or a function that says how all of it stands since it was called before, and is
            called only when it is shown.
        """
        sign()
        now = _Mark(time.monotonic(), done, goodput.compile_seconds())
        left = self._time_left(now)
        if done >= self.total:
            self._finish(now, text)
        else:
            terminal = console()
            is_live = terminal is not None and terminal.is_live
            is_due = self._is_due(now, left) or (terminal is not None and terminal.level <= logging.DEBUG)
            if is_due or is_live or isinstance(text, str):
                words = text if isinstance(text, str) else text()
                figures = ", ".join(filter(None, (words, "" if left is None else f"{clock(left)} left")))
                self._show(done, figures)
                level = logging.INFO if is_due else logging.DEBUG
                log.log(level, "%s %d/%d %s, %s", self.label, done, self.total, self._unit, figures, extra=ON_BAR)
            if is_due:
                self._said = now
        goodput.record()

    def _show(self, done: int, text: str) -> None:
        if (terminal := console()) is not None:
            terminal.show(self.label, done, self.total, text)

    def _finish(self, now: _Mark, text: str | Callable[[], str]) -> None:
        if (terminal := console()) is not None:
            terminal.hide()
        outcome = f"{self.total:,} {self._unit}"
        if isinstance(text, str):
            log.debug("%s %d/%d %s, %s", self.label, now.done, self.total, self._unit, text)
        elif words := text():
            outcome += f", {words}"
        if not goodput.outcome(outcome, always=callable(text)):
            log.info("%s: %s; took %s", self.label, outcome, clock(now.time - self._start.time))

    def _is_due(self, now: _Mark, left: float | None) -> bool:
        silence = now.time - self._said.time
        share = (now.done - self._said.done) / max(self.total - self._start.done, 1)
        # The end has a line of its own, and is near.
        is_near = left is not None and left < _SECONDS
        return silence >= _SILENCE or (silence >= _SECONDS and share >= _SHARE and not is_near)

    def _time_left(self, now: _Mark) -> float | None:
        """Returns seconds until the end, at the pace since the first call; set-up and compiling do not count.

        The first call may speak for many units, which then give the pace; of a single one, set-up may be the most.
        """
        begin, fewest = (self._start, 2) if self._first is None else (self._first, 1)
        if self._first is None:
            self._first = now
        if now.done - begin.done < fewest:
            return None
        seconds = (now.time - begin.time) - (now.compiled - begin.compiled)
        return max(seconds, 0.0) / (now.done - begin.done) * (self.total - now.done)
