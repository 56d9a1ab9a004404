"""Progress lines with the time left."""

from __future__ import annotations

import time

from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.processes.watchdog import sign


class Progress:
    """Logs a plain line per unit of long work: subject, progress, figures, and the time left at the pace so far."""

    def __init__(self, label: str, total: int, done: int = 0):
        """Starts the clock.

        Args:
          label: subject of the lines.
          total: number of units.
          done: number of units that are finished already, and do not count for the pace.
        """
        self.label = label
        self.total = total
        self._first = done
        self._start = time.monotonic()

    def line(self, done: int, text: str = "") -> None:
        """Logs that `done` units are finished, and records the open stage's time; counts as a sign of life."""
        sign()
        seconds = time.monotonic() - self._start
        left = seconds / max(done - self._first, 1) * (self.total - done)
        figures = f", {text}" if text else ""
        log.info("%s %d/%d%s, %s left", self.label, done, self.total, figures, clock(left))
        goodput.record()


def clock(seconds: float) -> str:
    """Formats seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
