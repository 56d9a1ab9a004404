"""Places that results are written to: refused before the work that they are for, and not behind it.

One rule for all of them: parents that are missing are made when something is written, so all that has to be there is a
folder above them that may be written to.
"""

from __future__ import annotations

import os
import stat
from typing import Literal

from mossa_jax.errors import BAD_CONFIG, Refusal

Kind = Literal["file", "folder"]


def check_output(path: str, name: str, kind: Kind) -> None:
    """Refuses a place where no file or folder can be made; makes nothing itself.

    Args:
      path: of the output, from `foreign.user_path`; one with a scheme passes.
      name: of the flag or argument that it comes from, for refusals: "--out".
      kind: what is to be written there. A file may replace a file, and a folder may exist.

    Raises:
      Refusal: 2 if something else has its name, a parent is no folder, or the system forbids to write there.
    """
    if "://" in path:
        return
    place = os.path.abspath(path)
    mode = _mode(place, path, name)
    if mode is not None and kind == "file" and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise Refusal(BAD_CONFIG, f"{name}={path} is {what}; name a file to write")
    if kind == "file" and path.endswith(os.sep):
        raise Refusal(BAD_CONFIG, f"{name}={path} names a folder; name a file to write")
    if mode is not None and kind == "folder" and not stat.S_ISDIR(mode):
        raise Refusal(BAD_CONFIG, f"{name}={path} is a file; name a folder")
    # Files are written beside their place and renamed, so it is the folder that has to be writable.
    above = place if mode is not None and kind == "folder" else os.path.dirname(place)
    while (mode := _mode(above, path, name)) is None:
        above = os.path.dirname(above)
    if not stat.S_ISDIR(mode):
        raise Refusal(BAD_CONFIG, f"{name}={path}: {above} is a file, not a folder; name another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise Refusal(BAD_CONFIG, f"{name}={path}: {above} cannot be written to; name another place")


def _mode(place: str, path: str, name: str) -> int | None:
    """Returns the mode of a file or folder, None if there is none; `path` and `name` are for the refusal."""
    try:
        return os.stat(place).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(place):
            raise Refusal(BAD_CONFIG, f"{name}={path}: {place} is a link to nothing; name another place") from None
        return None
    except OSError as error:
        raise Refusal(BAD_CONFIG, f"{name}={path} cannot be used ({error.strerror}); name another place") from None
