"""Mirrors of metrics.jsonl, to watch a run elsewhere: TensorBoard and Weights & Biases.

The file remains the truth: nothing is read back from a tracker, and no tracker can stop or slow a run. Each has its own
thread, behind a queue that the run never waits for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from etils import epath

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.files.growing import RHYTHM
from mossa_jax.files.paths import copy_folder, is_remote
from mossa_jax.files.write import write_text
from mossa_jax.log import log

Record = dict[str, Any]
"""A line of metrics.jsonl: `model` (or `stage`), `step` and named figures."""

_Writer = tuple[Callable[[Record], None], Callable[[], None]]
"""Functions of an open tracker: one writes a record, the other closes the tracker."""

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
_QUEUED = 10_000  # most records that wait for a slow tracker
_PATIENCE = 30.0  # seconds that the end of a run waits for a tracker


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers whose package is not installed.

    Raises:
      Refusal: 2, with the command that installs the package.
    """
    for name in names:
        if importlib.util.find_spec(package := _PACKAGES[name]) is None:
            raise Refusal(
                BAD_CONFIG,
                f"config.track={name!r} needs {package}, which is not installed; pip install {package} "
                "(or pip install -e '.[track]')",
            )


class Trackers:
    """The trackers of one run; each record is a call."""

    def __init__(self, names: Sequence[str], folder: epath.PathLike, title: str, config: dict[str, Any]):
        """Starts the trackers.

        Args:
          names: some of `config.TRACKERS`.
          folder: the run folder.
          title: the name of the run, for people.
          config: the configuration, JSON-ready.
        """
        openers = {"tensorboard": _tensorboard, "wandb": _wandb}
        self._mirrors = [_Mirror(name, partial(openers[name], epath.Path(folder), title, config)) for name in names]

    def __call__(self, record: Record) -> None:
        """Passes a record on; returns at once."""
        for mirror in self._mirrors:
            mirror.put(record)

    def close(self) -> None:
        """Passes on the records that wait, for half a minute at most."""
        for mirror in self._mirrors:
            mirror.close()


class _Mirror:
    """One tracker in its own thread; its first failure is a warning, and it gets no more records."""

    def __init__(self, name: str, open_tracker: Callable[[], _Writer]):
        self._name, self._open = name, open_tracker
        self._records: queue.Queue[Record | None] = queue.Queue(_QUEUED)
        self._has_failed = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        if self._has_failed:
            return
        try:
            self._records.put_nowait(dict(record))
        except queue.Full:
            self._fail("it does not keep up")

    def close(self) -> None:
        if self._has_failed:
            return
        with contextlib.suppress(queue.Full):
            self._records.put(None, timeout=_PATIENCE)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._fail(f"it did not finish in {_PATIENCE:g} s")

    def _fail(self, reason: object) -> None:
        if not self._has_failed:
            self._has_failed = True
            text = " ".join(str(reason).split())[:200]
            log.warning("tracker %s: %s; it gets no more records, metrics.jsonl has all of them", self._name, text)

    def _work(self) -> None:
        try:
            write, end = self._open()
            while not self._has_failed and (record := self._records.get()) is not None:
                write(record)
            end()
        except BaseException as error:  # whatever a tracker raises, SystemExit included, the run continues
            self._fail(f"{type(error).__name__}: {error}")


def _figures(record: Record) -> Iterator[tuple[str, float]]:
    """Yields ("loss/<model>", value), ("useful/stage <stage>", value) and so on; leaves out what has no value."""
    lost = {f"lost {cause}": seconds for cause, seconds in record.get("lost", {}).items()}
    for name, value in {**record, **lost}.items():
        if name not in ("model", "step", "attempt", "time") and isinstance(value, int | float):
            yield f"{name}/{_subject(record)}", float(value)


def _subject(record: Record) -> str:
    """Returns the model or stage that the figures describe; a stage may have the name of a model."""
    return record["model"] if "model" in record else f"stage {record['stage']}"


def _tensorboard(folder: epath.Path, title: str, config: dict[str, Any]) -> _Writer:
    """Writes scalars to event files below `tensorboard/`.

    They are written one by one: SummaryWriter has its own thread and queue, which blocks forever once that thread has
    failed.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    folder, copied = folder / "tensorboard", time.monotonic()
    local = epath.Path(tempfile.mkdtemp()) if is_remote(folder) else folder
    local.mkdir(parents=True, exist_ok=True)
    # The file names that it chooses itself differ between seconds only.
    writer = EventsWriter(str(local / "events"), f".{time.time_ns()}")

    def copy() -> None:
        # An object store cannot append.
        nonlocal copied
        if local is not folder:
            copy_folder(local, folder)
            copied = time.monotonic()

    def write(record: Record) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in _figures(record)]
        writer.write_event(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))
        writer.flush()
        if time.monotonic() - copied > RHYTHM:
            copy()

    def end() -> None:
        writer.close()
        copy()
        if local is not folder:
            local.rmtree()

    return write, end


def _wandb(folder: epath.Path, title: str, config: dict[str, Any]) -> _Writer:
    """Writes to a run that is resumed with this one; WANDB_MODE and the package's settings say whether it is online."""
    import wandb

    id_file = folder / "wandb_id.txt"
    if not id_file.exists():
        write_text(id_file, secrets.token_hex(8))
    local = tempfile.mkdtemp() if is_remote(folder) else str(folder)
    run = wandb.init(project="mossa_jax", name=title, id=id_file.read_text(), resume="allow", dir=local, config=config)
    known: set[str] = set()

    def write(record: Record) -> None:
        # Each model and stage counts its own steps, so its figures have their own axis and not the run's.
        step = f"step/{_subject(record)}"
        figures = dict(_figures(record))
        for name in figures.keys() - known:
            run.define_metric(name, step_metric=step)
        known.update(figures)
        run.log({step: record["step"], **figures})

    return write, run.finish
