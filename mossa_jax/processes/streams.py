"""Standard output and error as a command uses them: a reader that leaves early is no error, and a full disk is one."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO


class _Descriptor(io.FileIO):
    """A descriptor that drops what nobody reads: once its reader is gone, everything goes to the null device.

    The work of a command does not end with the reader of its words, as that of `head` does.
    """

    def __init__(self, descriptor: int, drops_all: bool):
        """Writes to a descriptor that stays open; `drops_all` says whether errors other than a lost reader pass too."""
        super().__init__(descriptor, "w", closefd=False)
        self._drops_all = drops_all

    def write(self, data: Any) -> int:
        """Writes bytes; returns how many are done with.

        Raises:
          OSError: the first time that they cannot be written for another reason than a lost reader.
        """
        try:
            return super().write(data)
        except OSError as error:
            # Python itself would write what is left once more, at its end, and complain.
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            if not (self._drops_all or isinstance(error, BrokenPipeError)):
                raise
            return len(data)


def settle_streams() -> None:
    """Makes standard output and error of this process take whatever becomes of their readers.

    A descriptor that was closed before the process began leads to the null device: the next file that is opened would
    take its place, and receive what is meant for people.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout, sys.stderr = _settled(sys.stdout, 1), _settled(sys.stderr, 2)


def _settled(stream: TextIO | None, descriptor: int) -> TextIO:
    """Returns a stream over a descriptor that writes as `stream` does; `stream` itself if it is not over it."""
    if stream is not None:
        try:
            if stream.fileno() != descriptor or isinstance(getattr(stream.buffer, "raw", None), _Descriptor):
                return stream
        except (OSError, ValueError, AttributeError):  # of a test or a notebook
            return stream
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(descriptor, drops_all=descriptor == 2)),
        encoding=getattr(stream, "encoding", "utf-8"),
        # A name that this encoding lacks is no reason to end.
        errors="surrogateescape" if getattr(stream, "errors", "") == "surrogateescape" else "backslashreplace",
        line_buffering=descriptor == 2 or os.isatty(descriptor),
    )
