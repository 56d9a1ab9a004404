"""Reads rows from JSONL and Parquet files, one after another; an unusable row is refused, or counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

from etils import epath

from mossa_jax.config import Columns
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.tasks.arrow import BATCH, RawRow, decode_row, example_columns, raw_rows
from mossa_jax.tasks.suite import Example, Task
from mossa_jax.tasks.usable import BadRow, bad_row_counter, check_labels, check_text, make_example, usable_rows

ENDINGS = (".jsonl", ".parquet")

LONGEST_LINE = 10_000_000
"""Bytes of a JSONL line without its end; a longer one is refused, and never held in memory."""

_UTF8_MARK = b"\xef\xbb\xbf"
# Byte-order marks, and "{" or "[" as they look without one.
_UTF16_STARTS = (b"\xff\xfe", b"\xfe\xff", b"{\x00", b"\x00{", b"[\x00", b"\x00[")


def file_task(
    name: str,
    cluster: str,
    locate: Callable[[str], epath.PathLike | None],
    columns: Columns,
    allow_bad_rows: bool,
    source: str,
    licence: str = "",
) -> Task:
    """Makes a task with one file per split.

    Args:
      name: the task's name.
      cluster: its cluster.
      locate: split -> its local `.jsonl` or `.parquet` file, or None if there is none, which only `validation` may
        lack; called when the split's rows or digest are asked for.
      columns: names of the fields or columns.
      allow_bad_rows: leave out unusable rows, counted in `Task.bad_rows`, instead of refusing them.
      source: where the files come from, for people.
      licence: of the rows, as the source states it; empty if it does not.
    """
    bad_rows: dict[str, int] = {}

    def file_of(split: str) -> epath.PathLike | None:
        path = locate(split)
        if path is None and split != "validation":
            raise Refusal(BAD_INPUT, f"task {name!r} has no {split} file in {source}; add it or leave the task out")
        return path

    def read(split: str) -> Iterator[Example]:
        path = file_of(split)
        if path is not None:
            yield from read_examples(path, columns, bad_row_counter(bad_rows, split, allow_bad_rows))

    def digest(split: str) -> str:
        path = file_of(split)
        content = None if path is None else file_digest(path)
        parts = [content, columns.inputs, columns.targets, columns.template, columns.item, allow_bad_rows]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    return Task(name, cluster, read, source, digest, bad_rows, licence)


def read_examples(
    path: epath.PathLike, columns: Columns, count_bad: Callable[[], None] | None = None
) -> Iterator[Example]:
    """Yields the examples of a `.jsonl` or `.parquet` file, in its order.

    Args:
      path: the file.
      columns: names of its fields or columns; those of template and item may be absent.
      count_bad: called for each unusable row, which is left out; None refuses the first one.

    Raises:
      Refusal: 3, with file and line or row, for an unusable row or a file without any usable one.
    """
    path = epath.Path(path)
    if path.suffix == ".jsonl":
        required = (columns.inputs, columns.targets)

        def convert(line: bytes) -> Example:
            row = _parse(line, required)
            template, item = row.get(columns.template, -1), row.get(columns.item)
            return make_example(row[columns.inputs], row[columns.targets], template, item, columns)

        yield from usable_rows(_lines(path), convert, count_bad, lambda n: f"{path}:{n}", f"{path}:1")
    elif path.suffix == ".parquet":
        decode = partial(decode_row, columns=columns)
        yield from usable_rows(_parquet_rows(path, columns), decode, count_bad, lambda n: f"{path}, row {n}", str(path))
    else:
        raise Refusal(BAD_INPUT, f"{path}: the name of a file of rows must end in {' or '.join(ENDINGS)}")


def read_prompts(path: epath.PathLike, columns: Columns) -> Iterator[Example]:
    """Yields the prompts of a JSONL file, in its order, with an empty answer each: the file needs none.

    Args:
      path: the file.
      columns: names of its fields; those of template and item may be absent.

    Raises:
      Refusal: 3, with file and line, for an unusable line or a file without any usable one.
    """
    path = epath.Path(path)

    def convert(line: bytes) -> Example:
        row = _parse(line, (columns.inputs,))
        labels = check_labels(row.get(columns.template, -1), row.get(columns.item), columns)
        return Example(row[columns.inputs], "", *labels)

    yield from usable_rows(_lines(path), convert, None, lambda n: f"{path}:{n}", f"{path}:1")


def file_digest(path: epath.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    with _open(epath.Path(path)) as file:
        # BinaryIO has no readinto, but every file that is opened here does.
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _open(path: epath.Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise Refusal(
            BAD_INPUT, f"{path} cannot be read ({error.strerror}); give the path of a readable file"
        ) from None


def _lines(path: epath.Path) -> Iterator[tuple[int, bytes]]:
    """Yields numbered lines that are not blank; of one that is too long, only the first bytes."""
    with _open(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE + len(b"\r\n")):
            # The rest of a line that is too long is skipped, a megabyte at a time.
            end = line
            while end and not end.endswith(b"\n"):
                end = file.readline(2**20)
            number += 1
            if number == 1:
                line = line.removeprefix(_UTF8_MARK)
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def _parse(line: bytes, required: Sequence[str]) -> dict[str, Any]:
    """Returns a line's object; raises `BadRow` if it has none with the required fields."""
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
            parquet = pyarrow.parquet.ParquetFile(file)
            names = example_columns(str(path), parquet.schema_arrow, columns)
            batches = parquet.iter_batches(BATCH, columns=names)
            yield from enumerate(chain.from_iterable(raw_rows(batch, names, columns) for batch in batches), 1)
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).split("\n")[0]
            raise Refusal(
                BAD_INPUT, f"{path} is not a complete Parquet file ({reason}); write or fetch it again"
            ) from None
