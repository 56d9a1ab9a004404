"""Digests of the files of a folder, in its `SHA256SUMS`: what is read back is what was written.

The file has the format of `sha256sum`, so that anybody can check a folder with `sha256sum -c SHA256SUMS`. A file's line
is written before the file itself. At every moment in which a kill may come, a file is therefore the one of its line, or
the one of its line before; the older line goes when the new file is there.

Lines are read one by one, and one that makes no sense is passed over: a damaged `SHA256SUMS` costs no more than what
its damaged lines speak of.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.paths import is_remote
from mossa_jax.files.write import append_bytes, write_bytes
from mossa_jax.foreign import check_file, parse_sums

SUMS = "SHA256SUMS"
"""The file of a folder that holds the digests of the others."""

Lines = dict[str, list[str]]
"""Name of a file -> its digests; more than one only while it is being replaced."""

# One folder's lines are asked for again with each of its files. The sign is the modification time and the size.
_kept: dict[str, tuple[tuple[int, int], Lines]] = {}
_lock = threading.RLock()


def digest_of(data: bytes) -> str:
    """Returns the SHA-256 of a file's content, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def write_summed(path: epath.PathLike, data: bytes) -> None:
    """Writes a file, as `write_bytes`, and its digest into the `SHA256SUMS` of its folder.

    One process writes to a folder at a time.

    Raises:
      Refusal: 6, as `write_bytes`.
    """
    path = epath.Path(path)
    digest = digest_of(data)
    with _lock:
        lines = _lines(path.parent)
        earlier = lines.get(path.name, [])
        if digest not in earlier:
            _add(path.parent, lines, path.name, digest)
        write_bytes(path, data)
        if earlier not in ([], [digest]):
            _write(path.parent, {**lines, path.name: [digest]})


def seal(paths: Iterable[epath.Path]) -> None:
    """Records the digests of files as they lie there, for those that have none."""
    for path in paths:
        with _lock:
            lines = _lines(path.parent)
            if path.name not in lines and path.exists():
                _add(path.parent, lines, path.name, digest_of(path.read_bytes()))


def remove_summed(path: epath.PathLike) -> None:
    """Deletes a file, if it is there, with its digest."""
    path = epath.Path(path)
    with _lock:
        path.unlink(missing_ok=True)
        lines = _lines(path.parent)
        if path.name in lines:
            _write(path.parent, {name: digests for name, digests in lines.items() if name != path.name})


def agrees(path: epath.PathLike, data: bytes) -> bool | None:
    """Returns whether a file's content is what was written there; None if its folder does not say."""
    path = epath.Path(path)
    digests = recorded(path)
    return digest_of(data) in digests if digests else None


def is_intact(path: epath.PathLike) -> bool | None:
    """Returns whether a file is there as it was written; None if its folder does not say, whether or not it is there.

    A file that is gone, or cannot be read, is not intact.
    """
    path = epath.Path(path)
    digests = recorded(path)
    if not digests:
        return None
    try:
        check_file(path)  # a pipe in its place would be waited for
        return digest_of(path.read_bytes()) in digests
    except (OSError, Refusal):
        return False


def check(path: epath.PathLike, way_out: str = "save it again") -> None:
    """Refuses a file that is not as it was written; one of which its folder says nothing passes.

    Raises:
      Refusal: 3, with `way_out`.
    """
    if is_intact(path) is False:
        raise Refusal(BAD_INPUT, f"{path} is not as it was written, by {SUMS} beside it; {way_out}")


def recorded(path: epath.PathLike) -> list[str]:
    """Returns the digests that a file may have; empty if its folder does not say."""
    path = epath.Path(path)
    with _lock:
        return _lines(path.parent).get(path.name, [])


def _lines(folder: epath.Path) -> Lines:
    """Reads the lines of a folder's file; none if there is no file, or it is not to be read."""
    path = folder / SUMS
    sign = _sign(path)
    name = os.fspath(path)
    if sign is not None and name in _kept and _kept[name][0] == sign:
        return _kept[name][1]
    lines: Lines = {}
    # A store that cannot be reached says nothing about the folder.
    with contextlib.suppress(Refusal, FileNotFoundError if is_remote(path) else OSError):
        check_file(path)
        lines = parse_sums(path.read_bytes())
    if sign is not None:
        _kept[name] = sign, lines
    return lines


def _sign(path: epath.Path) -> tuple[int, int] | None:
    """Returns what changes with a file on a disk; None for one that is not there, or in an object store."""
    if is_remote(path):
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _add(folder: epath.Path, lines: Lines, name: str, digest: str) -> None:
    """Adds a line; on a disk without writing those of the other files again."""
    path = folder / SUMS
    if is_remote(path):
        _write(folder, {**lines, name: [*lines.get(name, []), digest]})
        return
    append_bytes(path, f"{digest}  {name}\n".encode())
    lines.setdefault(name, []).append(digest)
    if (sign := _sign(path)) is not None:
        _kept[os.fspath(path)] = sign, lines


def _write(folder: epath.Path, lines: Lines) -> None:
    text = "".join(f"{digest}  {name}\n" for name, digests in sorted(lines.items()) for digest in digests)
    write_bytes(folder / SUMS, text.encode())
