"""A suite in a folder: `<split>/<task>.jsonl` or `.parquet`, and `tasks.json` with clusters and held-out tasks."""

from __future__ import annotations

import errno
import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from etils import epath

from mossa_jax.config import Tasks
from mossa_jax.config.values import did_you_mean
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, DISK, Refusal
from mossa_jax.files.listing import composed, is_folder, shown, visible
from mossa_jax.files.names import slug
from mossa_jax.files.write import new_folder
from mossa_jax.foreign import read_object, short, user_path
from mossa_jax.tasks.left_out import left_out_of, row_files_in
from mossa_jax.tasks.row_files import file_task
from mossa_jax.tasks.suite import SPLITS, Suite, Task
from mossa_jax.tasks.usable import BadRow, check_text

NO_CLUSTER = "tasks"
"""Cluster of a task whose source names none."""

# What an entry of `tasks.json` may say.
_FIELDS = ("cluster", "held_out", "licence", "license", "file")


@dataclass(frozen=True)
class _Entry:
    """A task's entry in `tasks.json`; `file` is the name of its files without their ending."""

    name: str
    file: str
    cluster: str = NO_CLUSTER
    held_out: bool = False
    licence: str = ""


def folder_suite(config: Tasks) -> Suite:
    """Reads the tasks of `config.folder`, in the order of `tasks.json` and then by name.

    `tasks.json` is optional. It maps a task's name to an object whose optional fields are `cluster`, `held_out` (true:
    E never sees the task), `licence` (of its rows, or `license`; it stands on the cards of its models) and `file`, the
    name of its files without their ending if this is not the task's name. What the folder holds beside is named in
    `Suite.left_out`.

    Raises:
      Refusal: 3 if the folder or its `train` or `test` folder is missing, or `tasks.json` does not fit the files.
    """
    folder = epath.Path(user_path(config.folder, "config.tasks.folder"))
    for needed in (folder, folder / "train", folder / "test"):
        if not is_folder(needed):
            raise Refusal(
                BAD_INPUT,
                f"task folder {shown(str(needed))} does not exist; name a folder with <split>/<task>.jsonl or .parquet "
                "files (--config.tasks.folder)",
            )
    files = {split: row_files_in(folder / split) for split in SPLITS}
    if not files["train"]:
        raise Refusal(
            BAD_INPUT,
            f"{folder / 'train'} holds no .jsonl or .parquet file{_beside(folder / 'train')}; a task is "
            "<split>/<task>.jsonl",
        )
    entries, unknown = _entries(folder / "tasks.json")
    listed = {entry.file for entry in entries}
    for entry in entries:
        if entry.file not in files["train"]:
            close = did_you_mean(entry.file, [name for name in files["train"] if name not in listed])
            raise Refusal(
                BAD_INPUT,
                f"{folder / 'tasks.json'} names task {entry.name!r}, which has no train file "
                f"{folder / 'train' / entry.file}.jsonl or .parquet{close}; add the file or remove the name",
            )
    entries += [_Entry(file, file) for file in files["train"] if file not in listed]
    for entry in entries:
        if entry.file not in files["test"]:
            close = did_you_mean(entry.file, [name for name in files["test"] if name not in files["train"]])
            raise Refusal(
                BAD_INPUT,
                f"task {entry.name!r} has no file {folder / 'test' / entry.file}.jsonl or .parquet{close}; "
                "add it or remove its train file",
            )

    def task(entry: _Entry) -> Task:
        locate = partial(_locate, files, entry.file)
        return file_task(
            entry.name, entry.cluster, locate, config.columns, config.allow_bad_rows, str(folder), entry.licence
        )

    held_out = tuple(entry.name for entry in entries if entry.held_out)
    left_out = left_out_of(folder, files, unknown, config.columns)
    return Suite(folder.name, tuple(task(entry) for entry in entries), held_out, left_out=left_out)


