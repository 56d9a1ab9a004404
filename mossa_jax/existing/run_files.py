"""JSON files of a run folder."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      Refusal: 3 if it is no JSON, or something else than an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        raise Refusal(BAD_INPUT, f"{path} is not valid JSON; mend it, or run again in a new folder") from None
    if not isinstance(value, dict):
        raise Refusal(BAD_INPUT, f"{path} holds no JSON object; mend it, or run again in a new folder")
    return value
