"""What processes that were killed left in a folder of the cache: locks that nobody holds, and work half done.

Who works on NAME holds the lock `.NAME.lock` and works in `.NAME.PROCESS.tmp`, both in the same folder. So whatever has
a lock that is free is nobody's.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from mossa_jax.processes.watchdog import unlimited

# Folders that this process has looked through.
_swept: set[Path] = set()


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Holds the lock of a name in a folder, which is created; waits while another process does.

    The lock's file is deleted at the end. A process that waited for it then locks a new one, and has to look again at
    what the lock protects.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    path = _lock_file(folder, name)
    lock = filelock.FileLock(str(path))
    with unlimited():
        acquired = lock.acquire()
    with acquired:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def sweep(folder: Path) -> None:
    """Removes what processes that were killed left in a folder.

    Done once per process and folder: to look through thousands of entries for each new one would take quadratic time.
    """
    if folder in _swept:
        return
    _swept.add(folder)
    leftovers: dict[Path, list[Path]] = {path: [] for path in folder.glob(".*.lock")}
    for path in folder.glob(".*.tmp"):
        name = path.name.removeprefix(".").rsplit(".", 2)[0]
        leftovers.setdefault(_lock_file(folder, name), []).append(path)
    for path, folders in leftovers.items():
        lock = filelock.FileLock(str(path))
        try:
            lock.acquire(timeout=0)
        except (OSError, filelock.Timeout):
            continue
        with lock:
            for leftover in folders:
                shutil.rmtree(leftover, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink()


def _lock_file(folder: Path, name: str) -> Path:
    return folder / f".{name}.lock"
