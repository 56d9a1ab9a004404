"""Atomic writes: a file or folder is found whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections.abc import Iterator
from typing import Any

import pandas as pd
from etils import epath

from mossa_jax.errors import DISK, Refusal
from mossa_jax.files.paths import copy_folder, is_remote, scratch

ABOUT = "mossa.json"
"""The file of an exported model's folder that says what it is. In an object store it is the last to be written, the
first to be deleted, and what makes the folder whole."""


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file so that either the old content or the whole new one is found at `path`, never a part.

    Raises:
      Refusal: 6 when the disk is full, a quota is reached, or an object store does not take it.
    """
    path = epath.Path(path)
    if is_remote(path):  # an object is there whole when it is closed, and a new name would have to be copied
        with storing(path):
            path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            _sync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refusal(DISK, f"no space left to write {path} ({len(data)} bytes); free some and run again") from None
        raise


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # a file system that has no such thing
            raise


def _sync_folder(folder: epath.Path) -> None:
    """Has all of a folder on the disk before its name says that it is whole."""
    for parent, _, names in os.walk(folder):
        for path in [os.path.join(parent, name) for name in names] + [parent]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                _sync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def storing(path: epath.Path) -> Iterator[None]:
    """Says in one line that an object store failed, whatever its library raises after its own tries."""
    try:
        yield
    except Exception as error:
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        raise Refusal(DISK, f"{path} cannot be written ({why}); run the same command again when it can") from None


def write_text(path: epath.PathLike, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: epath.PathLike, value: Any) -> None:
    """`write_bytes` of indented JSON; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_parquet(path: epath.PathLike, table: pd.DataFrame) -> None:
    """`write_bytes` of a table as Parquet, without its index."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())


def write_table(path: epath.PathLike, table: pd.DataFrame) -> None:
    """Writes `table` as Parquet at `path` and as CSV beside it."""
    path = epath.Path(path)
    write_parquet(path, table)
    write_text(path.with_suffix(".csv"), table.to_csv(index=False))


def read_parquet(path: epath.PathLike) -> pd.DataFrame:
    """A table that `write_parquet` wrote."""
    return pd.read_parquet(io.BytesIO(epath.Path(path).read_bytes()))


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields an empty temporary folder that becomes `path` when the block ends well.

    A folder that stands at `path` already is replaced: it can only be the result of the same work. An object store
    gets file after file; ask `is_whole` there whether all have come.
    """
    path = epath.Path(path)
    if is_remote(path):
        with scratch() as working:
            yield working
            with storing(path):
                (path / ABOUT).unlink(missing_ok=True)
                path.rmtree(missing_ok=True)
                copy_folder(working, path, last=ABOUT)
        return
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.parent.mkdir(parents=True, exist_ok=True)
    if temporary.exists():
        temporary.rmtree()
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        temporary.rmtree(missing_ok=True)
        raise
    try:
        _sync_folder(temporary)
        with contextlib.suppress(FileNotFoundError):  # another run may be replacing it, too
            path.rmtree()
    except BaseException:
        temporary.rmtree(missing_ok=True)
        raise
    try:
        temporary.rename(path)
    except OSError:
        # Another run finished the same folder in between (a shared cache): theirs is as good as ours.
        if not path.exists():
            raise
        temporary.rmtree(missing_ok=True)


def is_whole(folder: epath.PathLike) -> bool:
    """Whether a folder that `new_folder` makes, with a file `ABOUT` in it, is there with all of its files."""
    folder = epath.Path(folder)
    return (folder / ABOUT if is_remote(folder) else folder).exists()
