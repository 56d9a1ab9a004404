"""Where the time of a run goes: into useful work, or lost to a named cause; and a trace of some steps.

A run opens a stage after the other in its `Ledger`; whoever works inside of one says what for (`useful`, `lost`), and
says nothing of it to those between: like a logger, the open stage is found from everywhere in its thread. Outside of a
stage all of this does nothing.

Devices work while the host goes on. So a cause counts only while they have nothing to do: a batch that is packed
behind a running step costs nothing. A thread waits for each step, the loop never does.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import pandas as pd

from mossa_jax.files.run_folder import RunFolder
from mossa_jax.monitoring.profiles import Profile

log = logging.getLogger("mossa_jax")

CAUSES = {
    "restart": "set-up of an attempt that goes on with a stage, and work that is done once more",
    "compile": "tracing and compiling programs, or reading them from the cache",
    "load": "reading models and adapters",
    "input": "packing rows and moving them to the devices",
    "checkpoint": "saving and restoring",
    "export": "writing tuned models",
    "profile": "writing traces",
    "other": "everything else",
}
"""What time is lost to, in the order of tables."""

_USEFUL, _OTHER, _RESTART = "useful", "other", "restart"
_COMPILING = "/jax/core/compile/"  # in front of the events that jax reports of tracing, lowering and compiling

# Of this thread: what threads of checkpoints and libraries do beside it costs the run no time.
_open: ContextVar[Stage | None] = ContextVar("stage", default=None)


def useful(label: str = "", number: int | None = None) -> contextlib.AbstractContextManager:
    """The time in the block is useful, but for what is `lost` in it and for compiling.

    Args:
      label: of a sequence of units of work (steps, tasks); of none if empty.
      number: of this unit in it, from 0. One that an earlier attempt did already is lost to "restart".
    """
    stage = _open.get()
    return stage.useful(label, number) if stage else contextlib.nullcontext()


def lost(cause: str) -> contextlib.AbstractContextManager:
    """The time in the block is lost to one of `CAUSES`, while no device works; inside of another loss, to that one."""
    stage = _open.get()
    return stage.spending(cause) if stage else contextlib.nullcontext()


def running(work: Any) -> None:
    """Says that the devices were given work, whose arrays (a tree) are ready when it is done; does not wait.

    Where a trace was asked for, this is what counts the steps, and begins and ends it.
    """
    if stage := _open.get():
        stage.running(work)


def record() -> None:
    """Leaves the open stage's time so far in metrics.jsonl."""
    if stage := _open.get():
        stage.record()


class Ledger:
    """The time of one attempt at a run, stage by stage."""

    def __init__(self, run_folder: RunFolder, profile: Profile | None = None):
        """Begins an attempt.

        Args:
          run_folder: whose metrics.jsonl gets the records.
          profile: which steps to trace, if any.
        """
        self.run_folder, self.profile = run_folder, profile
        self.attempt = round(time.time(), 3)
        self._stages: dict[str, Stage] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the block as (a part of) this stage; a stage that is open already stands still meanwhile."""
        _listen()
        outer, stage = _open.get(), self._stages.get(name)
        if stage is None:
            stage = self._stages[name] = Stage(self, name)
        if outer:
            outer.settle()
        before = _open.set(stage)
        stage.resume()
        try:
            yield
        finally:
            _open.reset(before)
            try:
                stage.close()
            finally:
                if outer:
                    outer.resume()

    def earlier(self, stage: str) -> list[dict[str, Any]]:
        """Records that earlier attempts left of a stage; asked by the one process that writes."""
        if not self.run_folder.writer:
            return []
        return [
            one for one in self.run_folder.metrics() if one.get("stage") == stage and one["attempt"] != self.attempt
        ]


class Stage:
    """A stage's time: all of it is in `wall`, and what was not `lost` of that is useful."""

    def __init__(self, ledger: Ledger, name: str):
        self.name, self.wall, self.lost = name, 0.0, dict.fromkeys(CAUSES, 0.0)
        self._ledger, self._cause, self._since = ledger, _OTHER, time.monotonic()
        self._compiled, self._compilations = 0.0, []  # since `_since`: seconds, and (beginning, seconds) of each
        self._devices = _Devices()
        self._trace = ledger.profile and ledger.profile.of(name, ledger.run_folder.path)
        self._label, self._units, self._worked, self._said = "", 0, False, None
        # How far earlier attempts came, by label: until this one is there, it makes up for an interruption.
        self._reached: dict[str, int] = {}
        earlier = ledger.earlier(name)
        for one in earlier:
            self._reached[one["label"]] = max(one["step"], self._reached.get(one["label"], 0))
        self._redoing = bool(earlier)

    def resume(self) -> None:
        """Goes on after a time that is not this stage's."""
        self._since = time.monotonic()

    def settle(self) -> None:
        """Books the time since the last call."""
        now = time.monotonic()
        begin, spent = self._since, now - self._since
        self._since, self.wall = now, self.wall + spent
        if self._redoing:
            self.lost[_RESTART] += spent
        elif self._cause != _USEFUL:
            busy = min(max(self._devices.free_at() - begin, 0.0), spent)
            self.lost[self._cause] += max(spent - busy - self._compiled, 0.0)
        self._compiled, self._compilations = 0.0, []

    @contextlib.contextmanager
    def spending(self, cause: str) -> Iterator[None]:
        """Books the block on a cause, unless it is inside of a loss."""
        before = self._cause
        if before not in (_USEFUL, _OTHER):
            yield
            return
        self.settle()
        self._cause = cause
        try:
            yield
        finally:
            self.settle()
            self._cause = before

    @contextlib.contextmanager
    def useful(self, label: str, number: int | None) -> Iterator[None]:
        """See the function of this name."""
        self._worked = True
        if self._redoing and (number is None or number >= self._reached.get(label, 0)):
            self.settle()
            self._redoing = False
        with self.spending(_USEFUL):
            yield
        if number is not None:
            self._label, self._units = label, number + 1

    def running(self, work: Any) -> None:
        """See the function of this name."""
        self._devices.give(work)
        if self._trace and self._trace.due():
            jax.block_until_ready(work)
            with self.spending("profile"):
                self._trace.turn()

    def compiled(self, seconds: float) -> None:
        """Books a compilation of so many seconds that ended now; those inside of it were reported before."""
        if self._redoing or self._cause not in (_USEFUL, _OTHER):
            return
        now = time.monotonic()
        begin, inside = now - seconds, 0.0
        while self._compilations and self._compilations[-1][0] >= begin:
            inside += self._compilations.pop()[1]
        self._compilations.append((begin, max(seconds, inside)))
        more = min(max(seconds - inside, 0.0), now - self._since - self._compiled)
        self._compiled += more
        self.lost["compile"] += more

    def close(self) -> None:
        """Books, records and says in a line what there is; a stage in which nothing was to be done leaves nothing."""
        if self._trace:
            with self.spending("profile"):
                self._trace.close()
        self.settle()
        self._cause = _OTHER  # an error may have come out of a span
        self._devices.close()
        if self._worked:
            self.record()
            log.info("%s", self._line())

    def record(self) -> None:
        """Leaves the time so far in metrics.jsonl; a later record of the same attempt takes this one's place."""
        self.settle()
        seconds = {cause: round(spent, 3) for cause, spent in self.lost.items() if spent >= 0.0005}
        self._ledger.run_folder.append_metrics(
            {
                "stage": self.name,
                "attempt": self._ledger.attempt,
                "time": round(time.time(), 3),
                "label": self._label,
                "step": self._units,
                "devices": jax.device_count(),
                "wall": round(self.wall, 3),
                "useful": round(self.wall - sum(self.lost.values()), 3),
                "lost": seconds,
            }
        )

    def _line(self) -> str:
        gone = {cause: spent for cause, spent in self.lost.items() if spent >= 0.05}
        text = ", ".join(f"{cause} {spent:.1f} s" for cause, spent in gone.items())
        share = 1 - sum(self.lost.values()) / max(self.wall, 1e-9)
        return f"{self.name}: {self.wall:.1f} s, {share:.0%} useful" + (f"; lost to {text}" if text else "")


