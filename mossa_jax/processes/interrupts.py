"""A signal that is handled once, and then acts as by default even while native code runs."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from typing import Any


def handle_once(number: signal.Signals, handler: Callable[[int, Any], None]) -> None:
    """Sets a signal's handler for one time, where the signal's action was the default; otherwise until it is set again.

    Python runs handlers only once native code has returned, which may take minutes. A second signal must not wait for
    that, so the kernel itself takes the handler away.
    """
    before = signal.signal(number, handler)
    if before is signal.SIG_DFL and sys.platform == "linux":
        library = ctypes.CDLL(None)
        for name in ("signal", "sysv_signal"):
            if (function := getattr(library, name, None)) is None:
                return  # a C library without it
            function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
        # The only way to Python's own C handler: take it off, and put it on again for one time.
        library.sysv_signal(number, library.signal(number, 0))
