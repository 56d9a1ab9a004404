"""Where the time of a run goes: into useful work, or into a named loss.

A run opens one stage after another in its `Ledger`. Code that works inside a stage marks blocks as `useful` or `lost`
without passing anything along: like a logger, the open stage is known everywhere in its thread. Outside a stage these
marks do nothing.

Devices work while the host continues. So a loss counts only while they are idle: packing a batch during a running step
costs nothing. A separate thread waits for each step; the training loop never does.
"""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import jax

from mossa_jax.files.run_folder import RunFolder
from mossa_jax.log import Wait, log
from mossa_jax.monitoring.clock import clock
from mossa_jax.monitoring.profiles import Profile, Trace

if TYPE_CHECKING:
    import pandas as pd

CAUSES = {
    "restart": "set-up of an attempt that continues a stage, and work that is repeated",
    "compile": "tracing and compiling programs, or reading them from the cache",
    "load": "reading models and adapters",
    "input": "packing rows and moving them to the devices",
    "checkpoint": "saving and restoring",
    "export": "writing tuned models",
    "profile": "writing traces",
    "other": "everything else",
}
"""Causes of losses, in the order of tables."""

_SHORT = 10.0  # seconds of a stage that need no line
_USEFUL, _OTHER, _RESTART = "useful", "other", "restart"
_COMPILING = "/jax/core/compile/"  # prefix of the events by which jax reports tracing, lowering and compiling
# jax reports each step when it ends. The compiler, which may be silent for minutes, is called after the lowering.
_LOWERED, _COMPILED = f"{_COMPILING}jaxpr_to_mlir_module_duration", f"{_COMPILING}backend_compile_duration"

# Per thread: the work of checkpoint and library threads in parallel costs the run no time.
_open: ContextVar[Stage | None] = ContextVar("stage", default=None)


def useful(label: str = "", number: int | None = None) -> contextlib.AbstractContextManager:
    """Marks the time in the block as useful, except for compiling and for blocks marked as `lost` in it.

    Args:
      label: name of a sequence of units of work (steps, tasks); empty for none.
      number: index of this unit in the sequence, from 0. One that an earlier attempt did is lost to "restart".
    """
    stage = _open.get()
    return stage.useful(label, number) if stage else contextlib.nullcontext()


def lost(cause: str) -> contextlib.AbstractContextManager:
    """Marks the time in the block, while devices are idle, as lost to one of `CAUSES`; an enclosing loss wins."""
    stage = _open.get()
    return stage.spending(cause) if stage else contextlib.nullcontext()


def running(work: Any) -> None:
    """Reports that the devices have got work, without waiting for it; also counts the steps of a trace.

    Args:
      work: a tree of arrays that are ready when the work is done.
    """
    if stage := _open.get():
        stage.running(work)


def record() -> None:
    """Writes the open stage's time so far to metrics.jsonl."""
    if stage := _open.get():
        stage.record()


def outcome(text: str, always: bool = True) -> bool:
    """Sets what the open stage says it has done, in the line at its end; returns whether a stage is open.

    Args:
      text: a few words.
      always: whether the stage has its line even if it was short.
    """
    if stage := _open.get():
        stage.outcome, stage.is_always_said = text, always
    return stage is not None


def compile_seconds() -> float:
    """Returns how long this attempt's stages have compiled until now; 0 outside a stage."""
    stage = _open.get()
    return stage.ledger.compiled if stage else 0.0


