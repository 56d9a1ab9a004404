"""The fields of a parsed `config.json`, each with its type and its range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mossa_jax import foreign
from mossa_jax.foreign import short

LARGEST_ID = 2**31 - 1
"""Ids are int32 on the devices."""


class Fields:
    """Reads fields of a JSON object; null counts as absent. Every error is a ValueError that names the field."""

    def __init__(self, config: Mapping[str, Any], prefix: str = ""):
        """Takes an object; `prefix` stands before the names in messages."""
        self.config, self.prefix = config, prefix

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.config.get(name) is not None

    def whole(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """Returns a whole number in a range, both ends included.

        Raises:
          ValueError: it is none, or it is absent and has no default.
        """
        if not self.has(name) and default is not None:
            return default
        return foreign.whole_number(self._value(name), self.prefix + name, least, most)

    def number(self, name: str, least: float, most: float, default: float | None = None) -> float:
        """Returns a number in a range; as `whole`."""
        if not self.has(name) and default is not None:
            return default
        return foreign.number(self._value(name), self.prefix + name, least, most)

    def numbers(self, name: str, least: float, most: float, count: int) -> tuple[float, ...]:
        """Returns a list of `count` numbers in a range; as `whole`."""
        values = self._value(name)
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"{self.prefix}{name}={short(values)} is not a list of {count} numbers")
        return tuple(foreign.number(value, f"{self.prefix}{name}", least, most) for value in values)

    def flag(self, name: str, default: bool = False) -> bool:
        """Returns true or false; as `whole`."""
        value = self.config[name] if self.has(name) else default
        if not isinstance(value, bool):
            raise ValueError(f"{self.prefix}{name}={short(value)} is neither true nor false")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """Returns one of several words; as `whole`."""
        value = self.config[name] if self.has(name) else default
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{self.prefix}{name}={short(value)} is not supported; it is one of {', '.join(choices)}")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """Returns the ids of a field that holds one, several, or none."""
        value = self.config.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        return tuple(foreign.whole_number(each, self.prefix + name, 0, LARGEST_ID) for each in values)

    def object(self, name: str) -> dict[str, Any]:
        """Returns an object; an absent one is empty."""
        value = self.config[name] if self.has(name) else {}
        if not isinstance(value, dict):
            raise ValueError(f"{self.prefix}{name}={short(value)} is not an object")
        return value

    def _value(self, name: str) -> Any:
        if not self.has(name):
            raise ValueError(f"there is no field {self.prefix}{name}, which such a config needs")
        return self.config[name]
