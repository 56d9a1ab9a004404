"""Which run owns a folder in an object store. These stores have no locks, so a run renews its claim at a fixed rhythm.

A run that finds another run's claim watches it for a while. If the claim changes, its run is alive; otherwise that run
is dead, and the claim is taken over. The clocks of two machines are never compared. A run that did not renew its claim
in time (its process was stopped, its network failed) and lost it learns so at the next renewal and has to stop. Two
runs that start within the time that a write takes to become visible may both believe for one beat that they own it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from typing import Any

from etils import epath

BEAT = 10.0
"""Seconds between two renewals."""
PATIENCE = 3 * BEAT
"""Seconds without a renewal after which a run counts as dead."""
SETTLE = 1.0
"""Seconds after which another run's write would be visible."""


class Lease:
    """One run's claim on a folder, renewed by a thread of its own until `release`."""

    def __init__(self, path: epath.PathLike):
        """Claims nothing yet.

        Args:
          path: of the file that names the folder's owner.
        """
        self._path = epath.Path(path)
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "run": secrets.token_hex(8)}
        self._renewals = 0
        self._has_ended = threading.Event()
        self._usurper: str | None = None
        self._thread: threading.Thread | None = None

    def claim(self) -> str | None:
        """Takes the folder, unless another run owns it; watches an existing claim for up to `PATIENCE` seconds.

        Returns:
          None, or a description of the owner.
        """
        claim, since = self._read(), time.monotonic()
        while claim is not None and time.monotonic() - since < PATIENCE:
            time.sleep(PATIENCE / 30)
            latest = self._read()
            if latest is not None and latest != claim:
                return _description(latest)
            claim = latest
        self._write()
        time.sleep(SETTLE)
        claim = self._read()
        if claim is None or claim["run"] != self._owner["run"]:
            return _description(claim)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return None

    def taken_by(self) -> str | None:
        """Returns a description of the run that took the folder over; None while it is ours."""
        return self._usurper

    def release(self) -> None:
        """Frees the folder for other runs, if it is still ours."""
        self._has_ended.set()
        if self._thread is not None:
            self._thread.join()
            # A claim that cannot be deleted is taken over in time.
            with contextlib.suppress(Exception):
                if self._is_ours():
                    self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._has_ended.wait(BEAT) and self._usurper is None:
            # Whatever error a file system raises, the next beat tries again.
            with contextlib.suppress(Exception):
                if self._is_ours():
                    self._write()

    def _is_ours(self) -> bool:
        claim = self._read()
        if claim is not None and claim["run"] != self._owner["run"]:
            self._usurper = _description(claim)
        return self._usurper is None

    def _write(self) -> None:
        self._renewals += 1
        self._path.write_text(json.dumps(self._owner | {"word": self._renewals}))

    def _read(self) -> dict[str, Any] | None:
        try:
            claim = json.loads(self._path.read_text())
            return claim if {"host", "pid", "run"} <= claim.keys() else None
        except (FileNotFoundError, ValueError, AttributeError):
            return None


def _description(claim: dict[str, Any] | None) -> str:
    return f"{claim['pid']} on {claim['host']}" if claim else "another run"