class Ledger:
    """The account of one attempt's time, stage by stage."""

    def __init__(self, run_folder: RunFolder, profile: Profile | None = None):
        """Begins an attempt.

        Args:
          run_folder: its metrics.jsonl gets the records.
          profile: the steps to trace, if any.
        """
        self.run_folder, self.profile = run_folder, profile
        self.attempt = round(time.time(), 3)
        self.compiled = 0.0  # seconds of compilation, in all stages
        self._stages: dict[str, Stage] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the block as (a part of) this stage; an enclosing stage pauses meanwhile."""
        _listen()
        outer, stage = _open.get(), self._stages.get(name)
        if stage is None:
            stage = self._stages[name] = Stage(self, name)
        if outer:
            outer.settle()
        before = _open.set(stage)
        stage.resume()
        is_done = False
        try:
            yield
            is_done = True
        finally:
            _open.reset(before)
            try:
                # A stage that others contain comes back many times; the last time it is alone, and is logged.
                stage.close(logged=is_done and outer is None)
            finally:
                if outer:
                    outer.resume()

    def earlier(self, stage: str) -> list[dict[str, Any]]:
        """Returns the records that earlier attempts wrote about a stage; none in processes that do not write."""
        if not self.run_folder.writer:
            return []
        return [
            record
            for record in self.run_folder.metrics()
            if record.get("stage") == stage and record["attempt"] != self.attempt
        ]


class Stage:
    """A stage's time in seconds: `wall` is all of it, `lost` is what each cause took; the rest is useful.

    `outcome` says what was done; a short stage says it only if `is_always_said`.
    """

    def __init__(self, ledger: Ledger, name: str):
        self.name, self.wall, self.lost = name, 0.0, dict.fromkeys(CAUSES, 0.0)
        self.ledger, self._cause, self._since = ledger, _OTHER, time.monotonic()
        self.outcome, self.is_always_said = "", False
        self._wait: Wait | None = None  # for the compiler
        self._has_said_compiling = self._has_news = False
        # Since `_since`: seconds of compilation, and (start, seconds) of each.
        self._compiled = 0.0
        self._compilations: list[tuple[float, float]] = []
        self._devices = _Devices()
        self._trace: Trace | None = ledger.profile.of(name, ledger.run_folder.path) if ledger.profile else None
        self._label, self._units, self._has_worked = "", 0, False
        # How many units earlier attempts did, by label. Until this attempt reaches them, it repeats work.
        self._reached: dict[str, int] = {}
        earlier = ledger.earlier(name)
        for past in earlier:
            self._reached[past["label"]] = max(past["step"], self._reached.get(past["label"], 0))
        self._redoing = bool(earlier)

    def resume(self) -> None:
        """Continues after time that does not belong to this stage."""
        self._since = time.monotonic()

    def settle(self) -> None:
        """Books the time since the last call."""
        now = time.monotonic()
        start, spent = self._since, now - self._since
        self._since, self.wall = now, self.wall + spent
        if self._redoing:
            self.lost[_RESTART] += spent
        elif self._cause != _USEFUL:
            busy = min(max(self._devices.free_at() - start, 0.0), spent)
            self.lost[self._cause] += max(spent - busy - self._compiled, 0.0)
        self._compiled, self._compilations = 0.0, []

    @contextlib.contextmanager
    def spending(self, cause: str) -> Iterator[None]:
        """Books the block on a cause, unless it is inside a loss."""
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
        """Marks a block as useful; see the function of this name."""
        self._has_worked = self._has_news = True
        if self._redoing and (number is None or number >= self._reached.get(label, 0)):
            self.settle()
            self._redoing = False
        with self.spending(_USEFUL):
            yield
        if number is not None:
            self._label, self._units = label, number + 1

    def running(self, work: Any) -> None:
        """Reports work of the devices; see the function of this name."""
        self._devices.add(work)
        if self._trace and self._trace.due():
            jax.block_until_ready(work)
            with self.spending("profile"):
                self._trace.turn()

    def compiled(self, seconds: float) -> None:
        """Books a compilation that ended now; compilations inside it were reported before it.

        Args:
          seconds: how long it took.
        """
        now = time.monotonic()
        start, inside = now - seconds, 0.0
        while self._compilations and self._compilations[-1][0] >= start:
            inside += self._compilations.pop()[1]
        self._compilations.append((start, max(seconds, inside)))
        more = min(max(seconds - inside, 0.0), now - self._since - self._compiled)
        self.ledger.compiled += more
        if self._redoing or self._cause not in (_USEFUL, _OTHER):
            return
        self._compiled += more
        self.lost["compile"] += more

    def wait_for_compiler(self, is_waiting: bool) -> None:
        """Says that the compiler works, where it takes long; in a line once per stage."""
        if self._wait is not None:
            self._has_said_compiling |= self._wait.was_said
            self._wait.end()
            self._wait = None
        if is_waiting:
            line = f"{self.name}: compiling a program, which may take a minute; it is kept for later runs"
            self._wait = Wait(line, "compiling", in_line=not self._has_said_compiling)

    def close(self, logged: bool = True) -> None:
        """Books and records the stage's time, and logs it if asked; one in which nothing was done leaves no record."""
        self.wait_for_compiler(False)
        if self._trace:
            with self.spending("profile"):
                self._trace.close()
        self.settle()
        self._cause = _OTHER  # an error may have left a block
        self._devices.close()
        if self._has_worked:
            self.record()
        if logged and self._has_news:
            self._has_news = False
            log.debug("%s", self._line())
            if self.is_always_said or self.wall >= _SHORT:
                log.info("%s", self._summary())

    def record(self) -> None:
        """Writes the time so far to metrics.jsonl; a later record of the same attempt replaces this one."""
        self.settle()
        seconds = {cause: round(spent, 3) for cause, spent in self.lost.items() if spent >= 0.0005}
        self.ledger.run_folder.append_metrics(
            {
                "stage": self.name,
                "attempt": self.ledger.attempt,
                "time": round(time.time(), 3),
                "label": self._label,
                "step": self._units,
                "devices": jax.device_count(),
                "wall": round(self.wall, 3),
                "useful": round(self.wall - sum(self.lost.values()), 3),
                "lost": seconds,
            }
        )

    def _summary(self) -> str:
        """Returns in plain words what was done, and how long it took."""
        text = f"{self.name}: {self.outcome}{'; ' if self.outcome else ''}took {clock(self.wall)}"
        compiling = self.lost["compile"]
        return text + (f", {clock(compiling)} of it compiling" if compiling >= 1 else "")

    def _line(self) -> str:
        """Returns where the time went."""
        losses = {cause: spent for cause, spent in self.lost.items() if spent >= 0.05}
        text = ", ".join(f"{cause} {spent:.1f} s" for cause, spent in losses.items())
        share = 1 - sum(self.lost.values()) / max(self.wall, 1e-9)
        return f"{self.name}: {self.wall:.1f} s, {share:.0%} useful" + (f"; lost to {text}" if text else "")