class _Devices:
    """Until when the devices have work. A thread waits for what they were given, in turn."""

    def __init__(self):
        self._given, self._free_at, self._lock = 0, -math.inf, threading.Lock()
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def give(self, work: Any) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait, name="goodput", daemon=True)
            self._thread.start()
        with self._lock:
            self._given, self._free_at = self._given + 1, math.inf
            self._queue.put((self._given, work))

    def free_at(self) -> float:
        """The monotonic time at which the last work was done; infinite while it is not."""
        return self._free_at

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(1)  # devices that hang are not waited for
            self._thread = None

    def _wait(self) -> None:
        while (item := self._queue.get()) is not None:
            number, work = item
            with contextlib.suppress(Exception):  # whoever uses the work hears of it
                jax.block_until_ready(work)
            with self._lock:
                if number == self._given:
                    self._free_at = time.monotonic()
            item = work = None


@functools.cache
def _listen() -> None:
    """Has jax report compilations to the stage that is open in the thread where they happen."""

    def heard(event: str, seconds: float, **_: Any) -> None:
        if event.startswith(_COMPILING) and (stage := _open.get()):
            stage.compiled(seconds)

    jax.monitoring.register_event_duration_secs_listener(heard)


def times(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Where the time of a run went, over all attempts.

    Args:
      records: of metrics.jsonl; those of other kinds are passed over.

    Returns:
      A row a stage, in the order of their beginning: `stage`, `attempts`; in seconds `wall`, `useful` and each of
      `CAUSES`; `device_wall`, `device_useful`: the same, each attempt's times its devices. `attrs["outside"]`: seconds
      between the first beginning and the last record that are in no stage: between stages and attempts, and what an
      attempt that was killed did behind its last record.
    """
    last = {(one["stage"], one["attempt"]): one for one in records if "stage" in one}
    seconds = ["wall", "useful", *CAUSES, "device_wall", "device_useful"]
    rows: dict[str, dict[str, Any]] = {}
    for (stage, _), one in last.items():
        row = rows.setdefault(stage, {"stage": stage, "attempts": 0, **dict.fromkeys(seconds, 0.0)})
        row["attempts"] += 1
        for name, spent in {"wall": one["wall"], "useful": one["useful"], **one["lost"]}.items():
            row[name] += spent
        for name in ("wall", "useful"):
            row[f"device_{name}"] += one[name] * one["devices"]
    found = pd.DataFrame(list(rows.values()), columns=["stage", "attempts", *seconds])
    span = max(one["time"] for one in last.values()) - min(one["attempt"] for one in last.values()) if last else 0.0
    found.attrs["outside"] = max(span - float(found.wall.sum()), 0.0)
    return found
