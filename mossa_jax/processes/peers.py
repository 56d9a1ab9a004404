"""The processes of a run watch each other: one that is lost, or fails, ends all others in one line that names it.

JAX's coordination service notices a lost process, too, but it ends the others by SIGABRT and a stack of C++. So each
process keeps a TCP connection to process 0 (`processes.py` opens them before JAX starts) and says once a second that
it lives, and, at the end, how it ends. A connection that breaks is a process that died, at once; one that is silent for
the time-out is one that is stopped or cut off. Process 0 tells the others what it saw.

Messages are lines of JSON: `hello` (a process's index, with `of` and `host`), `refused` (why not), `ready` (all are
there), `alive`, `stop` (somebody asked the run to stop), `ends` (how a process ends: `code`, `why`), `over` (all have
said so), `lost` (why the run ends, with which `code`, and whether somebody `hangs`).
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

from mossa_jax.errors import DONE, LOST_PEER, STOPPED
from mossa_jax.processes.stop import Stop
from mossa_jax.processes.watchdog import unlimited

BEAT = 1.0
"""Seconds between two words of a process."""
BEHIND = 5.0
"""Seconds that JAX's own time-out lies behind ours, so that ours speaks first."""
_GRACE = 5.0  # seconds in which the others of a process that failed may say that they fail as well
_LINGER = 2.0  # seconds that process 0 gives the others to end before it does: it holds JAX's service


