"""The files of a task folder: those that are read, and what is left out and has to be said."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from mossa_jax.config import Columns
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.listing import composed, is_folder, shown, visible
from mossa_jax.tasks.row_files import ending_of, first_fields
from mossa_jax.tasks.suite import SPLITS, LeftOut

# Endings of files that are data, though no rows as they are read here.
_DATA = (".json", ".ndjson", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".xlsx")
_TASKS = "tasks.json"
_CLOSE = 0.8  # similarity of two names from which one is a slip of the other

RowFiles = Mapping[str, Mapping[str, epath.Path]]
"""Split -> name of a file without its ending, composed -> the file."""


def row_files_in(folder: epath.Path) -> dict[str, epath.Path]:
    """Returns the files of rows in one split's folder, sorted by name: name without ending, composed -> file.

    Raises:
      Refusal: 3 if two files have one name, or a name is not UTF-8.
    """
    files: dict[str, epath.Path] = {}
    for path in visible(folder) if is_folder(folder) else ():
        ending = ending_of(path)
        if not ending:
            continue
        if shown(path.name) != path.name:
            raise Refusal(BAD_INPUT, f"{shown(str(path))}: the file's name is not UTF-8; rename it")
        name = composed(path.name[: -len(ending)])
        if name in files:
            raise Refusal(BAD_INPUT, f"task {name!r} has two files of one split: {files[name]} and {path}; remove one")
        files[name] = path
    return dict(sorted(files.items()))


def left_out_of(
    folder: epath.Path, files: RowFiles, unknown_fields: Sequence[str], columns: Columns
) -> tuple[LeftOut, ...]:
    """Returns what a task folder holds and a run does not read; only kinds of which there is something.

    Args:
      folder: the task folder.
      files: of its splits.
      unknown_fields: of `tasks.json`.
      columns: names of the fields or columns that are read.
    """
    lone = [
        f"{split}/{shown(path.name)}"
        for split in SPLITS[1:]
        for name, path in files[split].items()
        if name not in files["train"]
    ]
    beside = [columns_beside(first_fields(path), columns) for path in files["train"].values()]
    unread = list(dict.fromkeys(name for names, _ in beside for name in names))
    misspelt = list(dict.fromkeys(name for _, names in beside for name in names))
    found = {
        "other_files": list(_other_files(folder, files)),
        "lone_files": lone,
        "unknown_fields": list(unknown_fields),
        "misspelt_columns": misspelt,
        "validation_files": [name for name in files["validation"] if name in files["train"]],
        "unread_columns": unread,
    }
    return tuple(LeftOut(kind, tuple(names)) for kind, names in found.items() if names)


def _other_files(folder: epath.Path, files: RowFiles) -> Iterator[str]:
    """Yields what lies in the folders of splits and is not read, and what looks like data beside them."""
    for split in SPLITS:
        if is_folder(folder / split):
            rows = {path.name for path in files[split].values()}
            yield from (f"{split}/{shown(path.name)}" for path in visible(folder / split) if path.name not in rows)
    for path in visible(folder):
        if path.name in (*SPLITS, _TASKS):
            continue
        if is_folder(path):
            if any(_is_data(child) for child in visible(path)):
                yield f"{shown(path.name)}/"
        elif _is_data(path):
            yield shown(path.name)


def _is_data(path: epath.Path) -> bool:
    return bool(ending_of(path)) or path.name.lower().endswith(_DATA)


def columns_beside(fields: Sequence[str], columns: Columns) -> tuple[list[str], list[str]]:
    """Returns the fields of a row that are not read, and those that look like slips of optional ones that are.

    `task` and `cluster` are neither: suite `hub` reads them, and what exports a suite writes them.
    """
    absent = [name for name in (columns.template, columns.item) if name and name not in fields]
    known = (columns.inputs, columns.targets, columns.template, columns.item, columns.task, columns.cluster)
    unread: list[str] = []
    misspelt: list[str] = []
    for field in fields:
        if field not in known:
            close = difflib.get_close_matches(field.lower()[:100], absent, 1, _CLOSE)
            (misspelt if close else unread).append(f"{field} (for {close[0]})" if close else field)
    return unread, misspelt
