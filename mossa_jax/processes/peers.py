"""The processes of a run watch each other: if one is lost or fails, all others end, with one line that names it.

JAX's coordination service also notices a lost process, but it ends the others by SIGABRT and a C++ stack. So each
process keeps a TCP connection to process 0 (`rendezvous.py` opens them before JAX starts). It says once a second that
it is alive, and at the end how it ends. A connection that breaks means that a process died; one that is silent for the
time-out means that a process was stopped or cut off. Process 0 tells the others what it noticed.

Messages are lines of JSON: `hello` (a process's index, with `of`, `host` and `facts`), `refused` (the reason), `ready`
(all have joined), `alive`, `stop` (the run was asked to stop, and whether it is `late`: its time is over), `gives` (the
number of an exchange, with the `name` of it, `by` whom, and a `value`), `all` (the same number, with all `values`),
`ends` (how a process ends: `code`, `why`), `over` (all have said how they end), `lost` (why the run ends, with which
`code`, and whether a process `hangs`).
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import faulthandler
import json
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mossa_jax.errors import DONE, LOST_PEER, STOPPED, Refusal
from mossa_jax.processes.stop import SIGNALS, Stop
from mossa_jax.processes.watchdog import unlimited

BEAT = 1.0
"""Seconds between two messages of a process."""
BEHIND = 5.0
"""Seconds by which JAX's own time-out is later than ours, so that ours comes first."""
_GRACE = 5.0  # seconds within which the others may say that they fail as well, after one process has failed
_FULL = 5.0  # seconds for which a connection may take nothing more
_LINGER = 2.0  # seconds that process 0 lets the others end first: it holds JAX's service

EndProcess = Callable[[int, str, bool], None]
"""Ends this process: exit code, reason in one line, and whether another process hangs."""


