"""Ctrl-C in a command: it ends at once and without a traceback, wherever it is hit.

A module of its own, with next to no imports: `launch` calls it before it imports anything else.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from typing import Any


def end_on_interrupt() -> None:
    """Makes SIGINT end this process as it ends any program: at once, silently, told by the signal (130 in a shell).

    Python would raise KeyboardInterrupt wherever it is: in the middle of an import, in a callback from C++, or not
    before native code returns. A SIGINT that is ignored, as in the background of a script, stays so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def handle_once(number: signal.Signals, handler: Callable[[int, Any], None]) -> Any:
    """Sets a signal's handler for one time, after which the signal acts as by default; returns the handler before.

    Python runs handlers only once native code has returned, which may take minutes. A second signal must not wait for
    that: where the signal had its default action before, the kernel itself takes the handler away.
    """
    before = signal.signal(number, handler)
    if before is signal.SIG_DFL and sys.platform == "linux":
        library = ctypes.CDLL(None)
        for name in ("signal", "sysv_signal"):
            if (function := getattr(library, name, None)) is None:
                return before  # a C library without it
            function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
        # The only way to Python's own C handler: take it off, and put it on again for one time.
        library.sysv_signal(number, library.signal(number, 0))
    return before
