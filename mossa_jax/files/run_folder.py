"""The run folder: which run owns it, which configuration it belongs to, and its metrics."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any, Protocol

import filelock
from etils import epath

from mossa_jax.config import Config
from mossa_jax.config.kinds import differences, kind_of, name_of
from mossa_jax.errors import BAD_CONFIG, NO_ACCESS, Refusal
from mossa_jax.files import checked, sums
from mossa_jax.files.lease import Lease
from mossa_jax.files.metrics import Metrics
from mossa_jax.files.paths import as_path, is_remote
from mossa_jax.files.write import storing, write_text
from mossa_jax.log import log
from mossa_jax.processes import agreement

RESULTS = 4
"""The format of results. It is raised when the same configuration gives other results, so that no folder mixes them."""


RECORDS = ("config.json", "data.json", "rounds.json", "takeover.json", "warnings.json")
"""Files of a run folder that later attempts read."""

# What only a run writes: a folder with any of these and without config.json has lost it.
_TRACES = (*RECORDS, "environment.json", "metrics.jsonl", "adapters/tuned", "results/parts")
# What environment.json keeps of every start.
_START = ("commit", "device", "devices", "processes")
_MOST_STARTS = 20
_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")


class Tracker(Protocol):
    """A mirror of metrics.jsonl."""

    def __call__(self, record: dict[str, Any]) -> None:
        """Takes a record; returns at once."""

    def close(self) -> None:
        """Passes on the records that wait."""


class RunFolder:
    """A run's folder, owned by one run at a time.

    Attributes:
      path: the folder.
      variant: name of the variant of results that the configuration asks for; "" for that of config.json.
      writer: True in the one process that writes; the others only read.
      trackers: called with each record after it is added to metrics.jsonl, and closed with the folder; None for none.
    """

    def __init__(self, path: epath.PathLike, writer: bool = True):
        """Names the folder; `open` claims it.

        Args:
          path: of the folder, of any scheme that fsspec knows.
          writer: whether this process writes.

        Raises:
          Refusal: 2 when fsspec does not know the path's scheme, or lacks a package for it.
        """
        try:
            self.path = as_path(path)
        except (ImportError, ValueError) as error:
            raise Refusal(
                BAD_CONFIG,
                f"--workdir={path}: {error}; install the missing package, or name a local folder or gs://...",
            ) from None
        self.variant = ""
        self.writer = writer
        self._lock: filelock.BaseFileLock | None = None
        self._lease: Lease | None = None
        self._metrics = Metrics(self.path)
        self.trackers: Tracker | None = None

    def __truediv__(self, name: str) -> epath.Path:
        return self.path / name

    @property
    def place(self) -> epath.Path:
        """The folder of the variant's tables, figures and page."""
        return self.path / "variants" / self.variant if self.variant else self.path

    def variants(self) -> list[str]:
        """Returns the names of all variants of results in the folder but that of config.json."""
        folder = self.path / "variants"
        paths = sorted(folder.iterdir()) if folder.exists() else []
        return [path.name for path in paths if (path / "config.json").exists()]

    def open(self, config: Config, environment: dict[str, Any]) -> None:
        """Claims the folder for a configuration, and records the configuration and the environment there.

        A configuration that differs from the folder's in later fields (`config.kinds`) gets a variant of its own.

        Args:
          config: the configuration.
          environment: versions, devices and the command; JSON-ready.

        Raises:
          Refusal: 2 when the folder's models or data belong to another configuration, it is in use, or its config.json
            is lost or damaged; 4 when an object store cannot be reached.
        """
        # The others see what process 0 wrote there, or not yet.
        self.variant = agreement.decided(lambda: self._claim(config, environment))

    def _claim(self, config: Config, environment: dict[str, Any]) -> str:
        """Does what `open` says, and returns the name of the variant."""
        record = _as_json(dataclasses.asdict(config) | {"results_format": RESULTS})
        main = self._read_config()
        # A field that is newer than the folder had its default.
        default = _as_json(dataclasses.asdict(type(config)()))
        self.variant = "" if main is None else self._variant_of(_completed(main, default), record)
        if not self.writer:
            return self.variant
        self._acquire()
        if not is_remote(self.path):
            _sweep(self.path)
        if main is not None and not sums.recorded(self.path / "config.json"):
            log.info("%s was written before digests were; its files are recorded as they are", self.path)
            sums.seal(self.path / name for name in RECORDS)
        place = self.place / "config.json"
        # Of the folder's own config.json, `_read_config` knows.
        what = checked.damage(place) if self.variant else None
        if what is not None:
            log.warning("%s: written anew", what)
        if what is not None or not place.exists():
            checked.write_json(place, record)
        checked.write_json(self.path / "environment.json", environment | {"starts": self._starts(environment)})
        return self.variant

    def _starts(self, environment: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns what the folder's commands ran on, the latest last, without repetitions.

        A report that is written elsewhere must not hide the machine that the models were tuned on.
        """
        try:
            before = json.loads((self.path / "environment.json").read_bytes()).get("starts", [])
        except (OSError, ValueError, AttributeError):
            before = []
        start = {key: environment[key] for key in _START if key in environment}
        return [*(each for each in before if each != start), start][-_MOST_STARTS:]

    def _read_config(self) -> dict[str, Any] | None:
        """Reads config.json; None if the folder is new."""
        path = self.path / "config.json"
        way_out = (
            f"restore it from a copy, or name a new folder with --from={self.path}, which takes over what rests on the "
            "same values"
        )
        try:
            if self.path.exists() and not self.path.is_dir():
                raise Refusal(BAD_CONFIG, f"--workdir={self.path} is a file; name a folder")
            if path.exists():
                return checked.read_json(path, way_out, BAD_CONFIG)
            traces = traces_of(self.path)
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
        if traces:
            raise Refusal(
                BAD_CONFIG,
                f"{path} is gone, but {traces[0]} of its run is there; restore it from a copy, or name a new --workdir",
            )
        return None

    def _variant_of(self, main: dict[str, Any], record: dict[str, Any]) -> str:
        """Returns the name of the variant that a configuration asks for in a folder of another one."""
        changed = {name: both for name, both in differences(main, record).items() if kind_of(name) != "free"}
        earlier = [
            f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items() if kind_of(name) != "later"
        ]
        if earlier:
            raise Refusal(
                BAD_CONFIG,
                f"--workdir={self.path} belongs to another config ({'; '.join(earlier[:3])}"
                f"{'; ...' if len(earlier) > 3 else ''}); restore these values, or name a new folder with "
                f"--from={self.path}, which takes over what rests on the same values",
            )
        return name_of({name: new for name, (_, new) in changed.items()})

    def _acquire(self) -> None:
        if is_remote(self.path):
            self._lease = Lease(self.path / ".holder")
            with storing(self.path):
                owner = self._lease.claim()
            self._refuse_if_owned(owner)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(str(self.path / ".lock"))
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            holder = self.path / ".holder"
            self._refuse_if_owned(holder.read_text().strip() if holder.exists() else "unknown")
        write_text(self.path / ".holder", str(os.getpid()))

    def _refuse_if_owned(self, owner: str | None) -> None:
        if owner is not None:
            raise Refusal(BAD_CONFIG, f"--workdir={self.path} is in use by process {owner}; wait or name another")

    def close(self) -> None:
        """Closes the trackers, writes the metrics that are still in memory, and frees the folder for another run."""
        if self.trackers is not None:
            self.trackers.close()
            self.trackers = None
        try:
            self.flush()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None
            if self._lease is not None:
                self._lease.release()
                self._lease = None

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds a record to metrics.jsonl as a line (writer only)."""
        if self.writer:
            self._metrics.append(record)
            if self.trackers is not None:
                self.trackers(record)

    def flush(self) -> None:
        """Returns once metrics.jsonl holds every record; called before anything that a restart relies on.

        Raises:
          Refusal: 2 when another run took the folder over, because this one did not renew its claim in time; 6, as
            `write_bytes`.
        """
        if self._lease is not None:
            self._refuse_if_owned(self._lease.taken_by())
        self._metrics.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the records of metrics.jsonl, as `recorded_metrics`."""
        return self.recorded_metrics()[0]

    def recorded_metrics(self) -> tuple[list[dict[str, Any]], list[int]]:
        """Returns the records of metrics.jsonl, and the numbers of its damaged lines, which are left out and said."""
        self.flush()
        return self._metrics.read()


def traces_of(folder: epath.Path) -> list[str]:
    """Returns the names of files and folders that only a run writes, as far as they are in a folder."""
    return [name for name in _TRACES if (folder / name).exists()]


def _sweep(folder: epath.Path) -> None:
    """Deletes what writes left that a kill cut short, however deep."""
    for parent, folders, files in os.walk(folder):
        for name in filter(_LEFTOVER.fullmatch, folders):
            epath.Path(parent, name).rmtree(missing_ok=True)
        folders[:] = [name for name in folders if not _LEFTOVER.fullmatch(name)]
        for name in filter(_LEFTOVER.fullmatch, files):
            epath.Path(parent, name).unlink(missing_ok=True)


def _as_json(value: Any) -> Any:
    """Returns a value as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def _completed(record: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """Returns a record with the fields that it lacks, group by group, from `default`."""
    both = {key: default[key] for key in default if key not in record} | record
    return {
        key: _completed(value, default[key])
        if isinstance(value, dict) and isinstance(default.get(key), dict)
        else value
        for key, value in both.items()
    }
