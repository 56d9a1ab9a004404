"""The run folder: exit codes, refusals, atomic files, the lock, and the check that a folder belongs to this run."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

import filelock
import pandas as pd
from etils import epath

from mossa_jax.files.lease import Holder
from mossa_jax.files.paths import as_path, copy_folder, is_remote, scratch

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

ABOUT = "mossa.json"
"""The file of an exported model's folder that says what it is. In an object store it is the last to be written, the
first to be deleted, and what makes the folder whole."""

RESULTS = 2
"""The format of results, raised where the same configuration would give other ones, so that no folder mixes them."""

RHYTHM = 30.0  # seconds after which a text that grows is written anew to an object store


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


class GrowingText:
    """A text file that lines are added to.

    On a disk each is there at once. An object store cannot append: there the whole text is written anew, `RHYTHM`
    seconds after a line came and at `flush`; a kill loses the lines since.
    """

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path)
        self._lock = threading.RLock()
        self._begun = False
        self._text = ""  # all of it, where it cannot be appended to
        self._held = False  # whether some of it is not written yet
        self._timer: threading.Timer | None = None

    def append(self, line: str) -> None:
        """Adds a line (without its end)."""
        with self._lock:
            if not self._begun:  # a kill may have left half a line: the new one starts on its own
                before = self.path.read_bytes() if self.path.exists() else b""
                line = line if before.endswith(b"\n") or not before else f"\n{line}"
                self._text = before.decode(errors="replace") if is_remote(self.path) else ""
            if is_remote(self.path):
                self._text += line + "\n"
                self._held = True
                if self._timer is None:
                    self._timer = threading.Timer(RHYTHM, self._due)
                    self._timer.daemon = True
                    self._timer.start()
            else:
                with self.path.open("a") as file:
                    file.write(line + "\n")
            self._begun = True

    def flush(self) -> None:
        """Writes what only this process knows so far; raises as `write_bytes`, and the next call tries again."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._held:
                write_text(self.path, self._text)
                self._held = False

    def _due(self) -> None:
        with contextlib.suppress(Refusal):
            self.flush()


class LogFile(logging.Handler):
    """A log in a run folder. A line that cannot be written is left out: the run's own files say so, and say it once."""

    def __init__(self, path: epath.PathLike):
        super().__init__()
        self._file = GrowingText(path)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Adds the record's line."""
        with contextlib.suppress(OSError, Refusal):
            self._file.append(self.format(record))

    def flush(self) -> None:
        """Writes what was held back."""
        with contextlib.suppress(OSError, Refusal):
            self._file.flush()

    def close(self) -> None:
        """`flush`, for the last time."""
        self.flush()
        super().close()


class RunDir:
    """A run's folder, held by one run at a time.

    Attributes:
      path: the folder.
      writer: True in the one process that writes; the others only read.
      trackers: called with every line of metrics.jsonl behind it, and closed with the folder; None for none.
    """

    def __init__(self, path: epath.PathLike, writer: bool = True):
        """Names the folder; `open` claims it.

        Raises:
          Refusal: 2 when fsspec does not know the path's scheme, or lacks a package for it.
        """
        try:
            self.path = as_path(path)
        except (ImportError, ValueError) as error:
            raise Refusal(
                BAD_CONFIG, f"--workdir={path}: {error}; install what is missing, or name a local folder or gs://..."
            ) from None
        self.writer = writer
        self._lock: filelock.BaseFileLock | None = None
        self._holder: Holder | None = None
        self._metrics = GrowingText(self.path / "metrics.jsonl")
        self.trackers: Any = None

    def __truediv__(self, name: str) -> epath.Path:
        return self.path / name

    def open(self, config: Any, environment: dict[str, Any]) -> None:
        """Claims the folder for `config` (a dataclass), and records it with `environment`.

        Raises:
          Refusal: 2 when the folder belongs to another configuration or is in use; 4 when an object store cannot be
            reached.
        """
        record = dataclasses.asdict(config) | {"results_format": RESULTS}
        self._check_belongs(record)
        if not self.writer:
            return
        self._acquire()
        if not is_remote(self.path):
            for depth in range(4):
                for leftover in self.path.glob("*/" * depth + ".*.tmp"):
                    leftover.rmtree() if leftover.is_dir() else leftover.unlink()
        if not (self.path / "config.json").exists():
            write_json(self.path / "config.json", _plain(record))
        write_json(self.path / "environment.json", environment)

    def _check_belongs(self, record: dict[str, Any]) -> None:
        path = self.path / "config.json"
        try:
            if self.path.exists() and not self.path.is_dir():
                raise Refusal(BAD_CONFIG, f"--workdir={self.path} is a file; name a folder")
            text = path.read_bytes() if path.exists() else None
        except Refusal:
            raise
        except Exception as error:
            if not is_remote(self.path):
                raise
            raise Refusal(
                NO_ACCESS,
                f"--workdir={self.path} cannot be reached ({type(error).__name__}: {error}); check its name, the "
                "network and the credentials of this machine",
            ) from None
        if text is None:
            return
        try:
            old = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise Refusal(BAD_CONFIG, f"{path} is not valid JSON; mend it or name a new --workdir") from None
        differences = _differences(_identity(old), _identity(_plain(record)))
        if differences:
            raise Refusal(
                BAD_CONFIG,
                f"--workdir={self.path} belongs to another config ({'; '.join(differences[:3])}"
                f"{'; ...' if len(differences) > 3 else ''}); name a new folder or restore these values",
            )

    def _acquire(self) -> None:
        if is_remote(self.path):
            self._holder = Holder(self.path / ".holder")
            with storing(self.path):
                who = self._holder.claim()
            self._refuse_if_held(who)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(str(self.path / ".lock"))
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            holder = self.path / ".holder"
            self._refuse_if_held(holder.read_text().strip() if holder.exists() else "unknown")
        write_text(self.path / ".holder", str(os.getpid()))

    def _refuse_if_held(self, who: str | None) -> None:
        if who is not None:
            raise Refusal(BAD_CONFIG, f"--workdir={self.path} is in use by process {who}; wait or name another")

    def close(self) -> None:
        """Ends the trackers, writes what was held back, and gives the folder free for another run."""
        if self.trackers is not None:
            self.trackers.close()
            self.trackers = None
        try:
            self.flush()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None
            if self._holder is not None:
                self._holder.release()
                self._holder = None

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl (writer only)."""
        if self.writer:
            self._metrics.append(json.dumps(record))
            if self.trackers is not None:
                self.trackers(record)

    def flush(self) -> None:
        """Returns when metrics.jsonl holds every record; to be called before a restart may count on them.

        Raises:
          Refusal: 2 when another run took the folder over, which it does when this one gave no sign of life; 6 as
            `write_bytes`.
        """
        if self._holder is not None:
            self._refuse_if_held(self._holder.taken_by())
        self._metrics.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; a last line that a kill cut short is passed over."""
        self.flush()
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
