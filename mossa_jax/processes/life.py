"""The life of one process of a run: it starts, joins the others, works under a watch, and ends with one exit code."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import re
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import jax
from absl import logging as absl_logging
from absl.logging import converter

from mossa_jax.errors import BAD_CONFIG, DONE, INTERNAL, LOST_PEER, STOPPED, Refusal
from mossa_jax.log import console, log, log_to_console
from mossa_jax.processes import agreement
from mossa_jax.processes.facts import Facts, program_facts
from mossa_jax.processes.failures import explain, first_line
from mossa_jax.processes.peers import Peers
from mossa_jax.processes.rendezvous import check_platform, choose_platform, describe, find_place, join
from mossa_jax.processes.stop import Stop
from mossa_jax.processes.watchdog import Watchdog, unlimited

# How an error of JAX's runtime begins. The end of another process may be the cause of any of these.
_RUNTIME_ERROR = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|DATA_LOSS): ")

_LAST_WORDS = 5.0  # seconds within which a process that leaves has to say why
_AGAIN = "run the same command again to continue"


@dataclass(frozen=True)
class Settings:
    """How a process starts, and how long it and the others may be silent.

    Attributes:
      platform: `tpu`, `gpu` or `cpu`; "" for whatever JAX finds.
      cpu_devices: devices that a CPU counts as; 0 leaves this to JAX.
      processes: how many processes the run has; 0 takes the number from the cluster's environment.
      coordinator: host:port of process 0; "" takes it from the environment.
      process: index of this process; -1 takes it from the environment.
      start_timeout: seconds to wait until all processes have joined.
      heartbeat_timeout: seconds of silence after which another process counts as lost.
      step_timeout: seconds between two signs of life after which this process counts as stuck; 0 for no limit.
      stops_on_request: whether SIGTERM, SIGINT and SIGHUP ask the work to save and leave; else they end the process.
      max_hours: hours since the start of the process after which the work is asked the same; 0 for no limit. The
        clock of process 0 decides for all that have joined it.
      verbosity: what the console says, as absl counts: 1 everything, 0 what a user wants to know, -1 warnings.
    """

    platform: str = ""
    cpu_devices: int = 0
    processes: int = 1
    coordinator: str = ""
    process: int = -1
    start_timeout: float = 300
    heartbeat_timeout: float = 100
    step_timeout: float = 0
    stops_on_request: bool = False
    max_hours: float = 0
    verbosity: int = 0


class Process:
    """This process of a run.

    Attributes:
      stop: whether somebody asked the run to stop.
      before_leaving: called, in order, when the process is about to be ended from another thread than the main one;
        what they raise is ignored.
      runs_native_code: each says whether a thread is in the middle of something, such as a compilation, that cannot be
        stopped and does not survive the interpreter's end.
    """

    def __init__(
        self,
        settings: Settings,
        prepare: Callable[[], None] | None = None,
        facts: Callable[[], Facts] | None = None,
    ):
        """Starts nothing yet.

        Args:
          settings: how to start, and for how long to wait.
          prepare: called once the devices are available, before the work.
          facts: returns what all processes of the run must have in common, beside their programs; called where the run
            has several.
        """
        self.stop = Stop(settings.max_hours)
        self.before_leaving: list[Callable[[], None]] = []
        self.runs_native_code: list[Callable[[], bool]] = []
        self._settings = settings
        self._prepare = prepare
        self._facts = facts
        self._peers: Peers | None = None
        self._index = 0

    def run(self, work: Callable[[Process], object]) -> int:
        """Does the work as one of the run's processes, ends together with the others, and returns the exit code.

        Every refusal is one line on standard error; only an internal error (exit code 1) has a traceback.
        """
        _log_to_console(self._settings.verbosity)
        seconds = self._settings.step_timeout
        watchdog = Watchdog(seconds, self._end_as_stuck) if seconds else None
        code, reason = self._outcome(work)
        _hide_bar()
        if reason:
            print(reason, file=sys.stderr, flush=True)
        if self._peers is not None and not self._peers.end(code, _last_line(reason)):
            self._leave(code)
        if any(is_running() for is_running in self.runs_native_code):
            self._leave(code)
        if watchdog is not None:
            watchdog.close()
        return code

    def _outcome(self, work: Callable[[Process], object]) -> tuple[int, str]:
        """Joins the other processes and works; returns the exit code and the text that explains it."""
        # Requests to stop count from here on: devices may take a minute to start.
        listening = self.stop.listening() if self._settings.stops_on_request else contextlib.nullcontext()
        try:
            with listening, self.stop.in_time(lambda: self._peers is None or self._index == 0):
                self._start()
                work(self)
                # Here a full disk can still be told.
                sys.stdout.flush()
        except Refusal as refusal:
            self._wait_for_verdict(refusal)
            return refusal.code, f"{'stopped' if refusal.code == STOPPED else 'error'}: {refusal}"
        except Exception as error:
            self._wait_for_verdict(error)
            told, stack = explain(error), traceback.format_exc().rstrip()
            if told is None:
                return INTERNAL, stack
            log.debug("%s", stack)
            return told.code, f"error: {told}"
        return DONE, ""

    def _start(self) -> None:
        """Makes this process one of the run's, on the platform that was asked for."""
        settings = self._settings
        choose_platform(settings.platform)
        if settings.cpu_devices:
            jax.config.update("jax_num_cpu_devices", settings.cpu_devices)
        place = find_place(settings.processes, settings.coordinator, settings.process, settings.start_timeout)
        if place is not None:
            self._index = place.process
            with unlimited():
                facts = {"program": program_facts(), **(self._facts() if self._facts is not None else {})}
            self._peers = join(
                place, settings.start_timeout, settings.heartbeat_timeout, self.stop, self._end_for_another, facts
            )
            agreement.meet_over(self._peers)
        check_platform()
        if place is not None:
            device = {"platform": jax.default_backend(), "device": jax.local_devices()[0].device_kind}
            agreement.same("the devices", device, "give all hosts devices of one kind", BAD_CONFIG)
        if self._prepare is not None:
            self._prepare()
        if place is not None:
            log.info(describe(place))
            terminal = console()
            if jax.process_index() != 0 and terminal is not None and settings.verbosity < 1:
                terminal.quieten()
        if jax.default_backend() == "cpu":
            _keep_freed_memory()

    def _wait_for_verdict(self, error: BaseException) -> None:
        """Waits until it is known whether another process is lost, where that may be the cause of an error."""
        cause: BaseException | None = error
        while self._peers is not None and cause is not None:
            if _RUNTIME_ERROR.match(str(cause)):
                log.warning("%s; waiting to see whether a process is lost", first_line(cause))
                self._peers.wait_for_verdict()
                return
            cause = cause.__cause__ or cause.__context__

    def _end_for_another(self, code: int, reason: str, is_stuck: bool) -> None:
        """Ends this process because another one is lost; runs in a thread, for the main one may be in a collective.

        Args:
          code: exit code of all processes.
          reason: what happened, in one line.
          is_stuck: whether the other one hangs; then it may have been waiting for this one.
        """
        if is_stuck:
            _end_soon(code)
            _log_stacks()  # whichever process noticed first, one of all stacks shows the cause
        self._leave(code, f"error: {reason}" + (f"; {_AGAIN}" if code == LOST_PEER else ""))

    def _end_as_stuck(self, reason: str) -> None:
        """Ends this process because it hangs, and logs where, to the terminal and to the run folder."""
        _end_soon(LOST_PEER)
        if self._peers is not None:
            self._peers.announce(LOST_PEER, reason)
        _log_stacks()
        self._leave(LOST_PEER, f"error: {reason}; {_AGAIN}")

    def _leave(self, code: int, reason: str = "") -> None:
        """Ends the process whatever its other threads do, without JAX's own shutdown, which waits for all processes."""
        _end_soon(code)
        _hide_bar()
        if reason:
            log.error(reason)
        for act in self.before_leaving:
            with contextlib.suppress(Exception):
                act()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        logging.shutdown()
        os._exit(code)


