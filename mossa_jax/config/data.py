"""Configurations as plain data, as JSON and TOML files hold them, and back."""

from __future__ import annotations

import copy
import functools
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import PurePath
from typing import Any

from mossa_jax.config.fields import Config
from mossa_jax.config.values import did_you_mean, field_types, field_value
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.foreign import decode, short

FORMATS = (".json", ".toml")
"""Endings of the files that hold plain data."""

# What a run folder's config.json holds beside the fields.
_NO_FIELDS = ("results_format",)


def config_to_data(config: Config) -> dict[str, Any]:
    """Returns every field of a configuration, group by group, ready for JSON; tuples become lists."""
    return json.loads(json.dumps(asdict(config)))


def config_from_data(data: Any, where: str) -> Config:
    """Returns the configuration that plain data gives; fields that are missing have their defaults.

    Args:
      data: field -> value, with groups of fields as mappings, as `config_to_data` returns it.
      where: what a refusal calls the source.

    Raises:
      Refusal: 2 for a field that does not exist or a value of another type; it names source, field and value.
    """
    if not isinstance(data, Mapping):
        raise Refusal(BAD_CONFIG, f"{where}: holds {_kind(data)}; a configuration is an object of fields and values")
    values = {name: value for name, value in data.items() if name not in _NO_FIELDS}
    if len(values) > 2 and not any(name in field_types() for name in values):
        names = ", ".join(list(values)[:3])
        raise Refusal(
            BAD_CONFIG, f"{where}: has no field of a configuration, but {names}, ...; is it a model's, for config.base?"
        )
    return with_fields(Config(), values, where)


def with_fields(config: Config, values: Mapping[str, Any], where: str = "config") -> Config:
    """Returns a copy of a configuration with other values in some of its fields.

    Args:
      config: stays as it is.
      values: field -> value. A field of a group has a dotted name (`{"tuning.rank": 4}`) or stands in a mapping
        (`{"tuning": {"rank": 4}}`). Tuples may be lists.
      where: what a refusal calls the source of the values.

    Raises:
      Refusal: 2 for a field that does not exist or a value of another type; it names source, field and value.
    """
    changed = copy.deepcopy(config)
    for name, value in field_values(values, where).items():
        group, _, field = name.rpartition(".")
        setattr(functools.reduce(getattr, filter(None, group.split(".")), changed), field, value)
    return changed


def field_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the dotted name of each field -> its value, as the field holds it; the rest is as in `with_fields`."""
    found: dict[str, Any] = {}
    for name, value in _flat(values, "", where):
        if name in found:
            raise Refusal(BAD_CONFIG, f"{where}: {name} is given twice; give it once")
        found[name] = _restored(name, value, where)
    return found


def parse_data(text: bytes, path: str, where: str) -> Any:
    """Returns the content of a JSON or TOML file.

    Args:
      text: of the file.
      path: of the file; its ending names the format.
      where: what a refusal calls the source.

    Raises:
      Refusal: 2 when it is not UTF-8 or not in its format, with the line.
    """
    is_toml = PurePath(path).suffix == ".toml"
    try:
        content = decode(text, f"{where}:")
    except Refusal as refusal:
        raise Refusal(BAD_CONFIG, str(refusal)) from None
    try:
        return tomllib.loads(content) if is_toml else json.loads(content, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise Refusal(BAD_CONFIG, f"{where}: is not valid {'TOML' if is_toml else 'JSON'} ({reason})") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice")
    return dict(pairs)


def _flat(values: Mapping[str, Any], above: str, where: str) -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and value of every field."""
    for key, value in values.items():
        name = f"{above}{key}"
        type_ = field_types().get(name)
        if type_ is None:
            # A name without its group is a common slip: `rank` for `tuning.rank`.
            last = [known for known in field_types() if known.rpartition(".")[2] == str(key)]
            hint = f"; did you mean {' or '.join(last[:3])}?" if last else did_you_mean(name, field_types())
            raise Refusal(BAD_CONFIG, f"{where}: {name}: no such field{hint or '; --help lists all'}")
        if not is_dataclass(type_):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}.", where)
        else:
            first = next(known for known in field_types() if known.startswith(f"{name}."))
            raise Refusal(BAD_CONFIG, f"{where}: {name}={short(value)}: is a group of fields, as {first}; set those")


def _restored(name: str, value: Any, where: str) -> Any:
    if name == "tuning.remat" and isinstance(value, bool):
        return "on" if value else "off"
    try:
        return field_value(field_types()[name], value)
    except ValueError as error:
        raise Refusal(BAD_CONFIG, f"{where}: {name}={short(value)}: {error}") from None


def _kind(data: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(data), "a number")
