"""metrics.jsonl: what a run records line by line, each line with a check of its own.

A file that grows has no digest. So every line ends in the CRC-32 of what stands before it, which shows every flipped
bit and every cut. Lines that have none come from older versions and stand before all others.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

from etils import epath

from mossa_jax.files.growing import GrowingText
from mossa_jax.log import log

FILE = "metrics.jsonl"

_CHECKED = re.compile(rb'(\{.*), "crc": "([0-9a-f]{8})"\}', re.DOTALL)
_SHOWN = 5  # numbers of damaged lines that a line of the log names


class Metrics:
    """The file metrics.jsonl of a run folder."""

    def __init__(self, folder: epath.Path):
        """Reads and writes nothing yet.

        Args:
          folder: the run folder.
        """
        self.path = folder / FILE
        self._text = GrowingText(self.path, is_line=lambda line: _record(line, True) is not None)
        self._told: list[int] = []

    def append(self, record: dict[str, Any]) -> None:
        """Adds a record, which has at least one field."""
        text = json.dumps(record)
        self._text.append(f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}')

    def flush(self) -> None:
        """Returns once the file holds every record, as `GrowingText.flush`."""
        self._text.flush()

    def read(self) -> tuple[list[dict[str, Any]], list[int]]:
        """Reads the records.

        A last line without its end is what a kill leaves, and is passed over. Damaged lines are left out; new ones are
        named in the log.

        Returns:
          The records of the file, and the numbers, from 1, of the lines that are damaged.
        """
        # A store has no name for an object that is not there yet.
        if not self.path.exists():
            return [], []
        *lines, last = self.path.read_bytes().split(b"\n")
        records, damaged, is_old = [], [], True
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            record = _record(line, is_old)
            if record is None:
                damaged.append(number)
            else:
                is_old = is_old and not _CHECKED.fullmatch(line)
                records.append(record)
        if (record := _record(last, is_old)) is not None:
            records.append(record)
        if set(damaged) - set(self._told):
            self._told = damaged
            log.warning("%s: %s damaged and left out", self.path, lines_in_words(damaged))
        return records, damaged


def lines_in_words(numbers: list[int]) -> str:
    """Names lines by their numbers, with the verb: "line 3 is", "lines 3, 4 and 9 more are"."""
    if len(numbers) == 1:
        return f"line {numbers[0]} is"
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"lines {', '.join(map(str, numbers[:_SHOWN]))}{more} are"


def _record(line: bytes, is_old: bool) -> dict[str, Any] | None:
    """Returns the record of a line; None for a damaged one.

    Args:
      line: without its line break.
      is_old: whether a line without a check may stand here.
    """
    match = _CHECKED.fullmatch(line)
    if match is None and not is_old:
        return None
    body = line if match is None else match[1] + b"}"
    if match is not None and zlib.crc32(body) != int(match[2], 16):
        return None
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