class Link:
    """One connection to another process.

    Attributes:
      connection: the socket.
      process: index of the other process; -1 until it has said hello.
      host: its host.
      differs: the refusal that says in what it differs from process 0; None if it does not.
      heard: monotonic time of its last message.
      unread: messages that arrived together with one that had to be acted on first.
    """

    def __init__(self, connection: socket.socket, process: int = -1, host: str = ""):
        connection.setblocking(False)
        self.connection = connection
        self.process = process
        self.host = host
        self.differs: Refusal | None = None
        self.heard = time.monotonic()
        self.unread: list[dict[str, Any]] = []
        self._rest = b""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; a connection that is broken, or stays full, is noticed when listening."""
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):
            while data:
                try:
                    data = data[self.connection.send(data) :]
                except BlockingIOError:
                    # Facts about many files are more than the system keeps for a connection.
                    if not self._takes_more():
                        self.connection.shutdown(socket.SHUT_RDWR)

    def _takes_more(self) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_WRITE)
            return bool(selector.select(_FULL))

    def receive(self) -> list[dict[str, Any]] | None:
        """Returns the messages that have arrived; None if the connection is broken or speaks another protocol."""
        try:
            data = self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            messages = [*self.unread, *(json.loads(line) for line in lines)]
        except ValueError:
            return None
        self.unread = []
        return messages if all(isinstance(message, dict) for message in messages) else None


class Peers:
    """The other processes of this run, watched by a thread of this one.

    Attributes:
      host: of this process.
    """

    def __init__(self, process: int, links: Sequence[Link], timeout: float, stop: Stop, end_process: EndProcess):
        """Starts watching; process 0 tells the others that all have joined.

        Args:
          process: index of this process.
          links: in process 0 the connections to all others, in another process the one to process 0.
          timeout: seconds of silence after which a process counts as lost.
          stop: gets the requests to stop that any process receives.
          end_process: called once, in the watching thread, when another process is lost (exit code 7) or has failed
            (its exit code, so that all end alike). Its last argument says whether the other one noticed that it hangs:
            then it may have been waiting for this one. Has to end this process.
        """
        self.host = socket.gethostname()
        self._process = process
        self._links = {link.process: link for link in links}
        self._timeout = timeout
        self._stop = stop
        self._end_process = end_process
        self._outbox: collections.deque[dict[str, Any]] = collections.deque()
        self._ends: dict[int, tuple[int, str, float]] = {}  # process -> exit code, reason, time of the message
        self._values: dict[int, dict[int, tuple[str, Any]]] = {}  # exchange -> process -> its name, value
        self._answers: dict[int, list[Any]] = {}  # exchange -> all values
        self._answered = threading.Condition()
        self._exchanges = 0
        self._reason = LOST_PEER, "", False  # exit code, text, whether a process hangs
        self._broken = threading.Event()
        self._over = threading.Event()  # all have said how they end
        self._settled = threading.Event()  # one of the two has happened, and this process may end
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        for link in links:
            link.heard = time.monotonic()
            if process == 0:
                link.send({"ready": len(links) + 1})
        stop.pass_on = lambda: self._post({"stop": process, "late": stop.is_out_of_time})
        # A Python handler waits while the main thread is in a collective; the signal's number arrives at once.
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._hold_aborts()
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def end(self, code: int, reason: str) -> bool:
        """Says how this process ends, and waits for the others; the last thing that a process does.

        Args:
          code: its exit code.
          reason: the reason in one line.

        Returns:
          Whether all processes end, each by itself; if not, this one has to leave without waiting for the others.
        """
        self.announce(code, reason)
        with unlimited():
            self._settled.wait()
        if not self._over.is_set():
            return False
        jax.distributed.shutdown()  # waits for all; a process that dies before that ends the others by SIGABRT
        self._on_abort(signal.SIG_DFL)
        return True

    def announce(self, code: int, reason: str) -> None:
        """Says how this process is about to end."""
        self._post({"ends": self._process, "code": code, "why": reason})

    def exchange(self, name: str, value: Any) -> list[Any]:
        """Returns the value of every process, by its index; the main threads of all call this at the same point.

        Args:
          name: of this point, for the message where a process is at another one.
          value: ready for JSON.
        """
        number, self._exchanges = self._exchanges, self._exchanges + 1
        self._post({"gives": number, "by": self._process, "name": name, "value": value})
        # If a process never comes here, the watching thread ends this one.
        with unlimited(), self._answered:
            self._answered.wait_for(lambda: number in self._answers)
            return self._answers.pop(number)

    def wait_for_verdict(self) -> None:
        """Returns once it is certain that no process is lost; then the error of a collective has another cause."""
        with unlimited():
            if self._broken.wait(self._timeout + BEHIND):
                threading.Event().wait()  # the watching thread ends the process

    def _post(self, message: dict[str, Any]) -> None:
        """Makes the watching thread send a message to all; a signal handler may call this."""
        self._outbox.append(message)
        with contextlib.suppress(OSError):
            self._wake.send(b".")

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for link in self._links.values():
                selector.register(link.connection, selectors.EVENT_READ, link)
            beat = 0.0
            while not (self._over.is_set() or self._broken.is_set()):
                for key, _ in selector.select(BEAT / 2):
                    if key.data is not None:
                        self._listen(key.data)
                    elif SIGNALS & set(self._woken.recv(1 << 10)):
                        self._spread({"stop": self._process})
                while self._outbox:
                    self._spread(self._outbox.popleft())
                if time.monotonic() > beat + BEAT:
                    beat = time.monotonic()
                    self._tell_all({"alive": self._process})
                self._judge()
            if self._broken.is_set() and self._process == 0:
                self._wait_for_others(selector)
        if self._broken.is_set() and self._process not in self._ends:
            self._end_process(*self._reason)
        self._settled.set()

    def _listen(self, link: Link) -> None:
        messages = link.receive()
        if messages is None:
            if not self._break_for(link.process):
                self._break(LOST_PEER, f"{link} is lost: its connection closed")
            return
        for message in messages:
            if self._process == 0 and "stop" in message:
                self._spread(message)
            else:
                self._take(message)

    def _spread(self, message: dict[str, Any]) -> None:
        # Only process 0 collects values.
        if self._process != 0 or "gives" not in message:
            self._tell_all(message)
        self._take(message)

    def _tell_all(self, message: dict[str, Any]) -> None:
        for link in self._links.values():
            link.send(message)

    def _take(self, message: dict[str, Any]) -> None:
        """Acts on a message, whichever process sent it."""
        if "stop" in message:
            self._stop.ask(message.get("late", False))
        elif "ends" in message:
            self._ends.setdefault(message["ends"], (message["code"], message["why"], time.monotonic()))
        elif "gives" in message and self._process == 0:
            self._collect(message["gives"], message["by"], (message["name"], message["value"]))
        elif "all" in message:
            with self._answered:
                self._answers[message["all"]] = message["values"]
                self._answered.notify_all()
        elif "over" in message:
            self._over.set()
        elif "lost" in message:
            self._break(message["code"], message["lost"], message.get("hangs", False))

    def _collect(self, number: int, process: int, value: tuple[str, Any]) -> None:
        """Takes a process's value of an exchange (process 0); sends all values once they are there."""
        values = self._values.setdefault(number, {})
        values[process] = value
        if len(values) <= len(self._links):
            return
        names = {index: name for index, (name, _) in sorted(values.items())}
        other = next((index for index in names if names[index] != names[0]), None)
        if other is not None:
            self._break(LOST_PEER, f"{self._links[other]} is at {names[other]!r}, process 0 at {names[0]!r}")
            return
        del self._values[number]
        self._spread({"all": number, "values": [values[index][1] for index in sorted(values)]})

    def _judge(self) -> None:
        """Looks for processes that were silent too long, and, in process 0, whether those that end do so together."""
        now = time.monotonic()
        for link in self._links.values():
            if now - link.heard > self._timeout:
                self._break(LOST_PEER, f"{link} is lost: silent for {self._timeout:g} s (--heartbeat_timeout)")
        if self._process != 0:
            return
        if len(self._ends) > len(self._links):
            self._spread({"over": len(self._ends)})
        for process, (code, _, when) in self._ends.items():
            if now - when > _GRACE and not self._break_for(process):
                # It will never come to an exchange that others have begun.
                lacking = (values for values in self._values.values() if process not in values)
                if point := next((name for values in lacking for name, _ in values.values()), ""):
                    name = self._links.get(process, "process 0")
                    self._break(LOST_PEER, f"{name} ended with exit code {code} while others wait for {point!r}")

    def _break_for(self, process: int) -> bool:
        """Ends the run for all if a process said that it failed; returns whether it did."""
        code, reason, _ = self._ends.get(process, (DONE, "", 0))
        if code in (DONE, STOPPED):
            return False
        name = self._links.get(process, "process 0")
        is_stuck = code == LOST_PEER  # it noticed this itself: nobody had told it
        self._break(code, f"{name} ended with exit code {code}" + (f" ({reason})" if reason else ""), is_stuck)
        return True

    def _break(self, code: int, reason: str, is_stuck: bool = False) -> None:
        """Ends the run; a process that is already ending keeps its own exit code."""
        if self._over.is_set() or self._broken.is_set():
            return
        self._reason = code, reason, is_stuck
        if self._process == 0:
            self._tell_all({"lost": reason, "code": code, "hangs": is_stuck})
        self._broken.set()

    def _wait_for_others(self, selector: selectors.BaseSelector) -> None:
        """Lets process 0 end last: without its service JAX ends the others by SIGABRT."""
        left, deadline = set(self._links), time.monotonic() + _LINGER
        while left and time.monotonic() < deadline:
            for key, _ in selector.select(0.1):
                if key.data is not None and key.data.receive() is None:
                    selector.unregister(key.fileobj)
                    left.discard(key.data.process)

    def _hold_aborts(self) -> None:
        """Delays a SIGABRT until it is known whether a process is lost: JAX's client and gloo abort if one is."""

        @ctypes.CFUNCTYPE(None, ctypes.c_int)
        def hold(number: int) -> None:
            if self._over.is_set():
                os._exit(self._ends[self._process][0])  # a process died after its last message
            if self._broken.wait(_GRACE):
                time.sleep(2 * _LINGER)  # meanwhile the watching thread ends this process
            faulthandler.dump_traceback()

        self._hold = hold  # the library keeps no reference
        self._on_abort(ctypes.cast(hold, ctypes.c_void_p))

    def _on_abort(self, handler: Any) -> None:
        """Sets a C handler of SIGABRT, since Python's own handlers run too late."""
        library = ctypes.CDLL(None)
        library.signal.restype, library.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
        library.signal(signal.SIGABRT, handler)
