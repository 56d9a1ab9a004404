"""Mirrors of metrics.jsonl for those who watch a run elsewhere: TensorBoard and Weights & Biases.

The file stays the truth: nothing is ever read back from a tracker, and none can stop or slow a run. Each works in a
thread of its own, behind a queue that is never waited for.
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

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
_WAITING = 10_000  # records that may wait for a slow tracker
_PATIENCE = 30.0  # seconds that the end of a run waits for one


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers whose package is not installed.

    Raises:
      Refusal: 2, with the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(package := _PACKAGES[name]) is None:
            raise Refusal(
                BAD_CONFIG,
                f"config.track={name!r} needs {package}, which is not installed; pip install {package} "
                "(or pip install -e '.[track]')",
            )


class Trackers:
    """The trackers of one run; call it with a record."""

    def __init__(self, names: Sequence[str], folder: epath.PathLike, title: str, config: dict[str, Any]):
        """Starts them.

        Args:
          names: some of `config.TRACKERS`.
          folder: of the run.
          title: of the run, for people.
          config: of the run, JSON-ready.
        """
        begin = {"tensorboard": _tensorboard, "wandb": _wandb}
        self._mirrors = [_Mirror(name, partial(begin[name], epath.Path(folder), title, config)) for name in names]

    def __call__(self, record: Record) -> None:
        """Hands a record over; returns at once."""
        for mirror in self._mirrors:
            mirror.put(record)

    def close(self) -> None:
        """Hands over what waits, in half a minute or not at all."""
        for mirror in self._mirrors:
            mirror.close()


class _Mirror:
    """One tracker in a thread of its own; after its first failure it is left alone, with one warning."""

    def __init__(self, name: str, begin: Callable[[], tuple[Callable[[Record], None], Callable[[], None]]]):
        self._name, self._begin = name, begin
        self._waiting: queue.Queue[Record | None] = queue.Queue(_WAITING)
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        if self._failed:
            return
        try:
            self._waiting.put_nowait(dict(record))
        except queue.Full:
            self._fail("it does not keep up")

    def close(self) -> None:
        if self._failed:
            return
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=_PATIENCE)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._fail(f"it did not finish in {_PATIENCE:g} s")

    def _fail(self, why: object) -> None:
        if not self._failed:
            self._failed = True
            text = " ".join(str(why).split())[:200]
            log.warning("tracker %s: %s; it gets no more, metrics.jsonl has all", self._name, text)

    def _work(self) -> None:
        try:
            write, end = self._begin()
            while not self._failed and (record := self._waiting.get()) is not None:
                write(record)
            end()
        except BaseException as error:  # whatever a tracker does, SystemExit included, the run goes on
            self._fail(f"{type(error).__name__}: {error}")


def _figures(record: Record) -> Iterator[tuple[str, float]]:
    """("loss/<model>", value), ("useful/stage <stage>", value) and the like; what has no value is left out."""
    lost = {f"lost {cause}": seconds for cause, seconds in record.get("lost", {}).items()}
    for name, value in {**record, **lost}.items():
        if name not in ("model", "step", "attempt", "time") and isinstance(value, int | float):
            yield f"{name}/{_subject(record)}", float(value)


def _subject(record: Record) -> str:
    """Whose figures these are; a stage may be called as a model is."""
    return record["model"] if "model" in record else f"stage {record['stage']}"


def _tensorboard(folder: epath.Path, title: str, config: dict[str, Any]):
    """Scalars in event files below `tensorboard/`. Written here, one by one: SummaryWriter has a thread and a queue of
    its own, which blocks for good once that thread has failed."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    folder, copied = folder / "tensorboard", time.monotonic()
    here = epath.Path(tempfile.mkdtemp()) if is_remote(folder) else folder
    here.mkdir(parents=True, exist_ok=True)
    # The name that it gives itself tells seconds apart alone.
    writer = EventsWriter(str(here / "events"), f".{time.time_ns()}")

    def copy() -> None:  # an object store cannot append
        nonlocal copied
        if here is not folder:
            copy_folder(here, folder)
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
        if here is not folder:
            here.rmtree()

    return write, end


def _wandb(folder: epath.Path, title: str, config: dict[str, Any]):
    """A run that is gone on with when this one is; online or not as WANDB_MODE and the package's settings say."""
    import wandb

    name = folder / "wandb_id.txt"
    if not name.exists():
        write_text(name, secrets.token_hex(8))
    here = tempfile.mkdtemp() if is_remote(folder) else str(folder)
    run = wandb.init(project="mossa_jax", name=title, id=name.read_text(), resume="allow", dir=here, config=config)
    known = set()

    def write(record: Record) -> None:
        # Every model and stage counts its own steps, so theirs are an axis of each, and not the run's.
        step = f"step/{_subject(record)}"
        figures = dict(_figures(record))
        for name in figures.keys() - known:
            run.define_metric(name, step_metric=step)
        known.update(figures)
        run.log({step: record["step"], **figures})

    return write, run.finish
