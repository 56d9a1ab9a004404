"""What a value of a field may be, by the field's type."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from mossa_jax.config.fields import Config

_KINDS = {
    bool: "must be true or false",
    int: "must be a whole number",
    float: "must be a number",
    str: "must be a text",
}


@functools.cache
def field_types() -> dict[str, Any]:
    """Returns the type of every field and group of fields of a `Config`: dotted name -> type, groups before fields."""
    return dict(_types(Config, ""))


def _types(group: type, above: str) -> Iterator[tuple[str, Any]]:
    for entry in fields(group):
        yield f"{above}{entry.name}", entry.type
        if is_dataclass(entry.type):
            assert isinstance(entry.type, type)
            yield from _types(entry.type, f"{above}{entry.name}.")


def field_value(type_: Any, value: Any) -> Any:
    """Returns a value, also as JSON and TOML have it, as a field of this type holds it.

    Args:
      type_: of the field; no group of fields.
      value: any.

    Raises:
      ValueError: the value is of another type or none of the words to choose from; the message says what it must be.
    """
    if get_origin(type_) is tuple:
        (item, *_) = get_args(type_)
        words = f"some of {', '.join(get_args(item))}" if get_origin(item) is Literal else "texts in a list"
        if not isinstance(value, list | tuple):
            raise ValueError(f"must be {words}" + ("" if words.endswith("list") else ", in a list"))
        if get_origin(item) is Literal and not all(_is_choice(item, one) for one in value):
            wrong = next(one for one in value if not _is_choice(item, one))
            raise ValueError(f"must be {words}{did_you_mean(wrong, get_args(item))}")
        if get_origin(item) is not Literal and not all(isinstance(one, item) for one in value):
            raise ValueError(f"must be {words}")
        return tuple(value)
    if get_origin(type_) is Literal:
        if not _is_choice(type_, value):
            raise ValueError(f"must be one of {', '.join(get_args(type_))}{did_you_mean(value, get_args(type_))}")
        return value
    # A bool is an int in Python, but not in a configuration.
    wanted: Any = int | float if type_ is float else type_
    if not isinstance(value, wanted) or (isinstance(value, bool) and type_ is not bool):
        raise ValueError(_KINDS[type_])
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be finite")
    return value


def _is_choice(choice: Any, value: Any) -> bool:
    return isinstance(value, str) and value in get_args(choice)


def did_you_mean(word: Any, words: Any) -> str:
    """Returns "; did you mean ...?" with the word that is nearest to a wrong one; empty where none is near."""
    word, known = str(word)[:100], list(words)
    close = [one for one in known if one.lower() == word.lower()] or difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]}?" if close else ""
