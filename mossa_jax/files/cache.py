"""The cache on this machine: folders that one process builds once, and that are complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import filelock

from mossa_jax.files.paths import cache_root
from mossa_jax.files.write import new_folder
from mossa_jax.processes.watchdog import unlimited


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Returns the cache's folder of that name, and builds it first if it does not exist.

    If several processes on one file system ask for it, one builds it and the others wait. A process that is killed
    meanwhile leaves nothing that counts.

    Args:
      name: path below the cache, e.g. "rows/0123abcd"; the same name must always mean the same content.
      build: fills the empty folder that it gets.
    """
    folder = cache_root() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(str(folder.parent / f".{folder.name}.lock"))
    with unlimited():
        acquired = lock.acquire()
    with acquired:
        if not folder.is_dir():
            for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            with new_folder(folder) as working:
                build(Path(working))
    return folder
