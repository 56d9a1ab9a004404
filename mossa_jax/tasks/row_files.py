"""Rows of a task out of JSONL and Parquet files, one after another: what is no usable row is refused, or counted."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

from etils import epath

from mossa_jax.config import Columns
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.tasks.suite import Example, Task

ENDINGS = (".jsonl", ".parquet")
LONGEST_LINE = 10_000_000
"""Bytes of a JSONL line, its end not counted; what is longer is hardly a row, and is not read into memory."""

_UTF8_MARK = b"\xef\xbb\xbf"
# Byte-order marks, and "{" or "[" as it looks without one.
_UTF16_STARTS = (b"\xff\xfe", b"\xfe\xff", b"{\x00", b"\x00{", b"[\x00", b"\x00[")
_TEMPLATES = range(-1, 2**31)
BATCH = 256
"""Rows of a Parquet file or table that are taken into Python at once."""

RawRow = tuple[bytes | None, bytes | None, int | None]
"""Inputs and targets as bytes that may not be UTF-8, and template."""


class BadRow(Exception):
    """What is wrong with one row, in a few words."""


def file_task(
    name: str,
    cluster: str,
    locate: Callable[[str], epath.PathLike | None],
    columns: Columns,
    allow_bad_rows: bool,
    source: str,
) -> Task:
    """A task with one file a split.

    Args:
      name: the task's name.
      cluster: its cluster.
      locate: split -> its local `.jsonl` or `.parquet` file, or None where there is none, which only `validation` may
        lack; called when the split's rows or digest are asked for.
      columns: names of the fields or columns.
      allow_bad_rows: leave out rows that are no usable example, counted in `Task.bad_rows`, instead of refusing.
      source: where the files come from, for people.
    """
    bad_rows: dict[str, int] = {}

    def file_of(split: str) -> epath.PathLike | None:
        path = locate(split)
        if path is None and split != "validation":
            raise Refusal(BAD_INPUT, f"task {name!r} has no {split} file in {source}; add it or leave the task out")
        return path

    def read(split: str) -> Iterator[Example]:
        def count_bad() -> None:
            bad_rows[split] = bad_rows.get(split, 0) + 1

        path = file_of(split)
        if path is not None:
            yield from read_examples(path, columns, count_bad if allow_bad_rows else None)

    def digest(split: str) -> str:
        path = file_of(split)
        content = None if path is None else file_digest(path)
        parts = [content, columns.inputs, columns.targets, columns.template, allow_bad_rows]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    return Task(name, cluster, read, source, digest, bad_rows)


def read_examples(
    path: epath.PathLike, columns: Columns, count_bad: Callable[[], None] | None = None
) -> Iterator[Example]:
    """Examples of a `.jsonl` or `.parquet` file, in its order.

    Args:
      path: the file.
      columns: names of its fields or columns; the template's may be absent.
      count_bad: called for each unusable row, which is left out; None refuses the first one.

    Raises:
      Refusal: 3, with file and line or row, for an unusable row or a file without any usable one.
    """
    path = epath.Path(path)
    if path.suffix == ".jsonl":
        required = (columns.inputs, columns.targets)

        def convert(line: bytes) -> Example:
            row = _parse(line, required)
            return example(row[columns.inputs], row[columns.targets], row.get(columns.template, -1), columns)

        yield from usable_rows(_lines(path), convert, count_bad, lambda n: f"{path}:{n}", f"{path}:1")
    elif path.suffix == ".parquet":
        convert_raw = partial(decoded, columns=columns)
        yield from usable_rows(
            _parquet_rows(path, columns), convert_raw, count_bad, lambda n: f"{path}, row {n}", str(path)
        )
    else:
        raise Refusal(BAD_INPUT, f"{path} is no file of rows; its name must end in {' or '.join(ENDINGS)}")


def read_objects(
    path: epath.PathLike, required: Sequence[str], count_bad: Callable[[], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file, each with the required fields as texts that are not empty.

    Blank lines, a byte-order mark, CRLF and further fields are let pass.

    Args:
      path: the file.
      required: names of fields.
      count_bad: called for each unusable line, which is left out; None refuses the first one.

    Raises:
      Refusal: 3, with file and line, for an unusable line or a file without any usable one.
    """
    path = epath.Path(path)
    convert = partial(_parse, required=required)
    yield from usable_rows(_lines(path), convert, count_bad, lambda n: f"{path}:{n}", f"{path}:1")


def example(inputs: Any, targets: Any, template: Any, columns: Columns) -> Example:
    """The example of three raw values.

    Raises:
      BadRow: when one of the texts is none or is empty, or the template is no whole number.
    """
    check_text(inputs, columns.inputs)
    check_text(targets, columns.targets)
    if not isinstance(template, int) or isinstance(template, bool) or template not in _TEMPLATES:
        raise BadRow(
            f"field {columns.template!r} is {reprlib.repr(template)}, not a whole number from {_TEMPLATES.start} "
            f"to {_TEMPLATES.stop - 1}"
        )
    return Example(inputs, targets, template)


def check_text(value: Any, field: str) -> None:
    """Raises `BadRow` for a value that is no text to tokenize."""
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


def split_of(inputs: str, test_share: float) -> str:
    """`test` for that share of all texts and `train` for the others, from the text alone."""
    first = hashlib.sha256(inputs.encode()).digest()[:8]
    return "test" if int.from_bytes(first, "big") / 2**64 < test_share else "train"


