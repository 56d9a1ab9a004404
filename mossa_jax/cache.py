"""The cache on this machine: folders that are made once, by one process, and are whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import filelock

from mossa_jax.rundir import new_folder
from mossa_jax.storage import cache_root


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cache's folder of that name, made by `build` if it is not there yet.

    Of several processes on a file system one builds while the others wait; a killed one leaves nothing that counts.

    Args:
      name: path below the cache, e.g. "rows/0123abcd"; the same name must always mean the same content.
      build: fills the empty folder that it is given.
    """
    folder = cache_root() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(str(folder.parent / f".{folder.name}.lock")):
        if not folder.is_dir():
            for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with new_folder(folder) as working:
                build(Path(working))
    return folder
