"""The cache on this machine: folders that one process builds once, that are complete or absent, and that are checked
each time they are read back.

Beside its files each folder has `SHA256SUMS`, in the format of `sha256sum`, so that `sha256sum -c SHA256SUMS` checks it
as well.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mossa_jax.files.leftovers import locked
from mossa_jax.files.paths import cache_root
from mossa_jax.files.write import new_folder
from mossa_jax.log import log
from mossa_jax.processes.watchdog import sign

SUMS = "SHA256SUMS"
_CHUNK = 1 << 22  # bytes that are hashed between two signs of life


def build_once(name: str, build: Callable[[Path], None], check: Callable[[Path], str] | None = None) -> Path:
    """Returns the cache's folder of that name, and builds it first if it does not exist or is damaged.

    If several processes on one file system ask for it, one builds it and the others wait. A process that is killed
    meanwhile leaves nothing that counts. A folder that is damaged is built again, with one line in the log.

    Args:
      name: path below the cache, e.g. "rows/0123abcd"; the same name must always mean the same content.
      build: fills the empty folder that it gets.
      check: says what is wrong with a folder, "" if nothing; by default every file is compared with its digest
        (`damage`). Called once for each call of this function that finds the folder.
    """
    folder, check = cache_root() / name, check or damage
    fault = _fault(folder, check)
    if not fault:
        return folder
    with locked(folder.parent, folder.name):
        # Another process may have built it meanwhile.
        fault = _fault(folder, check)
        if fault:
            if os.path.lexists(folder):
                log.info("cache: %s %s, so it is made again", folder, fault)
            if not folder.is_dir():
                folder.unlink(missing_ok=True)
            with new_folder(folder) as working:
                build(Path(working))
                _record(Path(working))
    return folder


def damage(folder: Path) -> str:
    """Compares the files of a folder that `build_once` made with the digests that were recorded then.

    Returns:
      What is wrong, in a few words that name the first file; "" if nothing is.
    """
    try:
        digests = _digests(folder)
    except (OSError, ValueError):
        return f"has no readable {SUMS}"
    there = {path for path in _files(folder) if path != SUMS}
    if extra := sorted(there - digests.keys()):
        return f"has a file {extra[0]} that is not its own"
    for path, digest in digests.items():
        if path not in there:
            return f"lacks {path}"
        try:
            # A pipe in a file's place would never end.
            is_same = (folder / path).is_file() and _sha256(folder / path) == digest
        except OSError as error:
            return f"has a file {path} that cannot be read ({error.strerror})"
        if not is_same:
            return f"has a damaged file {path}"
    return ""


def _sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hex digits."""
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        # Most files are small, and a large buffer would cost more than they do.
        buffer = memoryview(bytearray(min(_CHUNK, os.fstat(file.fileno()).st_size + 1)))
        while size := file.readinto(buffer):
            sha256.update(buffer[:size])
            sign()
    return sha256.hexdigest()


def map_array(path: Path, dtype: np.typing.DTypeLike) -> np.ndarray:
    """Maps a file of numbers into memory, [n] of `dtype`, read-only.

    Unlike `np.memmap`, which keeps a descriptor for as long as the array lives, this holds no open file: a process may
    map more files than it may open. The file's content stays readable if it is deleted or replaced meanwhile.
    """
    import pyarrow

    if not path.stat().st_size:
        return np.zeros(0, dtype)
    with pyarrow.memory_map(str(path)) as file:
        # The mapping lives as long as this buffer, and the descriptor ends here.
        return np.frombuffer(file.read_buffer(), dtype)


def _fault(folder: Path, check: Callable[[Path], str]) -> str:
    return check(folder) if folder.is_dir() else "is no folder"


def _files(folder: Path) -> list[str]:
    """Returns the path of each file below a folder, relative to the folder, in a fixed order."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder) for parent, _, names in os.walk(folder) for name in names
    )


def _record(folder: Path) -> None:
    """Writes `SUMS` for the files of a folder."""
    lines = [f"{_sha256(folder / path)}  {path}\n" for path in _files(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    """Returns path -> digest, from `SUMS`; raises OSError or ValueError where it cannot be read."""
    digests = {}
    if not (folder / SUMS).is_file():
        raise FileNotFoundError(folder / SUMS)
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, separator, path = line.partition("  ")
        if not separator:
            raise ValueError(line)
        digests[path] = digest
    if not digests:
        raise ValueError(f"{SUMS} is empty")
    return digests
