"""Rows in Arrow tables and batches: which columns hold an example, and their values, which may not be UTF-8."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mossa_jax.config import Columns
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.tasks.suite import Example
from mossa_jax.tasks.usable import BadRow, make_example

if TYPE_CHECKING:
    import pyarrow

BATCH = 256
"""Rows of a Parquet file or table that are taken into Python at once."""

RawRow = tuple[bytes | None, bytes | None, int | None, bytes | int | None]
"""Inputs and targets as bytes that may not be UTF-8, the template, and the item (a text as bytes, or a number)."""


def example_columns(source: str, schema: pyarrow.Schema, columns: Columns) -> list[str]:
    """Returns the columns that hold an example: inputs, targets and, if the schema has them, template and item.

    Args:
      source: what the schema belongs to, for the message.
      schema: of the table or file.
      columns: names of the columns.

    Raises:
      Refusal: 3 if a column is missing, or its type cannot hold what it should.
    """
    from pyarrow import types

    for name in (columns.inputs, columns.targets):
        check_text_column(source, schema, name)
    names = [columns.inputs, columns.targets]
    if _has_column(schema, columns.template) and not types.is_integer(schema.field(columns.template).type):
        column_type = schema.field(columns.template).type
        raise Refusal(
            BAD_INPUT,
            f"{source}: column {columns.template!r} is of type {column_type}, not whole numbers; name another column, "
            "or none (--config.tasks.columns.template=)",
        )
    if _has_column(schema, columns.item) and not _holds_items(schema.field(columns.item).type):
        raise Refusal(
            BAD_INPUT,
            f"{source}: column {columns.item!r} is of type {schema.field(columns.item).type}, neither text nor whole "
            "numbers; name another column, or none (--config.tasks.columns.item=)",
        )
    return names + [name for name in (columns.template, columns.item) if _has_column(schema, name)]


def _has_column(schema: pyarrow.Schema, name: str) -> bool:
    return schema.get_field_index(name) >= 0


def _holds_items(column_type: pyarrow.DataType) -> bool:
    from pyarrow import types

    # A column without any value has the type null.
    return types.is_integer(column_type) or types.is_null(column_type) or _is_text(column_type)


def label_names(schema: pyarrow.Schema, name: str) -> list[str] | None:
    """Returns the names behind the numbers of a column, where `datasets` wrote them (ClassLabel); else None."""
    from pyarrow import types

    if schema.get_field_index(name) < 0 or not types.is_integer(schema.field(name).type):
        return None
    try:
        about: Any = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][name]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(each, str) for each in names) else None


def check_text_column(source: str, schema: pyarrow.Schema, name: str) -> None:
    """Checks that a schema has a column of texts with that name.

    Raises:
      Refusal: 3 if there is none.
    """

    if schema.get_field_index(name) < 0:
        raise Refusal(
            BAD_INPUT,
            f"{source} has no column {name!r}; there are {', '.join(schema.names)}: name the right one "
            "(--config.tasks.columns)",
        )
    column_type = schema.field(name).type
    if not _is_text(column_type) and label_names(schema, name) is None:
        raise Refusal(
            BAD_INPUT, f"{source}: column {name!r} is of type {column_type}, not text; name a column of texts"
        )


def _is_text(column_type: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(column_type):
        column_type = column_type.value_type
    # Some writers store texts as binary; whether they are UTF-8 is looked at row by row in any case.
    kinds = (
        types.is_string, types.is_large_string, types.is_string_view,
        types.is_binary, types.is_large_binary, types.is_binary_view,
    )  # fmt: skip
    return any(is_kind(column_type) for is_kind in kinds)


def raw_rows(
    batch: pyarrow.RecordBatch | pyarrow.Table, names: Sequence[str], columns: Columns, schema: pyarrow.Schema
) -> Iterator[RawRow]:
    """Yields the rows of a batch or table.

    Args:
      batch: with at least the columns `names`.
      names: as `example_columns` returns them.
      columns: what the columns are called.
      schema: of the whole file or table, which names the labels of columns of numbers.
    """
    inputs, targets = (texts_in(batch.column(name), label_names(schema, name)) for name in names[:2])
    optional = names[2:]
    templates: list[int | None] = [-1] * batch.num_rows
    items: Sequence[bytes | int | None] = [None] * batch.num_rows
    if columns.template in optional:
        templates = batch.column(columns.template).to_pylist()
    if columns.item in optional:
        column = batch.column(columns.item)
        items = _bytes_of(column) if _is_text(column.type) else column.to_pylist()
    return zip(inputs, targets, templates, items, strict=True)


def decode_row(row: RawRow, columns: Columns) -> Example:
    """Makes an example of a raw row.

    Raises:
      BadRow: it is no usable example.
    """
    inputs, targets, template, item = row
    name = _decode(item) if isinstance(item, bytes) else item
    return make_example(_decode(inputs), _decode(targets), template, name, columns)


def texts_of(column: pyarrow.Array | pyarrow.ChunkedArray, labels: Sequence[str] | None = None) -> list[str | None]:
    """Returns the values of a text column, or of one of numbers with labels.

    Raises:
      BadRow: one of them is not UTF-8.
    """
    return [_decode(value) for value in texts_in(column, labels)]


def texts_in(column: pyarrow.Array | pyarrow.ChunkedArray, labels: Sequence[str] | None) -> list[bytes | None]:
    """Returns a column's texts as bytes that may not be UTF-8; a number outside the labels is no text."""
    if labels is None:
        return _bytes_of(column)
    names = dict(enumerate(label.encode("utf-8", "surrogatepass") for label in labels))
    return [names.get(number) for number in column.to_pylist()]


def _decode(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        raise BadRow("not valid UTF-8") from None


def _bytes_of(column: pyarrow.Array | pyarrow.ChunkedArray) -> list[bytes | None]:
    """Returns a text column's values as bytes, since Arrow does not check that they are UTF-8."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pyarrow.large_binary()).to_pylist()
