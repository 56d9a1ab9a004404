"""Paths: this machine's cache, and files and folders of any file system that fsspec knows, as `epath.Path`s.

An object store has no folders, cannot append, and cannot rename in one operation. An object appears complete when it is
closed, or not at all. So objects are written under their final names, and the file that marks several others as
complete is written last.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NoReturn

import fsspec
from etils import epath
from etils.epath import stat_utils

from mossa_jax.errors import Refusal
from mossa_jax.files.leftovers import locked
from mossa_jax.foreign import user_path

_COPIERS = 8  # files copied at the same time
_CHUNK = 1 << 22  # bytes


def cache_root() -> Path:
    """Returns $MOSSA_CACHE, or `~/.cache/mossa_jax`. Its content can be rebuilt and may be deleted at any time.

    Raises:
      Refusal: 2 when neither is known, as for a user without a home.
    """
    return Path(user_path(os.environ.get("MOSSA_CACHE") or "~/.cache/mossa_jax", "MOSSA_CACHE"))


def keep_caches_together() -> None:
    """Lets matplotlib keep its list of fonts, and torch its own files, in this package's cache.

    They would be in the home folder and in that for temporary files. For commands, before they draw or import torch;
    whoever has set these variables keeps that.
    """
    # Where no home is known, a command that needs no cache works, too.
    with contextlib.suppress(RuntimeError, Refusal):
        os.environ.setdefault("MPLCONFIGDIR", str(cache_root() / "matplotlib"))
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "torch"))


def is_remote(path: epath.PathLike) -> bool:
    """Returns whether a path has a scheme, and so is outside this machine's own file system."""
    return "://" in os.fspath(path)


def as_path(path: epath.PathLike) -> epath.Path:
    """Returns the path, whatever its scheme: a `FsspecPath`, except for local files.

    After this call `epath.Path` knows the scheme as well.

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
    # Files that other processes write must be visible, so listings are not cached.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    try:
        epath.Path(f"{scheme}://")
    except KeyError:
        epath.register_path_cls(f"{scheme}://")(FsspecPath)
    return FsspecPath(os.fspath(path))


@epath.register_path_cls
class FsspecPath(epath.Path):
    """A path in an object store, where folders need not be created.

    The paths that `epath` has for some schemes take every error for absence, and so an unreachable store for an empty
    one; this class tells absence from failure. The `UPath` of universal_pathlib would not be simpler: it takes every
    error for absence as well, and is no `epath.Path`, which orbax and this package need.
    """

    def __str__(self) -> str:
        return f"{self.parts[0]}//{'/'.join(self.parts[1:])}"

    def __fspath__(self) -> str:
        return str(self)

    @property
    def _fs(self) -> fsspec.AbstractFileSystem:
        return fsspec.filesystem(self.parts[0].removesuffix(":"))

    def exists(self) -> bool:
        """Returns whether an object has this name, or is below it."""
        return self._type() is not None

    def is_dir(self) -> bool:
        """Returns whether an object is below it."""
        return self._type() == "directory"

    def _type(self) -> str | None:
        try:
            return self._fs.info(str(self))["type"]
        except FileNotFoundError:
            return None

    def iterdir(self) -> Iterator[FsspecPath]:
        """Yields the files and folders directly below it."""
        for name in self._fs.ls(str(self), detail=False):
            yield self / name.rstrip("/").rsplit("/", 1)[-1]

    def glob(self, pattern: str) -> Iterator[FsspecPath]:
        """Yields the paths below it that match a pattern."""
        for name in self._fs.glob(str(self / pattern)):
            yield type(self)(self._fs.unstrip_protocol(name))

    def open(self, mode: str = "r", encoding: str | None = None, errors: str | None = None, **options: Any) -> IO[Any]:
        """Opens the file, to be read or written from its beginning; text is UTF-8."""
        return self._fs.open(str(self), mode, **({} if "b" in mode else {"encoding": "utf-8"}))

    def stat(self) -> stat_utils.StatResult:
        """Returns its size in bytes (`length`) and whether it is a folder; nothing else is known."""
        info = self._fs.info(str(self))
        return stat_utils.StatResult(info["type"] == "directory", info["size"], 0, None, None, None)

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: object stores have no folders."""

    def rmtree(self, missing_ok: bool = False) -> None:
        """Deletes everything below it."""
        with contextlib.suppress(*[FileNotFoundError] if missing_ok else []):
            self._fs.rm(str(self), recursive=True)

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the file."""
        with contextlib.suppress(*[FileNotFoundError] if missing_ok else []):
            self._fs.rm_file(str(self))

    def resolve(self, strict: bool = False) -> FsspecPath:
        """Returns the path itself."""
        return self

    expanduser = absolute = resolve

    def _unsupported(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"{self}: objects in a store cannot be renamed, copied or walked")

    rmdir = rename = replace = copy = walk = _unsupported


def file_names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Yields the path of every file below a folder, relative to the folder; none if the folder does not exist."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from file_names(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name


def copy_file(source: epath.PathLike, target: epath.PathLike) -> None:
    """Copies a file between any two file systems; creates the folder of a local target."""
    source, target = epath.Path(source), epath.Path(target)
    if not is_remote(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK)


def copy_folder(source: epath.PathLike, target: epath.PathLike, last: str = "") -> None:
    """Copies all files below a folder, several at a time; the file named `last` after all others."""
    source, target = epath.Path(source), epath.Path(target)
    names = sorted(file_names(source))
    with ThreadPoolExecutor(_COPIERS) as copiers:
        for group in ([name for name in names if name != last], [name for name in names if name == last]):
            list(copiers.map(lambda name: copy_file(source / name, target / name), group))


@contextlib.contextmanager
def scratch() -> Iterator[epath.Path]:
    """Yields an empty folder in the cache, deleted when the block ends; that of a killed process by another one."""
    root, name = cache_root() / "scratch", secrets.token_hex(8)
    with locked(root, name):
        folder = root / f".{name}.{os.getpid()}.tmp"
        folder.mkdir()
        try:
            yield epath.Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def on_disk(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a local file or folder itself, and a temporary local copy of one in an object store."""
    path = epath.Path(path)
    if not is_remote(path):
        yield path
        return
    with scratch() as folder:
        copy = folder / path.name
        (copy_folder if path.is_dir() else copy_file)(path, copy)
        yield copy
