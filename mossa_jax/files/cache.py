"""The cache on this machine: folders that are made once, by one process, and are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import jax

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.files.paths import as_path, cache_root
from mossa_jax.files.write import new_folder
from mossa_jax.processes.watchdog import unlimited


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
    lock = filelock.FileLock(str(folder.parent / f".{folder.name}.lock"))
    with unlimited():
        held = lock.acquire()
    with held:
        if not folder.is_dir():
            for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with new_folder(folder) as working:
                build(Path(working))
    return folder


def keep_compiled(folder: str) -> None:
    """Has jax keep compiled programs in a folder, on a disk or of any scheme that fsspec knows, and take them from it.

    Process 0 writes, all read; a program is found again on the same hardware under the same versions and flags.

    Raises:
      Refusal: 2 when the folder's scheme is not known.
    """
    try:
        path = as_path(folder)
    except (ImportError, ValueError) as error:
        raise Refusal(BAD_CONFIG, f"--compile_cache={folder}: {error}; name a local folder or gs://...") from None
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))
