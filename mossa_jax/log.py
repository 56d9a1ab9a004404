"""The logger of the package, and the console: lines on standard error, and on a terminal a live bar below them.

Every line goes to the logger, and with it to the log.txt of a run folder. The console shows those that `--verbosity`
asks for. While a bar is up, lines that only say how far the work is (`ON_BAR`) are left to it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

log = logging.getLogger("mossa_jax")

ON_BAR = {"on_bar": True}
"""The `extra` of lines that a live bar shows in its own way."""

_LONG = 5.0  # seconds of silence after which a wait is said
_BESIDE = 16  # columns of a bar's line for the spinner, the gaps and a note
_ADVICE = "Models won't be available"  # in transformers' advice to install PyTorch


class Console(logging.StreamHandler):
    """The lines and the live bar of one process.

    Attributes:
      is_live: whether a bar may be shown: on a terminal that can move its cursor, unless lines are unwanted, too.
    """

    def __init__(self, stream: TextIO, level: int):
        """Writes lines of `level` (of `logging`) and above to a stream."""
        super().__init__(stream)
        self.setLevel(level)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        can_draw = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        self.is_live = can_draw and level <= logging.INFO
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line, above the bar if there is one."""
        if self._bar is None:
            super().emit(record)
        elif not getattr(record, "on_bar", False) or record.levelno < logging.INFO:
            try:
                self._bar.console.print(self.format(record), markup=False, highlight=False, emoji=False, soft_wrap=True)
            except Exception:
                self.handleError(record)

    def show(self, label: str, done: int, total: int | None, text: str = "") -> None:
        """Shows the bar, or changes what it says; does nothing where there is none.

        Args:
          label: subject.
          done, total: units; `total` is None where nobody knows how many there are.
          text: behind the bar.
        """
        if not self.is_live:
            return
        with self._held():
            if self._bar is None:
                self._bar = _new_bar(self.stream)
                self._bar.start()
                # rich hides the cursor; a process that is killed would leave it so.
                self._bar.console.show_cursor(True)
                self._task = None
            units = "" if total is None else f"{done:,}/{total:,}"
            # rich would cut all columns alike.
            room = self._bar.console.width - _bar_width(self._bar.console.width) - len(label) - len(units) - _BESIDE
            text = text if len(text) <= room else text[: max(room - 1, 0)] + "…" * (room > 0)
            if self._task is None:
                self._task = self._bar.add_task(label, total=total, completed=done, units=units, text=text, note="")
            else:
                self._bar.update(self._task, description=label, total=total, completed=done, units=units, text=text)

    def note(self, text: str) -> None:
        """Says on the bar what the process waits for; "" for nothing."""
        with self._held():
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, note=text)

    def hide(self) -> None:
        """Takes the bar away."""
        with self._held():
            bar, self._bar = self._bar, None
            if bar is not None:
                bar.stop()

    def quieten(self) -> None:
        """Shows warnings only, and no bar: another process speaks for all."""
        self.hide()
        self.is_live = False
        self.setLevel(max(self.level, logging.WARNING))

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _bar_width(columns: int) -> int:
    return 24 if columns >= 80 else 10


def _new_bar(stream: TextIO) -> Bar:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    terminal = Terminal(file=stream)
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(_bar_width(terminal.width)),
        *(TextColumn("{task.fields[" + field + "]}", markup=False) for field in ("units", "text", "note")),
    ]
    # Other libraries' lines go above the bar, too. Standard output may be a file, which nothing may be taken from.
    return Progress(
        *columns,
        console=terminal,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=True,
        refresh_per_second=5,
    )


_console: Console | None = None


def console() -> Console | None:
    """Returns the console of this process; None where nobody asked for one, as in a notebook."""
    return _console


def log_to_console(level: int) -> Console:
    """Sends the log to standard error.

    Args:
      level: of `logging`; lines below it are left out.
    """
    global _console
    if _console is not None:
        log.removeHandler(_console)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    _console = Console(sys.stderr, level)
    log.addHandler(_console)
    atexit.register(_console.hide)
    return _console


class Wait:
    """A wait that is said: on the bar at once, and in a line of its own if it is long."""

    def __init__(self, line: str, note: str = "", in_line: bool = True):
        """Begins the wait.

        Args:
          line: what is waited for.
          note: the same in a word or two, for the bar.
          in_line: whether a long wait is said in a line.
        """
        self._line, self.was_said = line, False
        self._console = console()
        self._timer: threading.Timer | None = None
        if self._console is None:
            return
        self._console.note(note)
        if in_line:
            self._timer = threading.Timer(_LONG, self._say)
            self._timer.daemon = True
            self._timer.start()

    def _say(self) -> None:
        self.was_said = True
        log.info("%s", self._line, extra=ON_BAR)

    def end(self) -> None:
        """Ends the wait."""
        if self._timer is not None:
            self._timer.cancel()
        if self._console is not None:
            self._console.note("")


@contextlib.contextmanager
def waiting(label: str, text: str) -> Iterator[None]:
    """Says what the block does, on a bar of its own or, if it takes long, in a line.

    Args:
      label: subject.
      text: what it does.
    """
    terminal = console()
    if terminal is not None:
        terminal.show(label, 0, None, text)
    wait = Wait(f"{label}: {text}")
    try:
        yield
    finally:
        wait.end()
        if terminal is not None:
            terminal.hide()


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Keeps transformers from advising PyTorch when it is imported in the block: nothing here lacks it."""
    logger = logging.getLogger("transformers")

    def is_no_advice(record: Any) -> bool:
        return _ADVICE not in str(record.msg)

    logger.addFilter(is_no_advice)
    try:
        yield
    finally:
        logger.removeFilter(is_no_advice)
