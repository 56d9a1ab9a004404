"""Reads rows from JSONL and Parquet files, one after another; an unusable row is refused, or counted.

Lines end in LF, CR LF or CR, and in no other character: a text may hold U+2028. Blank lines, a byte-order mark at the
start and the case of a file's ending mean nothing. `.jsonl.gz` is JSONL.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import IO, Any, BinaryIO, cast

from etils import epath

from mossa_jax.config import Columns
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.foreign import check_file, check_pointer
from mossa_jax.tasks.arrow import BATCH, RawRow, decode_row, example_columns, raw_rows
from mossa_jax.tasks.suite import Example, Task
from mossa_jax.tasks.usable import BadRow, bad_row_counter, check_labels, check_text, make_example, usable_rows

ENDINGS = (".jsonl.gz", ".jsonl", ".parquet")
"""Endings of files of rows, in any case."""

LONGEST_LINE = 10_000_000
"""Bytes of a JSONL line without its end; a longer one is refused, and never held in memory."""

_LISTED = 5  # fields that a message names
_BLOCK = 1 << 18  # bytes that are read at once

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


def ending_of(path: epath.PathLike) -> str:
    """Returns the ending of a file of rows as its name has it; empty for any other file."""
    name = os.fspath(path)
    return next((name[-len(ending) :] for ending in ENDINGS if name.lower().endswith(ending)), "")


def first_fields(path: epath.Path) -> list[str]:
    """Returns the names of the fields of a file's first row; none where it has no row that can be read."""
    try:
        if _is_parquet(path):
            return _parquet_names(path)
        line = next((line for _, line in _lines(path)), b"{}")
        return list(_parse(line, ()))
    except (BadRow, Refusal):
        # Who reads the file says what is wrong with it.
        return []


def _is_parquet(path: epath.Path) -> bool:
    return ending_of(path).lower() == ".parquet"


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
    if not ending_of(path):
        raise Refusal(BAD_INPUT, f"{path}: the name of a file of rows must end in .jsonl, .jsonl.gz or .parquet")
    if not _is_parquet(path):
        required = (columns.inputs, columns.targets)

        def convert(line: bytes) -> Example:
            row = _parse(line, required)
            template, item = row.get(columns.template, -1), row.get(columns.item)
            return make_example(row[columns.inputs], row[columns.targets], template, item, columns)

        yield from usable_rows(_lines(path), convert, count_bad, lambda n: f"{path}:{n}", f"{path}:1")
    else:
        decode = partial(decode_row, columns=columns)
        yield from usable_rows(_parquet_rows(path, columns), decode, count_bad, lambda n: f"{path}, row {n}", str(path))


def read_prompts(path: epath.PathLike, columns: Columns) -> Iterator[Example]:
    """Yields the prompts of a file, in its order, with an empty answer each: the file needs none.

    Args:
      path: the file: Parquet by its ending, else JSONL, whatever its ending.
      columns: names of its fields; those of template and item may be absent.

    Raises:
      Refusal: 3, with file and line or row, for an unusable row or a file without any usable one.
    """
    path = epath.Path(path)
    if _is_parquet(path):
        # The prompts stand in for the answers, which are not looked at.
        columns = replace(columns, targets=columns.inputs)
        decode = partial(decode_row, columns=columns)
        rows = usable_rows(_parquet_rows(path, columns), decode, None, lambda n: f"{path}, row {n}", str(path))
        yield from (replace(row, targets="") for row in rows)
        return

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
    """Opens a file that is one, and not a pointer to one."""
    check_file(path)
    try:
        file = path.open("rb")
        start = file.read(64)
        file.seek(0)
    except OSError as error:
        raise _unreadable(path, error) from None
    check_pointer(path, start)
    return file


def _unreadable(path: epath.Path, error: Exception) -> Refusal:
    reason = getattr(error, "strerror", None) or str(error)
    return Refusal(BAD_INPUT, f"{path} cannot be read ({reason}); give the path of a readable file")


def _lines(path: epath.Path) -> Iterator[tuple[int, bytes]]:
    """Yields numbered lines that are not blank; of one that is too long, only the first bytes."""
    is_packed = ending_of(path).lower().endswith(".gz")
    with _open(path) as file:
        plain: IO[bytes] = cast(IO[bytes], gzip.open(file)) if is_packed else file
        try:
            for number, line in enumerate(_whole_lines(plain), 1):
                line = line.removeprefix(_UTF8_MARK) if number == 1 else line
                if line.strip():
                    yield number, line
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error) from None


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yields lines without their ends; of one that is too long, only the first bytes, which are too many."""
    rest = bytearray()
    while block := file.read(_BLOCK):
        # The LF of a CR LF may be in the next block.
        while block.endswith(b"\r") and (more := file.read(1)):
            block += more
        # For bytes, unlike texts, line ends are LF, CR LF and CR alone.
        for line in block.splitlines(keepends=True):
            text = line.rstrip(b"\r\n")
            if not rest and len(text) < len(line):
                yield text
                continue
            rest += text[: LONGEST_LINE + 1 - len(rest)]
            if len(text) < len(line):
                yield bytes(rest)
                rest.clear()
    if rest:
        yield bytes(rest)


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
        raise BadRow(f"a {type(row).__name__}, not an object with {required[0]!r}" if required else "no object")
    for field in required:
        if field not in row:
            there = ", ".join(repr(name) for name in list(row)[:_LISTED])
            hint = f", but {there} (in a suite, --config.tasks.columns.* names the fields)" if there else ""
            raise BadRow(f"no field {field!r}{hint}")
        check_text(row[field], field)
    return row


def _parquet_names(path: epath.Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    with _open(path) as file:
        try:
            return pyarrow.parquet.read_schema(file).names
        except (pyarrow.ArrowException, OSError) as error:
            raise _incomplete(path, error) from None


def _parquet_rows(path: epath.Path, columns: Columns) -> Iterator[tuple[int, RawRow]]:
    import pyarrow
    import pyarrow.parquet

    with _open(path) as file:
        try:
            parquet = pyarrow.parquet.ParquetFile(file)
            schema = parquet.schema_arrow
            names = example_columns(str(path), schema, columns)
            batches = parquet.iter_batches(BATCH, columns=list(dict.fromkeys(names)))
            rows = chain.from_iterable(raw_rows(batch, names, columns, schema) for batch in batches)
            yield from enumerate(rows, 1)
        except (pyarrow.ArrowException, OSError) as error:
            raise _incomplete(path, error) from None


def _incomplete(path: epath.Path, error: Exception) -> Refusal:
    reason = str(error).split("\n")[0]
    return Refusal(BAD_INPUT, f"{path} is not a complete Parquet file ({reason}); write or fetch it again")