def _last_line(text: str) -> str:
    return text.splitlines()[-1] if text else ""


def _log_stacks() -> None:
    with tempfile.TemporaryFile("w+") as stacks:
        faulthandler.dump_traceback(stacks)
        stacks.seek(0)
        log.error("stacks of all threads\n%s", stacks.read())


def _end_soon(code: int) -> None:
    """Ends the process in a few seconds, whatever it does until then: a stream or its lock may hang as well."""
    timer = threading.Timer(_LAST_WORDS, os._exit, [code])
    timer.daemon = True
    timer.start()


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory, where there is a `mallopt`.

    XLA's CPU backend allocates every temporary anew, and fresh pages from the kernel cost a third of a step on small
    models (docs/measurements.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**28)


def _hide_bar() -> None:
    if (terminal := console()) is not None:
        terminal.hide()


def _log_to_console(verbosity: int) -> None:
    """Logs plain lines to standard error: ours as `verbosity` says, and warnings of libraries."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.use_python_logging(quiet=True)
    # An error in a library's own thread reaches us as an exception, too, and is then reported in one line.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: record.exc_info is None)
    # After a failed write nobody waits for what TensorStore's threads report of the rest of it.
    report = sys.unraisablehook
    sys.unraisablehook = lambda failure: str(failure.exc_value) == "Event loop is closed" or report(failure)
    log_to_console(converter.absl_to_standard(verbosity))
