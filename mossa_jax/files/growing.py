"""Text files that grow line by line: metrics and logs."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable

from etils import epath

from mossa_jax.errors import Refusal
from mossa_jax.files.paths import is_remote
from mossa_jax.files.write import write_text

RHYTHM = 30.0
"""Seconds after which a text that has grown is written again to an object store."""


class GrowingText:
    """A text file that grows line by line.

    On a disk each line is written at once. An object store cannot append: the whole text is written again, `RHYTHM`
    seconds after a line was added and at `flush`, and a kill loses the lines since then.
    """

    def __init__(self, path: epath.PathLike, is_line: Callable[[bytes], bool] | None = None):
        """Writes nothing yet.

        Args:
          path: of the file, which may exist.
          is_line: whether a last line that lacks its line break is a line. One that is not is what a kill left, and
            the next line takes its place. By default it stays.
        """
        self.path = epath.Path(path)
        self._is_line = is_line
        self._lock = threading.RLock()
        self._has_begun = False
        self._text = ""  # the whole text, in an object store
        self._is_behind = False  # whether the object store lacks some of it
        self._timer: threading.Timer | None = None

    def append(self, line: str) -> None:
        """Adds a line.

        Args:
          line: without its line break.
        """
        with self._lock:
            if not self._has_begun:
                line = self._begin() + line
            if is_remote(self.path):
                self._text += line + "\n"
                self._is_behind = True
                if self._timer is None:
                    self._timer = threading.Timer(RHYTHM, self._write_in_time)
                    self._timer.daemon = True
                    self._timer.start()
            else:
                with self.path.open("a") as file:
                    file.write(line + "\n")
            self._has_begun = True

    def _begin(self) -> str:
        """Makes the file ready for its first new line; returns what has to stand before that."""
        before = self.path.read_bytes() if self.path.exists() else b""
        start = before.rpartition(b"\n")[2]
        if start and self._is_line is not None and not self._is_line(start):
            before = before.removesuffix(start)
            if not is_remote(self.path):
                os.truncate(self.path, len(before))
        self._text = before.decode(errors="replace") if is_remote(self.path) else ""
        # A kill may have left half a line: the next one starts on a line of its own.
        return "" if before.endswith(b"\n") or not before else "\n"

    def flush(self) -> None:
        """Writes the lines that an object store lacks; after an error the next call tries again.

        Raises:
          Refusal: 6, as `write_bytes`.
        """
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._is_behind:
                write_text(self.path, self._text)
                self._is_behind = False

    def _write_in_time(self) -> None:
        with contextlib.suppress(Refusal):
            self.flush()


class LogFile(logging.Handler):
    """A log in a run folder.

    A line that cannot be written is left out: the run's own files fail in the same way, and say so once.
    """

    def __init__(self, path: epath.PathLike):
        """Writes nothing yet.

        Args:
          path: of the file, which may exist.
        """
        super().__init__()
        self._file = GrowingText(path)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Adds a record's line."""
        with contextlib.suppress(OSError, Refusal):
            self._file.append(self.format(record))

    def flush(self) -> None:
        """Writes the lines that an object store lacks."""
        with contextlib.suppress(OSError, Refusal):
            self._file.flush()

    def close(self) -> None:
        """Flushes for the last time."""
        self.flush()
        super().close()
