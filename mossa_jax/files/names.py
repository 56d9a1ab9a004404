"""Folder names for any model or task name, and digests of values."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any


def slug(name: str) -> str:
    """Returns a folder name for any model or task name: readable, without separators, and unique through a hash.

    A name that is plain already is kept.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "name"
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def digest(value: Any) -> str:
    """Returns sixteen hex digits that identify a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
