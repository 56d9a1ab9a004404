"""What every field of the configuration means, read off the docstrings in `fields.py`."""

import ast
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from mossa_jax.config.fields import Config


@dataclass(frozen=True)
class Field:
    """A field of the configuration, for people.

    Attributes:
      name: dotted, as behind `--config.` on the command line.
      type: the type, or the words to choose from: "int", "last | mean | all", "tuple of str".
      default: as on the command line; "" for an empty text.
      text: one line that says what it means, with its unit and its origin.
    """

    name: str
    type: str
    default: str
    text: str


@functools.cache
def describe_fields() -> tuple[Field, ...]:
    """Returns every field of a `Config`, in the order of this file; a group of fields is no entry of its own."""
    return tuple(_describe(Config(), ""))


def _describe(group: Any, above: str) -> Iterator[Field]:
    texts = _field_docstrings(type(group))
    for entry in fields(group):
        value, name = getattr(group, entry.name), f"{above}{entry.name}"
        if is_dataclass(value):
            yield from _describe(value, f"{name}.")
        else:
            yield Field(name, _type_text(entry.type), str(value), texts.get(entry.name, ""))


def _field_docstrings(group: type) -> dict[str, str]:
    """Returns the string that stands below each field in a dataclass's source, as one line."""
    (definition,) = ast.parse(inspect.getsource(group)).body
    assert isinstance(definition, ast.ClassDef)
    texts, name = {}, ""
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts[name] = " ".join(str(node.value.value).split())
    return texts


def _type_text(type_: Any) -> str:
    if get_origin(type_) is Literal:
        return " | ".join(get_args(type_))
    if get_origin(type_) is tuple:
        return f"tuple of {_type_text(get_args(type_)[0])}"
    return type_.__name__