def file_digest(path: epath.PathLike) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with _open(epath.Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def usable_rows(
    raws: Iterable[tuple[int, Any]],
    convert: Callable[[Any], Any],
    count_bad: Callable[[], None] | None,
    place: Callable[[int], str],
    whole: str,
) -> Iterator[Any]:
    """What `convert` makes of each raw row that it raises no `BadRow` for.

    Args:
      raws: numbered rows.
      convert: makes a row of a raw one.
      count_bad: called for each unusable row, which is left out; None refuses the first one.
      place: says where the row of a number stands.
      whole: says where all of them stand.

    Raises:
      Refusal: 3, with the place, for an unusable row or where there is no usable one.
    """
    usable = bad = 0
    for number, raw in raws:
        try:
            converted = convert(raw)
        except BadRow as problem:
            if count_bad is None:
                raise Refusal(
                    BAD_INPUT,
                    f"{place(number)}: {problem}; mend or remove it (in a suite, --config.tasks.allow_bad_rows=true "
                    "leaves such rows out)",
                ) from None
            count_bad()
            bad += 1
        else:
            usable += 1
            yield converted
    if not usable:
        bad_ones = f" ({bad} bad ones)" if bad else ""
        raise Refusal(
            BAD_INPUT,
            f"{whole}: no usable row{bad_ones}; add some (in a suite, --config.tasks.only can leave a task out)",
        )


def _open(path: epath.Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise Refusal(BAD_INPUT, f"{path} cannot be read ({error.strerror}); give a file that is there") from None


def _lines(path: epath.Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank; of one that is too long, no more than shows that it is."""
    with _open(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE + len(b"\r\n")):
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(2**20)
            number += 1
            if number == 1:
                line = line.removeprefix(_UTF8_MARK)
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def _parse(line: bytes, required: Sequence[str]) -> dict[str, Any]:
    """A line's object."""
    if len(line) > LONGEST_LINE:
        raise BadRow(f"longer than {LONGEST_LINE} bytes")
    if line.startswith(_UTF16_STARTS):
        raise BadRow("UTF-16 text, not UTF-8 (convert the whole file)")
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise BadRow("not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadRow(f"not valid JSON ({error.msg} at character {error.pos + 1})") from None
    except ValueError:
        raise BadRow("an integer with too many digits") from None
    except RecursionError:
        raise BadRow("nested too deep") from None
    if not isinstance(row, dict):
        raise BadRow(f"a {type(row).__name__}, not an object with {required[0]!r}")
    for field in required:
        if field not in row:
            raise BadRow(f"no field {field!r}")
        check_text(row[field], field)
    return row


def _parquet_rows(path: epath.Path, columns: Columns) -> Iterator[tuple[int, RawRow]]:
    import pyarrow
    import pyarrow.parquet

    with _open(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = example_columns(str(path), table.schema_arrow, columns)
            batches = table.iter_batches(BATCH, columns=names)
            yield from enumerate(chain.from_iterable(raw_rows(batch, names) for batch in batches), 1)
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).split("\n")[0]
            raise Refusal(BAD_INPUT, f"{path} is no whole Parquet file ({reason}); write or fetch it again") from None


def example_columns(place: str, schema: Any, columns: Columns) -> list[str]:
    """Which columns of an Arrow schema hold an example: inputs, targets and, where there is one, template.

    Raises:
      Refusal: 3 when one is missing or of a type that cannot hold what it should.
    """
    from pyarrow import types

    for name in (columns.inputs, columns.targets):
        check_text_column(place, schema, name)
    if schema.get_field_index(columns.template) < 0:
        return [columns.inputs, columns.targets]
    kind = schema.field(columns.template).type
    if not types.is_integer(kind):
        raise Refusal(
            BAD_INPUT,
            f"{place}: column {columns.template!r} is of type {kind}, not whole numbers; name another or none "
            "(--config.tasks.columns.template=)",
        )
    return [columns.inputs, columns.targets, columns.template]


def check_text_column(place: str, schema: Any, name: str) -> None:
    """Refuses an Arrow schema without that column, or with one that holds no texts."""
    from pyarrow import types

    if schema.get_field_index(name) < 0:
        raise Refusal(
            BAD_INPUT,
            f"{place} has no column {name!r}; there are {', '.join(schema.names)}: name the right one "
            "(--config.tasks.columns)",
        )
    kind = schema.field(name).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise Refusal(BAD_INPUT, f"{place}: column {name!r} is of type {kind}, not text; name a column of texts")


def raw_rows(batch: Any, names: Sequence[str]) -> Iterator[RawRow]:
    """Rows of an Arrow batch or table with the columns that `example_columns` names."""
    texts = [_bytes(batch.column(name)) for name in names[:2]]
    templates = batch.column(names[2]).to_pylist() if names[2:] else [-1] * batch.num_rows
    return zip(*texts, templates, strict=True)


def decoded(row: RawRow, columns: Columns) -> Example:
    """The example of a raw row; raises `BadRow` where it is none."""
    inputs, targets, template = row
    return example(_text(inputs), _text(targets), template, columns)


def texts_of(column: Any) -> list[str | None]:
    """Values of a text column of Arrow's; raises `BadRow` where one is not UTF-8."""
    return [_text(value) for value in _bytes(column)]


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        raise BadRow("not valid UTF-8") from None


def _bytes(column: Any) -> list[bytes | None]:
    """A text column's values as bytes: Arrow does not check that they are UTF-8."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    return column.cast(pyarrow.large_binary()).to_pylist()
