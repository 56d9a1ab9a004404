"""Judges rows: what makes a usable example, and what happens to a row that is none."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from mossa_jax.config import Columns
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.tasks.suite import Example

Raw = TypeVar("Raw")
Row = TypeVar("Row")

_TEMPLATES = range(-1, 2**31)


class BadRow(Exception):
    """A row that is no usable example; the message says in a few words what is wrong with it."""


def make_example(inputs: Any, targets: Any, template: Any, item: Any, columns: Columns) -> Example:
    """Makes an example of raw values.

    Args:
      inputs: text of the prompt.
      targets: text of the answer.
      template: index of the instruction template, -1 if unknown.
      item: name of what the prompt has in common with others, a text or a whole number; None or blank if it
        is not said.
      columns: what the fields are called in the data, for the message.

    Raises:
      BadRow: one of the texts is missing or blank, the template is no whole number, or the item is neither
        text nor whole number.
    """
    check_text(inputs, columns.inputs)
    check_text(targets, columns.targets)
    return Example(inputs, targets, *check_labels(template, item, columns))


def check_labels(template: Any, item: Any, columns: Columns) -> tuple[int, str]:
    """Returns the template and the item of a row, as in `make_example`, which also says when it raises `BadRow`."""
    if not isinstance(template, int) or isinstance(template, bool) or template not in _TEMPLATES:
        raise BadRow(
            f"field {columns.template!r} is {reprlib.repr(template)}, not a whole number from {_TEMPLATES.start} "
            f"to {_TEMPLATES.stop - 1} (in a suite, --config.tasks.columns.template= reads none)"
        )
    return template, _item_name(item, columns.item)


def _item_name(item: Any, field: str) -> str:
    """Returns an item's name; raises `BadRow` if it is neither a text nor a whole number."""
    if item is None or (isinstance(item, str) and not item.strip()):
        return ""
    if isinstance(item, int) and not isinstance(item, bool):
        return str(item)
    if not isinstance(item, str):
        raise BadRow(
            f"field {field!r} is {reprlib.repr(item)}, neither a text nor a whole number (in a suite, "
            "--config.tasks.columns.item= reads none)"
        )
    return check_text(item, field)


def check_text(value: Any, field: str) -> str:
    """Returns a value if it is a text that can be tokenized.

    Raises:
      BadRow: it is no text, blank, or holds half of a surrogate pair.
    """
    if value is None:
        raise BadRow(f"field {field!r} is null")
    if not isinstance(value, str):
        raise BadRow(f"field {field!r} is {reprlib.repr(value)}, not a text")
    if not value.strip():
        raise BadRow(f"field {field!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"field {field!r} holds half of a surrogate pair, which is no text") from None
    return value


def usable_rows(
    raw_rows: Iterable[tuple[int, Raw]],
    convert: Callable[[Raw], Row],
    count_bad: Callable[[], None] | None,
    place_of: Callable[[int], str],
    source: str,
) -> Iterator[Row]:
    """Yields what `convert` makes of each raw row, except those for which it raises `BadRow`.

    Args:
      raw_rows: numbered rows.
      convert: makes a row of a raw one.
      count_bad: called for each unusable row, which is left out; None refuses the first one.
      place_of: tells where the row of a number stands, e.g. `file:line`.
      source: tells where all of them stand.

    Raises:
      Refusal: 3, with the place, for an unusable row, or if there is no usable one.
    """
    usable = bad = 0
    for number, raw in raw_rows:
        try:
            row = convert(raw)
        except BadRow as problem:
            if count_bad is None:
                raise Refusal(
                    BAD_INPUT,
                    f"{place_of(number)}: {problem}; correct or remove the row (in a suite, "
                    "--config.tasks.allow_bad_rows=true leaves such rows out)",
                ) from None
            count_bad()
            bad += 1
        else:
            usable += 1
            yield row
    if not usable:
        bad_note = f" ({bad} bad)" if bad else ""
        raise Refusal(
            BAD_INPUT,
            f"{source}: no usable row{bad_note}; add some (in a suite, --config.tasks.only can leave a task out)",
        )


def bad_row_counter(bad_rows: dict[str, int], split: str, allowed: bool) -> Callable[[], None] | None:
    """Returns the `count_bad` of `usable_rows` that counts a split's bad rows in `Task.bad_rows`.

    Args:
      bad_rows: split -> rows left out so far.
      split: the split that is read.
      allowed: whether bad rows are left out; otherwise they are refused, and the result is None.
    """

    def count() -> None:
        bad_rows[split] = bad_rows.get(split, 0) + 1

    return count if allowed else None
