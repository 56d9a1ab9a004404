"""The run folder: exit codes, refusals, atomic files, the lock, and the check that a folder belongs to this run."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import filelock
import pandas as pd
from etils import epath

DONE = 0
INTERNAL = 1
BAD_CONFIG = 2
BAD_INPUT = 3
NO_ACCESS = 4
NOT_FINITE = 5
DISK = 6
LOST_PEER = 7
STOPPED = 75

# Fields of the configuration that change where a run executes or is watched, never what it computes.
_NOT_IDENTITY = ("mesh", "track")


class Refusal(Exception):
    """A refusal in one line that names the thing, the value and the way out.

    Attributes:
      code: the process's exit code, one of the constants of this module.
    """

    def __init__(self, code: int, message: str):
        super().__init__(" ".join(str(message).split()))
        self.code = code


def slug(name: str) -> str:
    """A folder name for any model or task name: readable, without separators, and unique through a hash.

    Names that are already plain are kept as they are.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "name"
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def digest(value: Any) -> str:
    """Sixteen hex digits that identify a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file so that either the old content or the whole new one is found at `path`, never a part.

    Raises:
      Refusal: 6 when the disk is full or a quota is reached.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            with contextlib.suppress(OSError, AttributeError, io.UnsupportedOperation):
                os.fsync(file.fileno())  # remote files have no descriptor and are durable on close
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refusal(DISK, f"no space left to write {path} ({len(data)} bytes); free some and run again") from None
        raise


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


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields an empty temporary folder that becomes `path` when the block ends well.

    A folder that stands at `path` already is replaced: it can only be the result of the same work.
    """
    path = epath.Path(path)
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


class RunDir:
    """A run's folder, held by one run at a time.

    Attributes:
      path: the folder.
      writer: True in the one process that writes; the others only read.
      trackers: called with every line of metrics.jsonl behind it, and closed with the folder; None for none.
    """

    def __init__(self, path: epath.PathLike, writer: bool = True):
        self.path = epath.Path(path)
        self.writer = writer
        self._lock: filelock.BaseFileLock | None = None
        self._metrics_cut: bool | None = None
        self.trackers: Any = None

    def __truediv__(self, name: str) -> epath.Path:
        return self.path / name

    def open(self, config: Any, environment: dict[str, Any]) -> None:
        """Claims the folder for `config` (a dataclass), and records it with `environment`.

        Raises:
          Refusal: 2 when the folder belongs to another configuration or is in use.
        """
        record = dataclasses.asdict(config)
        path = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise Refusal(BAD_CONFIG, f"--workdir={self.path} is a file; name a folder")
        if path.exists():
            try:
                old = json.loads(path.read_text())
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise Refusal(BAD_CONFIG, f"{path} is not valid JSON; mend it or name a new --workdir") from None
            differences = _differences(_identity(old), _identity(_plain(record)))
            if differences:
                raise Refusal(
                    BAD_CONFIG,
                    f"--workdir={self.path} belongs to another config ({'; '.join(differences[:3])}"
                    f"{'; ...' if len(differences) > 3 else ''}); name a new folder or restore these values",
                )
        if not self.writer:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
        for depth in range(4):
            for leftover in self.path.glob("*/" * depth + ".*.tmp"):
                leftover.rmtree() if leftover.is_dir() else leftover.unlink()
        if not path.exists():
            write_json(path, _plain(record))
        write_json(self.path / "environment.json", environment)

    def _acquire(self) -> None:
        if "://" in str(self.path):
            return  # object stores have no locks; the process set-up keeps a single writer
        self._lock = filelock.FileLock(str(self.path / ".lock"))
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            holder = self.path / ".holder"
            who = holder.read_text().strip() if holder.exists() else "unknown"
            raise Refusal(
                BAD_CONFIG, f"--workdir={self.path} is in use by process {who}; wait or name another"
            ) from None
        write_text(self.path / ".holder", str(os.getpid()))

    def close(self) -> None:
        """Ends the trackers and gives the folder free for another run."""
        if self.trackers is not None:
            self.trackers.close()
            self.trackers = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl (writer only)."""
        if self.writer:
            path = self.path / "metrics.jsonl"
            if self._metrics_cut is None:  # a kill may have left half a line: the new one starts on its own
                self._metrics_cut = path.exists() and not path.read_bytes().endswith(b"\n")
            with path.open("a") as file:
                if self._metrics_cut:
                    file.write("\n")
                    self._metrics_cut = False
                file.write(json.dumps(record) + "\n")
            if self.trackers is not None:
                self.trackers(record)

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; a last line that a kill cut short is passed over."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        records = []
        for line in path.read_text().split("\n"):
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
        return records


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in _NOT_IDENTITY}


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}):
            found += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if old == new else [f"{prefix} was {old!r}, now {new!r}"]