class _Devices:
    """The time until which the devices have work; a thread waits for each piece of work in turn."""

    def __init__(self):
        self._count, self._free_at, self._lock = 0, -math.inf, threading.Lock()
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, work: Any) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait, name="goodput", daemon=True)
            self._thread.start()
        with self._lock:
            self._count, self._free_at = self._count + 1, math.inf
            self._queue.put((self._count, work))

    def free_at(self) -> float:
        """Returns the monotonic time at which the last work was done; infinite until then."""
        return self._free_at

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(1)  # devices that hang are not waited for
            self._thread = None

    def _wait(self) -> None:
        while (item := self._queue.get()) is not None:
            number, work = item
            with contextlib.suppress(Exception):  # the code that uses the result gets the error
                jax.block_until_ready(work)
            with self._lock:
                if number == self._count:
                    self._free_at = time.monotonic()
            item = work = None  # keeps no array alive while it waits


@functools.cache
def _listen() -> None:
    """Makes jax report each compilation to the stage that is open in its thread."""

    def report(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith(_COMPILING) and (stage := _open.get()):
            stage.compiled(duration_secs)
            if event in (_LOWERED, _COMPILED):
                stage.wait_for_compiler(event == _LOWERED)

    jax.monitoring.register_event_duration_secs_listener(report)


def times(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Adds up the time of a run over all attempts.

    Args:
      records: lines of metrics.jsonl; those that are not about a stage are skipped.

    Returns:
      A row per stage, in the order in which they began, with the columns `stage` and `attempts`; in seconds `wall`,
      `useful` and each of `CAUSES`; and `device_wall` and `device_useful`, where each attempt's seconds are multiplied
      by its devices. `attrs["outside"]` has the seconds between the first start and the last record that belong to no
      stage: between stages and attempts, and after the last record of an attempt that was killed.
    """
    import pandas as pd

    last = {(record["stage"], record["attempt"]): record for record in records if "stage" in record}
    seconds = ["wall", "useful", *CAUSES, "device_wall", "device_useful"]
    rows: dict[str, dict[str, Any]] = {}
    for (stage, _), record in last.items():
        row = rows.setdefault(stage, {"stage": stage, "attempts": 0, **dict.fromkeys(seconds, 0.0)})
        row["attempts"] += 1
        for name, spent in {"wall": record["wall"], "useful": record["useful"], **record["lost"]}.items():
            row[name] += spent
        for name in ("wall", "useful"):
            row[f"device_{name}"] += record[name] * record["devices"]
    table = pd.DataFrame(list(rows.values()), columns=["stage", "attempts", *seconds])
    span = 0.0
    if last:
        span = max(record["time"] for record in last.values()) - min(record["attempt"] for record in last.values())
    table.attrs["outside"] = max(span - float(table.wall.sum()), 0.0)
    return table
