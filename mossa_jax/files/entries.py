"""A folder of entries that several processes write and read at once: each appears complete, is checked when it is read,
and the ones that were not used for the longest time make room for new ones.

No process ever waits for another. A folder that cannot be read or written is reported in one line, and then left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from mossa_jax.files.paths import is_remote
from mossa_jax.log import log

_SUFFIX = ".kept"
_DIGEST = hashlib.sha256().digest_size  # bytes at the head of a file, of all that follow
_LONGEST = 200  # characters of an entry's name
_LEFTOVER = 3600.0  # seconds after which a file that was never finished is deleted
_FILLED = 0.9  # share of the limit to which unused entries are deleted
_RESCAN = 0.05  # share of the limit that a process writes before it measures the folder again


class Entries:
    """Entries by name, in a folder on a disk or in an object store.

    Attributes:
      folder: where this process's entries are.
    """

    def __init__(self, label: str, folder: epath.Path, limit: int | None = None):
        """Creates nothing yet.

        Args:
          label: in front of lines in the log.
          folder: on a disk, or in a store that fsspec knows.
          limit: bytes that the entries of this folder and of those beside it may take, on a disk; None for no limit.
            In a store nothing is deleted: buckets have rules of their own for that.
        """
        self.folder = folder
        self._label, self._limit = label, limit
        self._is_remote = is_remote(folder)
        self._can_read = self._can_write = True
        # Bytes that may be written before the folder is measured again; at first at once.
        self._before_scan = 0

    def create(self) -> None:
        """Creates the folder."""
        with self._reporting(writing=True):
            self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> bytes | None:
        """Returns an entry's content; None where it is missing or damaged. A damaged one is deleted."""
        if not self._can_read:
            return None
        path = self._path(name)
        with self._reporting():
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return None
            digest, value = content[:_DIGEST], content[_DIGEST:]
            if hashlib.sha256(value).digest() == digest:
                if not self._is_remote:
                    with contextlib.suppress(OSError):  # a folder that may only be read
                        os.utime(path)  # the time of its last use
                return value
            log.info("%s: %s is damaged and is not used", self._label, path)
            self.delete(name)
        return None

    def write(self, name: str, value: bytes) -> None:
        """Writes an entry, and deletes others where they take too much."""
        if not self._can_write:
            return
        content = hashlib.sha256(value).digest() + value
        if self._limit is not None and len(content) > self._limit:
            return
        with self._reporting(writing=True):
            if self._is_remote:
                self._path(name).write_bytes(content)  # an object appears when it is complete
                return
            self._make_room(len(content))
            temporary = Path(self.folder) / f".{secrets.token_hex(16)}.tmp"
            try:
                temporary.write_bytes(content)
                temporary.replace(self._path(name))
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise

    def delete(self, name: str) -> None:
        """Deletes an entry, if it exists and can be deleted."""
        with contextlib.suppress(Exception):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> epath.Path:
        # The end of a name identifies the entry: JAX puts its hash there.
        return self.folder / (name[-_LONGEST:] + _SUFFIX)

    @contextlib.contextmanager
    def _reporting(self, writing: bool = False) -> Iterator[None]:
        """Turns the first failure to read or write into a line in the log; after it, this is not tried again."""
        try:
            yield
        except Exception as error:  # whatever a store's client raises
            verb = "written" if writing else "read"
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("%s: %s cannot be %s (%s); the run continues without", self._label, self.folder, verb, reason)
            if writing:
                self._can_write = False
            else:
                self._can_read = False

    def _make_room(self, size: int) -> None:
        """Deletes the entries that were not used for the longest time, where there would be too many bytes."""
        if self._limit is None:
            return
        self._before_scan -= size
        if self._before_scan >= 0:
            return
        self._before_scan = int(_RESCAN * self._limit)
        entries, total = [], size
        for entry in _files(Path(self.folder).parent):
            with contextlib.suppress(OSError):  # deleted meanwhile by another process
                status = entry.stat()
                if entry.name.endswith(_SUFFIX):
                    entries.append((status.st_mtime, status.st_size, entry.path))
                    total += status.st_size
                elif entry.name.endswith(".tmp") and time.time() - status.st_mtime > _LEFTOVER:
                    os.unlink(entry.path)
        if total <= self._limit:
            return
        for _, taken, path in sorted(entries):
            if total <= _FILLED * self._limit:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= taken


def _files(root: Path) -> Iterator[os.DirEntry[str]]:
    """Yields the files in the folders directly below a folder."""
    for folder in os.scandir(root):
        if folder.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                yield from os.scandir(folder.path)
