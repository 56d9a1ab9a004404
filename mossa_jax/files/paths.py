"""Where files lie: this machine's cache, and folders of any file system that fsspec knows as `epath.Path`s.

An object store has no folders, cannot append and cannot rename at once; an object appears whole when it is closed, or
not at all. What is written there is written under its own name, and what makes several files whole is written last.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from etils import epath
from etils.epath import stat_utils

_COPIERS = 8  # files on their way at the same time
_CHUNK = 1 << 22


def cache_root() -> Path:
    """$MOSSA_CACHE, or `~/.cache/mossa_jax`. What lies in it can be made again and may be deleted at any time."""
    return Path(os.environ.get("MOSSA_CACHE") or "~/.cache/mossa_jax").expanduser()


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is no file of this machine's own file system."""
    return "://" in os.fspath(path)


def as_path(path: epath.PathLike) -> epath.Path:
    """The path, whatever its scheme: a `FsspecPath` for all but local files.

    From here on `epath.Path` knows this scheme, too.

    Raises:
      ImportError: fsspec needs a package for this scheme that is not installed.
      ValueError: fsspec has no such scheme.
    """
    scheme, separator, rest = os.fspath(path).partition("://")
    if not separator:
        return epath.Path(path)
    if scheme == "file":
        return epath.Path(rest)
    fsspec.get_filesystem_class(scheme)
    # What another process wrote must be seen, so listings are not remembered.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    try:
        epath.Path(f"{scheme}://")
    except KeyError:
        epath.register_path_cls(f"{scheme}://")(FsspecPath)
    return FsspecPath(os.fspath(path))


@epath.register_path_cls
class FsspecPath(epath.Path):
    """A path in an object store; folders need not be made.

    What `epath` has for some schemes takes whatever goes wrong for absence, and a store that cannot be reached for an
    empty one; here absence is told from failure.
    """

    def __str__(self) -> str:
        return f"{self.parts[0]}//{'/'.join(self.parts[1:])}"

    def __fspath__(self) -> str:
        return str(self)

    @property
    def _fs(self) -> fsspec.AbstractFileSystem:
        return fsspec.filesystem(self.parts[0].removesuffix(":"))

    def exists(self) -> bool:
        """Whether there is an object of that name, or one below it."""
        return self._kind() is not None

    def is_dir(self) -> bool:
        """Whether there is an object below it."""
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        try:
            return self._fs.info(str(self))["type"]
        except FileNotFoundError:
            return None

    def iterdir(self) -> Iterator[FsspecPath]:
        """What lies in the folder."""
        for name in self._fs.ls(str(self), detail=False):
            yield self / name.rstrip("/").rsplit("/", 1)[-1]

    def glob(self, pattern: str) -> Iterator[FsspecPath]:
        """What is there of that pattern."""
        for name in self._fs.glob(str(self / pattern)):
            yield type(self)(self._fs.unstrip_protocol(name))

    def open(self, mode: str = "r", encoding: str | None = None, errors: str | None = None, **options: Any):
        """The file, read or written from its beginning."""
        return self._fs.open(str(self), mode, **({} if "b" in mode else {"encoding": "utf-8"}))

    def stat(self) -> stat_utils.StatResult:
        """Its size in bytes (`length`)."""
        found = self._fs.info(str(self))
        return stat_utils.StatResult(found["type"] == "directory", found["size"], 0, None, None, None)

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing."""

    def rmtree(self, missing_ok: bool = False) -> None:
        """Deletes all that lies below it."""
        with contextlib.suppress(*[FileNotFoundError] if missing_ok else []):
            self._fs.rm(str(self), recursive=True)

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the file."""
        with contextlib.suppress(*[FileNotFoundError] if missing_ok else []):
            self._fs.rm_file(str(self))

    def resolve(self, strict: bool = False) -> FsspecPath:
        """Itself."""
        return self

    expanduser = absolute = resolve

    def _unsupported(self, *_, **__):
        raise NotImplementedError(f"{self}: object stores are not renamed, copied or walked in")

    rmdir = rename = replace = copy = walk = _unsupported


def file_names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Every file below a folder, by its path from there; none where there is no folder."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from file_names(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name


def copy_file(source: epath.PathLike, target: epath.PathLike) -> None:
    """Copies a file between any two places; the folder of a local target is made."""
    source, target = epath.Path(source), epath.Path(target)
    if not is_remote(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written, _CHUNK)


def copy_folder(source: epath.PathLike, target: epath.PathLike, last: str = "") -> None:
    """Copies all files below a folder, several at a time; the one named `last` when all others are there."""
    source, target = epath.Path(source), epath.Path(target)
    names = sorted(file_names(source))
    with ThreadPoolExecutor(_COPIERS) as copiers:
        for group in ([name for name in names if name != last], [name for name in names if name == last]):
            list(copiers.map(lambda name: copy_file(source / name, target / name), group))


@contextlib.contextmanager
def scratch() -> Iterator[epath.Path]:
    """An empty folder in the cache that is deleted when the block ends."""
    (cache_root() / "scratch").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_root() / "scratch") as folder:
        yield epath.Path(folder)


@contextlib.contextmanager
def on_disk(path: epath.PathLike) -> Iterator[epath.Path]:
    """A file or folder as it is; where it lies in an object store, a copy on this machine while the block runs."""
    path = epath.Path(path)
    if not is_remote(path):
        yield path
        return
    with scratch() as folder:
        copy = folder / path.name
        (copy_folder if path.is_dir() else copy_file)(path, copy)
        yield copy
