"""Atomic writes: a file or folder is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from mossa_jax.errors import DISK, Refusal
from mossa_jax.files.csv_text import csv_text
from mossa_jax.files.paths import copy_folder, is_remote, scratch

if TYPE_CHECKING:
    import pandas as pd

ABOUT = "mossa.json"
"""The file that describes an exported model, in its folder. In an object store it is written last and deleted first: a
folder that has it is complete."""


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file so that `path` holds either the old content or all of the new, never a part.

    Raises:
      Refusal: 6 when the disk is full, a quota is reached, or an object store fails.
    """
    path = epath.Path(path)
    if is_remote(path):
        # An object appears complete when it is closed; to rename one would be to copy it.
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
        _refuse_if_full(error, path, data)
        raise


def append_bytes(path: epath.PathLike, line: bytes) -> None:
    """Adds a line to a file on a disk, on a line of its own even if a kill left half of one; creates the file.

    Raises:
      Refusal: 6, as `write_bytes`.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            _sync(file.fileno())
    except OSError as error:
        _refuse_if_full(error, path, line)
        raise


def _refuse_if_full(error: OSError, path: epath.Path, data: bytes) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise Refusal(DISK, f"no space left to write {path} ({len(data)} bytes); free some and run again") from None


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot synchronise.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def _sync_folder(folder: epath.Path) -> None:
    """Writes all of a folder to the disk, before its final name says that it is complete."""
    for parent, _, names in os.walk(folder):
        for path in [os.path.join(parent, name) for name in names] + [parent]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                _sync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def storing(path: epath.Path) -> Iterator[None]:
    """Turns any error of an object store, raised after its library's own retries, into a refusal of one line."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        raise Refusal(DISK, f"{path} cannot be written ({reason}); run the same command again once it can") from None


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes UTF-8 text, as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes indented JSON, as `write_bytes`.

    Raises:
      ValueError: for NaN and infinity, which JSON does not have.
    """
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Returns what `write_json` writes."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def write_parquet(path: epath.PathLike, table: pd.DataFrame) -> None:
    """Writes a table as Parquet, without its index, as `write_bytes`."""
    write_bytes(path, parquet_bytes(table))


def parquet_bytes(table: pd.DataFrame, metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns what `write_parquet` writes, with more metadata of its schema if there are some."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = pa.Table.from_pandas(table, preserve_index=False)
    columns = columns.replace_schema_metadata({**(columns.schema.metadata or {}), **(metadata or {})})
    buffer = io.BytesIO()
    pq.write_table(columns, buffer)
    return buffer.getvalue()


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Returns a table as CSV, without its index."""
    return csv_text(table).encode()


def read_parquet(path: epath.PathLike) -> pd.DataFrame:
    """Reads a table that `write_parquet` wrote."""
    import pandas as pd

    return pd.read_parquet(io.BytesIO(epath.Path(path).read_bytes()))


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields an empty temporary folder that becomes `path` when the block ends without an error.

    An existing folder at `path` is replaced: it can only be the result of the same work. An object store gets one file
    after another; there `is_whole` tells whether all have arrived.
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
        # Another run may be replacing the folder at the same time.
        with contextlib.suppress(FileNotFoundError):
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
    """Returns whether a folder that `new_folder` makes, with a file `ABOUT` in it, exists with all of its files."""
    folder = epath.Path(folder)
    return (folder / ABOUT if is_remote(folder) else folder).exists()