class Link:
    """One connection: whole messages, and when the other side was last heard."""

    def __init__(self, connection: socket.socket, process: int = -1, host: str = ""):
        connection.setblocking(False)
        self.connection = connection
        self.process = process
        self.host = host
        self.heard = time.monotonic()
        self.unread: list[dict[str, Any]] = []  # what arrived together with a message that had to be acted on first
        self._rest = b""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def send(self, message: dict[str, Any]) -> None:
        """Sends; that a connection is broken or full is found out by listening."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """What has arrived; None when the connection is broken, or something else speaks there."""
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
    """The other processes of this run, watched by a thread of this one."""

    def __init__(
        self, process: int, links: Sequence[Link], timeout: float, stop: Stop, lost: Callable[[int, str, bool], None]
    ):
        """Starts to watch; process 0 tells the others that all are there.

        Args:
          process: index of this one.
          links: process 0's connections to all others, another one's to process 0.
          timeout: seconds without a word after which a process counts as lost.
          stop: a request to any process is passed on to all.
          lost: called once, in the watching thread, with an exit code and the reason in words, when another process is
            lost (7) or has failed (its code, so that all say the same), and with whether that one found that it hangs:
            then it may have waited for this one; has to end this process.
        """
        self._process = process
        self._links = {link.process: link for link in links}
        self._timeout = timeout
        self._stop = stop
        self._lost = lost
        self._outbox: collections.deque[dict[str, Any]] = collections.deque()
        self._ends: dict[int, tuple[int, str, float]] = {}  # process -> exit code, why, when it was heard
        self._why = LOST_PEER, "", False  # why the run is broken
        self._broken = threading.Event()
        self._over = threading.Event()  # all have said how they end
        self._settled = threading.Event()  # either is known, and this process may end
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        for link in links:
            link.heard = time.monotonic()
            if process == 0:
                link.send({"ready": len(links) + 1})
        stop.pass_on = lambda: self._post({"stop": process})
        # A handler in Python waits as long as the main thread is in a collective; the signal's number comes at once.
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._hold_aborts()
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def end(self, code: int, why: str) -> bool:
        """Says how this process ends, and waits for what the others do; the last thing that a process does.

        Args:
          code: its exit code.
          why: the reason in one line.

        Returns:
          Whether all processes end, each by itself; else this one has to leave without waiting for the others.
        """
        self.announce(code, why)
        with unlimited():
            self._settled.wait()
        if not self._over.is_set():
            return False
        jax.distributed.shutdown()  # waits for all; a process that dies before it is there ends the others by SIGABRT
        self._on_abort(signal.SIG_DFL)
        return True

    def announce(self, code: int, why: str) -> None:
        """Says how this process ends, if it is just about to."""
        self._post({"ends": self._process, "code": code, "why": why})

    def wait_for_verdict(self) -> None:
        """Returns when it is certain that no process is lost: then an error of a collective has another cause."""
        with unlimited():
            if self._broken.wait(self._timeout + BEHIND):
                threading.Event().wait()  # the watching thread ends the process

    def _post(self, message: dict[str, Any]) -> None:
        """Has the watching thread send a message to all; may be called by a signal's handler."""
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
                    elif {signal.SIGTERM, signal.SIGINT} & set(self._woken.recv(1 << 10)):
                        self._spread({"stop": self._process})
                while self._outbox:
                    self._spread(self._outbox.popleft())
                if time.monotonic() > beat + BEAT:
                    beat = time.monotonic()
                    self._tell_all({"alive": self._process})
                self._judge()
            if self._broken.is_set() and self._process == 0:
                self._let_go(selector)
        if self._broken.is_set() and self._process not in self._ends:
            self._lost(*self._why)
        self._settled.set()

    def _listen(self, link: Link) -> None:
        said = link.receive()
        if said is None:
            if not self._break_for(link.process):
                self._break(LOST_PEER, f"{link} is lost: its connection closed")
            return
        for message in said:
            if self._process == 0 and "stop" in message:
                self._spread(message)
            else:
                self._take(message)

    def _spread(self, message: dict[str, Any]) -> None:
        self._tell_all(message)
        self._take(message)

    def _tell_all(self, message: dict[str, Any]) -> None:
        for link in self._links.values():
            link.send(message)

    def _take(self, message: dict[str, Any]) -> None:
        """What a message means, whoever sent it."""
        if "stop" in message:
            self._stop.asked = True
        elif "ends" in message:
            self._ends.setdefault(message["ends"], (message["code"], message["why"], time.monotonic()))
        elif "over" in message:
            self._over.set()
        elif "lost" in message:
            self._break(message["code"], message["lost"], message.get("hangs", False))

    def _judge(self) -> None:
        """Who has been silent for too long; and, by process 0, whether those who end do so together."""
        now = time.monotonic()
        for link in self._links.values():
            if now - link.heard > self._timeout:
                self._break(LOST_PEER, f"{link} is lost: not heard of for {self._timeout:g} s (--heartbeat_timeout)")
        if self._process != 0:
            return
        if len(self._ends) > len(self._links):
            self._spread({"over": len(self._ends)})
        for process, (_, _, when) in self._ends.items():
            if now - when > _GRACE:
                self._break_for(process)

    def _break_for(self, process: int) -> bool:
        """Ends the run for all if this process said that it failed; whether it did."""
        code, why, _ = self._ends.get(process, (DONE, "", 0))
        if code in (DONE, STOPPED):
            return False
        who = self._links.get(process, "process 0")
        hangs = code == LOST_PEER  # its own word: nobody had told it
        self._break(code, f"{who} ended with exit code {code}" + (f" ({why})" if why else ""), hangs)
        return True

    def _break(self, code: int, why: str, hangs: bool = False) -> None:
        """The run cannot go on. A process that is ending anyway does so with its own code."""
        if self._over.is_set() or self._broken.is_set():
            return
        self._why = code, why, hangs
        if self._process == 0:
            self._tell_all({"lost": why, "code": code, "hangs": hangs})
        self._broken.set()

    def _let_go(self, selector: selectors.BaseSelector) -> None:
        """Process 0 ends last: without its service JAX ends the others by SIGABRT."""
        left, deadline = set(self._links), time.monotonic() + _LINGER
        while left and time.monotonic() < deadline:
            for key, _ in selector.select(0.1):
                if key.data is not None and key.data.receive() is None:
                    selector.unregister(key.fileobj)
                    left.discard(key.data.process)

    def _hold_aborts(self) -> None:
        """Holds a SIGABRT until it is known whether a process is lost: it is how JAX's client and gloo find out."""

        @ctypes.CFUNCTYPE(None, ctypes.c_int)
        def hold(number):
            if self._over.is_set():
                os._exit(self._ends[self._process][0])  # a process died behind its last word
            if self._broken.wait(_GRACE):
                time.sleep(2 * _LINGER)  # meanwhile the watching thread ends this process
            faulthandler.dump_traceback()

        self._hold = hold  # the library keeps no reference
        self._on_abort(ctypes.cast(hold, ctypes.c_void_p))

    def _on_abort(self, handler: Any) -> None:
        """Python's own handlers run too late for SIGABRT."""
        library = ctypes.CDLL(None)
        library.signal.restype, library.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
        library.signal(signal.SIGABRT, handler)
