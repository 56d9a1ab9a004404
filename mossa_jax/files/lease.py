"""Whose a folder in an object store is. These have no locks, so a run says at a rhythm that it is alive.

A run that finds the claim of another one watches it for a while. If the claim changes, its run is alive; if not, it is
what a dead run left, and is taken over. No two machines' clocks are compared. A run whose claim was taken over while
it could not say so (its process stood still, its network was away) learns that at its next word and has to stop.
Two runs that begin within the time that a write takes to be seen can both believe for a beat that the folder is theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time

from etils import epath

BEAT = 10.0  # seconds between two words
PATIENCE = 3 * BEAT  # seconds without a word after which a run counts as dead
SETTLE = 1.0  # seconds after which a write of another run would be seen


class Lease:
    """One run's claim on a folder, renewed by a thread of its own until `release`."""

    def __init__(self, path: epath.PathLike):
        """Claims nothing yet.

        Args:
          path: of the file that says whose the folder is.
        """
        self._path = epath.Path(path)
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "run": secrets.token_hex(8)}
        self._word = 0
        self._ended = threading.Event()
        self._taken: str | None = None
        self._thread: threading.Thread | None = None

    def claim(self) -> str | None:
        """Takes the folder; returns None, or who holds it. Waits up to `PATIENCE` seconds where a claim stands."""
        found, since = self._read(), time.monotonic()
        while found is not None and time.monotonic() - since < PATIENCE:
            time.sleep(PATIENCE / 30)
            now = self._read()
            if now is not None and now != found:
                return _named(now)
            found = now
        self._say()
        time.sleep(SETTLE)
        found = self._read()
        if found is None or found["run"] != self._me["run"]:
            return _named(found)
        self._thread = threading.Thread(target=self._renew, name="holder", daemon=True)
        self._thread.start()
        return None

    def taken_by(self) -> str | None:
        """Who took the folder over from this run; None while it is ours."""
        return self._taken

    def release(self) -> None:
        """Gives the folder free, if it is still ours."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            with contextlib.suppress(Exception):  # what is left is taken over in time
                if self._is_ours():
                    self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(BEAT) and self._taken is None:
            with contextlib.suppress(Exception):  # whatever a file system raises: the next beat tries again
                if self._is_ours():
                    self._say()

    def _is_ours(self) -> bool:
        found = self._read()
        if found is not None and found["run"] != self._me["run"]:
            self._taken = _named(found)
        return self._taken is None

    def _say(self) -> None:
        self._word += 1
        self._path.write_text(json.dumps(self._me | {"word": self._word}))

    def _read(self) -> dict | None:
        try:
            found = json.loads(self._path.read_text())
            return found if {"host", "pid", "run"} <= found.keys() else None
        except (FileNotFoundError, ValueError, AttributeError):
            return None


def _named(found: dict | None) -> str:
    return f"{found['pid']} on {found['host']}" if found else "another run"
