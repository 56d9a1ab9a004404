"""The door for what others wrote: paths, small files and JSON are taken as they were meant, or refused in one line.

Everything that is read here is bounded: in size, in depth, and in what a number may be. A file that never ends (a pipe,
a device) is not opened.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal

LARGEST = 64 * 2**20
"""Bytes of a small file (settings, indices, ids); a larger one is refused unless the caller says more."""
DEEPEST = 100
"""Levels of lists and objects inside one another in a JSON file."""

_LFS = b"version https://git-lfs.github.com/spec/"
_UTF8_MARK, _UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
# A digest, a space, a space or (for `--binary`) a star, and the name.
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class ForeignPath(Protocol):
    """A path of any file system: `pathlib.Path`, `epath.Path`."""

    def open(self, mode: Any = "r") -> Any:
        """Opens the file."""


def user_path(text: str | os.PathLike[str], name: str) -> str:
    """Returns a path as its user meant it: `~` and variables such as `$HOME` are filled in, as a shell would.

    A shell leaves `~` alone behind `--flag=`, a configuration file never meets a shell, and a folder called `~` is what
    nobody wants. A path that exists as it is written stays so, whatever signs it holds; so does one with a scheme.

    Args:
      text: the path.
      name: of the flag, field or argument that it comes from, for refusals: "--out".

    Raises:
      Refusal: 2 for an empty path, one with a null character, a variable that is not set, or a home that is unknown.
    """
    path = os.fspath(text)
    if not path or "\0" in path:
        raise Refusal(BAD_CONFIG, f"{name}={path!r} is not a path; name a file or folder")
    if "://" in path or (not path.startswith("~") and os.path.lexists(path)):
        return path

    def value(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        if variable not in os.environ:
            raise Refusal(BAD_CONFIG, f"{name}={path}: the variable {variable} is not set; set it, or write the path")
        return os.environ[variable]

    filled = os.path.expanduser(_VARIABLE.sub(value, path))
    if filled.startswith("~"):
        raise Refusal(BAD_CONFIG, f"{name}={path}: no home folder is known for {filled.split('/')[0]}; write the path")
    return filled


def check_file(path: str | os.PathLike[str], way_out: str = "give the path of a readable file") -> None:
    """Refuses a local path that is no regular file, and so could be waited for without end.

    Args:
      path: of a file; one with a scheme passes.
      way_out: what the user can do instead, for the message.

    Raises:
      Refusal: 3 when it is missing, cannot be looked at, or is a folder, a pipe, a socket or a device.
    """
    name = os.fspath(path)
    if "://" in name:
        return
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError) as error:
        raise _unreadable(name, error, way_out) from None
    if not stat.S_ISREG(mode):
        raise Refusal(BAD_INPUT, f"{name} is {_KINDS.get(stat.S_IFMT(mode), 'no file')}; {way_out}")


def read_bytes(path: ForeignPath, most: int = LARGEST, way_out: str = "give the path of a readable file") -> bytes:
    """Reads a whole file.

    Args:
      path: of the file.
      most: bytes that it may have.
      way_out: what the user can do instead, for the message.

    Raises:
      Refusal: 3 when it is no regular file, cannot be read, is larger, or is a Git LFS pointer instead of the file.
    """
    check_file(path, way_out)  # type: ignore[arg-type]  # every path of a file system is a PathLike
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise _unreadable(path, error, way_out) from None
    if len(data) > most:
        raise Refusal(BAD_INPUT, f"{path} has more than {most:,} bytes; {way_out}")
    check_pointer(path, data)
    return data


def check_pointer(path: object, start: bytes) -> None:
    """Refuses a file that begins as a Git LFS pointer does.

    Args:
      path: for the message.
      start: the file's first bytes.

    Raises:
      Refusal: 3.
    """
    if start.startswith(_LFS):
        raise Refusal(
            BAD_INPUT,
            f"{path} is a Git LFS pointer and not the file itself; run `git lfs pull` where it was cloned",
        )


def read_text(path: ForeignPath, most: int = LARGEST, way_out: str = "save it as UTF-8") -> str:
    """Reads a text, with `\\n` line ends and without a byte-order mark. UTF-16 is read where it has its mark.

    Raises:
      Refusal: 3, as `read_bytes`, and when it is no such text.
    """
    return decode(read_bytes(path, most), path, way_out)


def decode(data: bytes, where: object, way_out: str = "save it as UTF-8") -> str:
    """Returns the text of a file's bytes, as `read_text`; `where` names the file in refusals."""
    try:
        text = data.decode("utf-16") if data.startswith(_UTF16_MARKS) else data.removeprefix(_UTF8_MARK).decode()
    except UnicodeDecodeError as error:
        raise Refusal(BAD_INPUT, f"{where} is not UTF-8 text (byte {error.start}); {way_out}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: ForeignPath, way_out: str = "copy it again", most: int = LARGEST) -> Any:
    """Reads a JSON file.

    Raises:
      Refusal: 3, as `read_text`, and when it is not JSON: NaN and Infinity are not, and nothing may be deeper than
        `DEEPEST` levels or have a number that Python does not take.
    """
    return parse_json(read_bytes(path, most, way_out), path, way_out)


def read_object(path: ForeignPath, way_out: str = "copy it again", most: int = LARGEST) -> dict[str, Any]:
    """Reads a JSON file that has to be an object; refusals as in `read_json`."""
    value = read_json(path, way_out, most)
    if not isinstance(value, dict):
        raise Refusal(BAD_INPUT, f"{path} is not a JSON object but {_kind(value)}; {way_out}")
    return value


def parse_json(data: bytes | str, where: object, way_out: str = "copy it again") -> Any:
    """Parses JSON, as `read_json`; `where` names it in refusals."""
    text = data if isinstance(data, str) else decode(data, where, way_out)
    try:
        value = json.loads(text, parse_constant=_not_json)
        if _depth(value) > DEEPEST:
            raise RecursionError
    except json.JSONDecodeError as error:
        raise Refusal(
            BAD_INPUT, f"{where} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); {way_out}"
        ) from None
    except ValueError as error:
        # Python refuses integers of thousands of digits, and `_not_json` what is none.
        raise Refusal(BAD_INPUT, f"{where} is not valid JSON ({error}); {way_out}") from None
    except RecursionError:
        raise Refusal(BAD_INPUT, f"{where} is nested deeper than {DEEPEST} levels; {way_out}") from None
    return value


def parse_sums(data: bytes) -> dict[str, list[str]]:
    """Parses a file of `sha256sum`: name -> its digests, as 64 hex digits. Lines that make no sense are passed over."""
    digests: dict[str, list[str]] = {}
    for line in data.decode(errors="replace").splitlines():
        if match := _SUM.fullmatch(line):
            own = digests.setdefault(match[2], [])
            own += [match[1]] * (match[1] not in own)
    return digests


def whole_number(value: Any, field: str, least: int, most: int) -> int:
    """Returns a value of a parsed file that has to be a whole number in a range, also where it is written as 4.0.

    Args:
      value: as parsed.
      field: its name, for the message.
      least, most: the range, both included.

    Raises:
      ValueError: it is none; the message names the field, the value and the range.
    """
    is_whole = type(value) is int or (type(value) is float and math.isfinite(value) and value.is_integer())
    if not is_whole or not least <= value <= most:
        raise ValueError(f"{field}={short(value)} is not a whole number from {least:,} to {most:,}")
    return int(value)


def number(value: Any, field: str, least: float, most: float) -> float:
    """Returns a value of a parsed file that has to be a number in a range; arguments and errors as `whole_number`."""
    # The comparison comes first: it is exact for integers that no float can hold.
    if type(value) not in (int, float) or not least <= value <= most:
        raise ValueError(f"{field}={short(value)} is not a number from {least:g} to {most:g}")
    return float(value)


def short(value: Any, most: int = 120) -> str:
    """Returns a value as text for a message, of at most `most` characters, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else text[: most - 3] + "..."


def _depth(value: Any) -> int:
    """Returns how many lists and objects are inside one another, without recursion."""
    depth, level = 0, [value]
    while level := [
        child
        for each in level
        if isinstance(each, dict | list)
        for child in ([*each.values()] if isinstance(each, dict) else each) or [None]
    ]:
        depth += 1
    return depth


def _kind(value: Any) -> str:
    kinds: Mapping[type, str] = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _unreadable(path: object, error: Exception, way_out: str) -> Refusal:
    reason = getattr(error, "strerror", None) or str(error)
    return Refusal(BAD_INPUT, f"{path} cannot be read ({reason}); {way_out}")


def visible(text: str) -> str:
    """Returns a text with a sign for each character that shows nothing or turns the ones beside it round.

    Line ends and tabs become `↵` and `⇥`; other control and format characters, spaces beside the usual one, lone
    surrogates and characters without a meaning become `[U+200B]`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_SIGNS.get(char) or (escaped(char) if is_hidden(char) else char) for char in text)


def is_hidden(char: str) -> bool:
    """Returns whether a character shows nothing of itself."""
    return not char.isprintable() or _IGNORABLE.match(char) is not None


def escaped(chars: str) -> str:
    """Spells characters out: `[U+4E00]`, `[U+4E00 U+4E8C]`; of many only the first."""
    listed = [f"U+{ord(char):04X}" for char in chars[:_SPELT]]
    return f"[{' '.join(listed)}{f' +{len(chars) - _SPELT}' if len(chars) > _SPELT else ''}]"


_SIGNS = {"\n": "↵", "\t": "⇥"}
_SPELT = 4  # characters of one run that are spelled out
# Letters and marks that are never drawn: variation selectors, fillers, joiners, the blank of Braille.
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
