"""Damage to files, and what becomes of it: harmless, made anew, refused, or (never) wrong or a traceback."""

import collections
import os
import pathlib
import random
import shutil

from mossa_jax.errors import Refusal

OTHERS = ("cut", "zeroed", "emptied", "deleted", "swapped", "appended")
"""Damages beside a flipped bit."""

HARMLESS, REMADE, SAID, REFUSED, WRONG, TRACEBACK = "harmless", "remade", "said", "refused", "WRONG", "TRACEBACK"
OUTCOMES = (HARMLESS, REMADE, SAID, REFUSED, WRONG, TRACEBACK)


class Anew(Exception):
    """What a reader raises where the run would make the file anew."""


class Said(Exception):
    """What a reader raises where the log and the page say what is lost."""


def harm(path: pathlib.Path, kind: str, draw: random.Random, other: pathlib.Path) -> None:
    """Damages a file; `other` is one that it is swapped with."""
    data = path.read_bytes()
    if kind == "deleted":
        path.unlink()
    elif kind == "swapped":
        content = other.read_bytes()
        other.write_bytes(data)
        path.write_bytes(content)
    else:
        path.write_bytes(harmed(data, kind, draw))
    # A file's sign is its time and size; a damage of the same size within a tick of the clock would not show.
    for each in (path, other):
        if each.exists():
            os.utime(each)


def harmed(data: bytes, kind: str, draw: random.Random) -> bytes:
    """Returns damaged content."""
    if kind == "cut":
        return data[: draw.randrange(len(data))]
    if kind == "zeroed":
        return bytes(len(data))
    if kind == "emptied":
        return b""
    if kind == "appended":
        return data + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 64)))
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


class Tally:
    """Counts outcomes by kind of file and kind of damage."""

    def __init__(self):
        self.counts = collections.Counter()
        self.codes = collections.defaultdict(collections.Counter)
        self.worst, self.new = [], []

    def add(self, file: str, kind: str, outcome: str, note: str = "", code: int | None = None) -> None:
        self.counts[file, kind, outcome] += 1
        if code is not None:
            self.codes[file][code] += 1
        if outcome in (WRONG, TRACEBACK):
            self.worst.append(f"{file}, {kind}: {outcome} {note}")
            self.new.append(self.worst[-1])

    def table(self) -> str:
        """Returns a row per kind of file."""
        files = list(dict.fromkeys(file for file, _, _ in self.counts))
        lines = ["".join([f"{'file':<34}{'tries':>7}", *(f"{outcome:>11}" for outcome in OUTCOMES), "  codes"])]
        for file in files:
            row = [sum(n for (f, _, o), n in self.counts.items() if f == file and o == outcome) for outcome in OUTCOMES]
            codes = ", ".join(f"{code}: {n}" for code, n in sorted(self.codes[file].items()))
            lines.append("".join([f"{file:<34}{sum(row):>7}", *(f"{number:>11}" for number in row), f"  {codes}"]))
        return "\n".join(lines)


def try_file(tally, name, path, other, read, right, flips, seed=0):
    """Damages one file in every way, one after another, reads it each time, and restores it.

    Args:
      tally: gets the outcomes.
      name: of the kind of file.
      path: of the file.
      other: a file of the same kind that it is swapped with.
      read: returns what is equal when the file is; raises `Anew`, `Said`, or what a command would raise.
      right: what `read` returns undamaged.
      flips: how many bits are tried.
      seed: of the draws.
    """
    draw = random.Random(f"{name} {seed}")
    contents = {each: each.read_bytes() for each in (path, other)}
    for kind in ["flipped"] * flips + list(OTHERS):
        if kind == "swapped" and (other == path or contents[other] == contents[path]):
            continue
        harm(path, kind, draw, other)
        tally.add(name, kind, *outcome(read, right))
        for each, data in contents.items():
            each.write_bytes(data)
            os.utime(each)


def outcome(read, right):
    """Reads, and says what came of it: outcome, note, and the code of a refusal."""
    try:
        value = read()
    except Anew:
        return REMADE, "", None
    except Said:
        return SAID, "", None
    except Refusal as refusal:
        return REFUSED, str(refusal), refusal.code
    except Exception as error:
        return TRACEBACK, repr(error)[:200], None
    return (HARMLESS if value == right else WRONG), str(value)[:200], None


def copy_run(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Copies a run folder without what its last attempt left to itself."""
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns(".lock", ".holder"))