def write_folder(suite: Suite, folder: epath.PathLike, max_rows: int | None = None) -> None:
    """Writes a suite as a folder that `folder_suite` reads back as the same suite; completely or not at all.

    Args:
      suite: any suite.
      folder: the new folder; it must not exist, or be empty.
      max_rows: how many rows of each split are written, from the first on; None writes all.

    Raises:
      Refusal: 2 if `folder` is not empty; 3 for bad data of the suite; 6 if the disk is full.
    """
    folder = epath.Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Refusal(BAD_CONFIG, f"{folder} exists and is not an empty folder; name a new one")
    try:
        with new_folder(folder) as working:
            _write(suite, working, max_rows)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refusal(DISK, f"no space left to write {folder}; free some and run again") from None
        raise


def _beside(folder: epath.Path) -> str:
    """Says what a folder without files of rows holds instead."""
    names = [shown(path.name) for path in visible(folder)][:3]
    return f", but {', '.join(names)}" if names else ""


def _locate(files: dict[str, dict[str, epath.Path]], file: str, split: str) -> epath.Path | None:
    """Returns a split's file of that name, if there is one."""
    return files[split].get(file)


def _entries(path: epath.Path) -> tuple[list[_Entry], tuple[str, ...]]:
    """Reads `tasks.json`, if it exists: its entries, and the fields that it has beyond those that are known."""
    if not path.exists():
        return [], ()
    table = read_object(path, "correct or remove it")
    try:
        entries = [_entry(name, fields) for name, fields in table.items()]
    except BadRow as error:
        raise Refusal(BAD_INPUT, f"{path} is not an object of task objects ({error}); correct or remove it") from None
    repeated = [file for file, count in Counter(entry.file for entry in entries).items() if count > 1]
    if repeated:
        raise Refusal(BAD_INPUT, f"{path} gives two tasks the file {repeated[0]!r}; each needs a file of its own")
    unknown = dict.fromkeys(str(field) for fields in table.values() for field in fields if field not in _FIELDS)
    return entries, tuple(unknown)


def _entry(name: str, fields: Any) -> _Entry:
    """Makes the entry of a task; raises `BadRow` if it or a field is of the wrong type."""
    if not isinstance(fields, dict):
        raise BadRow(f"{name!r} is {short(fields)}, no object")
    cluster, file = fields.get("cluster") or NO_CLUSTER, fields.get("file", name)
    held_out = fields.get("held_out", False)
    licence = fields.get("licence") or fields.get("license") or ""
    for text, field in ((name, "name"), (cluster, "cluster"), (file, "file"), (licence or "none", "licence")):
        check_text(text, field)
    if not isinstance(held_out, bool):
        raise BadRow(f"'held_out' of {name!r} is neither true nor false")
    return _Entry(composed(name), composed(file), composed(cluster), held_out, licence)


def _write(suite: Suite, working: epath.Path, max_rows: int | None) -> None:
    """Writes a suite's rows and its `tasks.json` into `working`."""
    table: dict[str, dict[str, Any]] = {}
    for task in suite.tasks:
        file = slug(task.name)
        table[task.name] = {
            "cluster": task.cluster,
            **({"held_out": True} if task.name in suite.held_out else {}),
            **({"licence": task.licence} if task.licence else {}),
            **({"file": file} if file != task.name else {}),
        }
        for split in SPLITS:
            _write_split(task, split, working / split / f"{file}.jsonl", max_rows)
    (working / "tasks.json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_split(task: Task, split: str, path: epath.Path, max_rows: int | None) -> None:
    """Writes the rows of a split to a JSONL file; no file if there are none, as most suites have no validation rows."""
    rows = islice(task.rows(split), max_rows)
    first = next(rows, None)
    if first is None:
        return
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        for row in chain([first], rows):
            fields: dict[str, str | int] = {"inputs": row.inputs, "targets": row.targets, "task": task.name}
            if row.template >= 0:
                fields["template"] = row.template
            if row.item:
                fields["item"] = row.item
            file.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
