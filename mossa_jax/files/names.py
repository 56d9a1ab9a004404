"""Folder names for any model or task name, and digests of values."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

# Capitals are no plain characters: many file systems do not tell them from small letters.
_PLAIN = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,98}[a-z0-9_-])?")
# The end of every name that has a hash.
_HASHED = re.compile(r".*-[0-9a-f]{16}")
# Names that Windows keeps for devices, whatever follows behind a dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin|conout|clock|com[0-9]|lpt[0-9])(\..*)?")


def slug(name: str) -> str:
    """Returns a folder name for any model or task name: readable, without separators, and no other name's.

    A plain name is kept; any other one gets a hash. No two names share a folder, on file systems that take capitals for
    small letters or change the form of Unicode either: a hash is over the exact name, and a plain name that looks like
    one with a hash gets a hash itself.
    """
    if _PLAIN.fullmatch(name) and not _HASHED.fullmatch(name) and not _DEVICES.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "name"
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def digest(value: Any) -> str:
    """Returns sixteen hex digits that identify a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
