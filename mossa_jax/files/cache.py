"""The cache on this machine: folders that one process builds once, and that are complete or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.files.paths import as_path, cache_root
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


def keep_compiled(folder: str) -> None:
    """Makes jax keep compiled programs in a folder, on a disk or in any store that fsspec knows, and reuse them.

    Process 0 writes and all read. A program is reused on the same hardware, under the same versions and flags.

    Raises:
      Refusal: 2 when fsspec does not know the folder's scheme.
    """
    import jax

    try:
        path = as_path(folder)
    except (ImportError, ValueError) as error:
        raise Refusal(BAD_CONFIG, f"--compile_cache={folder}: {error}; name a local folder or gs://...") from None
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))
