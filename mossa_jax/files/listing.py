"""Folders of a user's files: what is listed in them, and under which name.

Three kinds of files are nobody's data, and passed over in silence: hidden ones (`.x`, the `._x` of macOS), backups of
editors (`x~`, `#x#`), and what desktops leave (`Thumbs.db`). A name is told by its composed form (NFC): macOS writes
`é` as two characters, other systems as one.
"""

from __future__ import annotations

import unicodedata

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal

_OF_DESKTOPS = ("thumbs.db", "desktop.ini", "__macosx")


def is_nobodys(name: str) -> bool:
    """Returns whether a file of this name is hidden, a backup, or left by a desktop."""
    is_backup = name.endswith("~") or (name.startswith("#") and name.endswith("#"))
    return name.startswith(".") or is_backup or name.lower() in _OF_DESKTOPS


def visible(folder: epath.Path) -> list[epath.Path]:
    """Returns the files and folders in a folder, sorted by name, without those that are nobody's.

    Raises:
      Refusal: 3 if it cannot be listed.
    """
    try:
        return sorted((path for path in folder.iterdir() if not is_nobodys(path.name)), key=lambda path: path.name)
    except OSError as error:
        raise Refusal(
            BAD_INPUT, f"{shown(str(folder))} cannot be listed ({error.strerror}); name a folder that you may read"
        ) from None


def is_folder(path: epath.Path) -> bool:
    """Returns whether a path is a folder.

    Raises:
      Refusal: 3 if it cannot be looked at.
    """
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refusal(BAD_INPUT, f"{shown(str(path))} cannot be read ({reason}); name another") from None


def composed(name: str) -> str:
    """Returns a name in its composed form, by which names are compared."""
    return unicodedata.normalize("NFC", name)


def shown(name: str) -> str:
    """Returns a name for a message: as it is, or as Python writes it where it has bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return ascii(name)
    return name
