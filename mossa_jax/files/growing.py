"""Text files that lines are added to: metrics and logs."""

from __future__ import annotations

import contextlib
import logging
import threading

from etils import epath

from mossa_jax.errors import Refusal
from mossa_jax.files.paths import is_remote
from mossa_jax.files.write import write_text

RHYTHM = 30.0  # seconds after which a text that grows is written anew to an object store


class GrowingText:
    """A text file that lines are added to.

    On a disk each is there at once. An object store cannot append: there the whole text is written anew, `RHYTHM`
    seconds after a line came and at `flush`; a kill loses the lines since.
    """

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path)
        self._lock = threading.RLock()
        self._begun = False
        self._text = ""  # all of it, where it cannot be appended to
        self._held = False  # whether some of it is not written yet
        self._timer: threading.Timer | None = None

    def append(self, line: str) -> None:
        """Adds a line (without its end)."""
        with self._lock:
            if not self._begun:  # a kill may have left half a line: the new one starts on its own
                before = self.path.read_bytes() if self.path.exists() else b""
                line = line if before.endswith(b"\n") or not before else f"\n{line}"
                self._text = before.decode(errors="replace") if is_remote(self.path) else ""
            if is_remote(self.path):
                self._text += line + "\n"
                self._held = True
                if self._timer is None:
                    self._timer = threading.Timer(RHYTHM, self._due)
                    self._timer.daemon = True
                    self._timer.start()
            else:
                with self.path.open("a") as file:
                    file.write(line + "\n")
            self._begun = True

    def flush(self) -> None:
        """Writes what only this process knows so far; raises as `write_bytes`, and the next call tries again."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._held:
                write_text(self.path, self._text)
                self._held = False

    def _due(self) -> None:
        with contextlib.suppress(Refusal):
            self.flush()


class LogFile(logging.Handler):
    """A log in a run folder. A line that cannot be written is left out: the run's own files say so, and say it once."""

    def __init__(self, path: epath.PathLike):
        super().__init__()
        self._file = GrowingText(path)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Adds the record's line."""
        with contextlib.suppress(OSError, Refusal):
            self._file.append(self.format(record))

    def flush(self) -> None:
        """Writes what was held back."""
        with contextlib.suppress(OSError, Refusal):
            self._file.flush()

    def close(self) -> None:
        """`flush`, for the last time."""
        self.flush()
        super().close()
