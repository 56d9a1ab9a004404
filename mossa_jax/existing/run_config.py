"""The configuration of a run folder, from its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from etils import epath

from mossa_jax.config import Config
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


def config_of(record: Mapping[str, Any], place: str) -> Config:
    """Returns the configuration that a run recorded; fields that are newer than the run have their defaults.

    Args:
      record: the content of config.json; keys that are no fields are passed over.
      place: the file, for messages.

    Raises:
      Refusal: 3 if a group of fields is none.
    """
    return _restored(Config(), record, place, "")


def _restored(group: Any, record: Any, place: str, above: str) -> Any:
    if not isinstance(record, Mapping):
        raise Refusal(BAD_INPUT, f"{place}: {above.rstrip('.')} is no group of fields; run again in a new folder")
    for entry in fields(group):
        if entry.name not in record:
            continue
        value, default = record[entry.name], getattr(group, entry.name)
        if is_dataclass(default):
            _restored(default, value, place, f"{above}{entry.name}.")
        else:
            setattr(group, entry.name, tuple(value) if isinstance(default, tuple) else value)
    return group
