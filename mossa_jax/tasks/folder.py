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
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, DISK, Refusal
from mossa_jax.files.names import slug
from mossa_jax.files.write import new_folder
from mossa_jax.tasks.row_files import ENDINGS, file_task
from mossa_jax.tasks.suite import SPLITS, Suite, Task
from mossa_jax.tasks.usable import BadRow, check_text

NO_CLUSTER = "tasks"
"""Cluster of a task whose source names none."""


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
    name of its files without their ending if this is not the task's name.

    Raises:
      Refusal: 3 if the folder or its `train` or `test` folder is missing, or `tasks.json` does not fit the files.
    """
    folder = epath.Path(config.folder).expanduser()
    for needed in (folder, folder / "train", folder / "test"):
        if not needed.is_dir():
            raise Refusal(
                BAD_INPUT,
                f"task folder {needed} does not exist; name a folder with <split>/<task>.jsonl or .parquet files "
                "(--config.tasks.folder)",
            )
    files = {split: _files(folder / split) for split in SPLITS}
    if not files["train"]:
        raise Refusal(BAD_INPUT, f"{folder / 'train'} holds no .jsonl or .parquet file; a task is <split>/<task>.jsonl")
    entries = _entries(folder / "tasks.json")
    listed = {entry.file for entry in entries}
    without_train = [entry for entry in entries if entry.file not in files["train"]]
    if without_train:
        raise Refusal(
            BAD_INPUT,
            f"{folder / 'tasks.json'} names task {without_train[0].name!r}, which has no train file "
            f"{folder / 'train' / without_train[0].file}.jsonl or .parquet; add the file or remove the name",
        )
    entries += [_Entry(file, file) for file in files["train"] if file not in listed]
    without_test = [entry for entry in entries if entry.file not in files["test"]]
    if without_test:
        raise Refusal(
            BAD_INPUT,
            f"task {without_test[0].name!r} has no file {folder / 'test' / without_test[0].file}.jsonl or .parquet; "
            "add it or remove its train file",
        )

    def task(entry: _Entry) -> Task:
        locate = partial(_locate, files, entry.file)
        return file_task(
            entry.name, entry.cluster, locate, config.columns, config.allow_bad_rows, str(folder), entry.licence
        )

    held_out = tuple(entry.name for entry in entries if entry.held_out)
    return Suite(folder.name, tuple(task(entry) for entry in entries), held_out)


def write_folder(suite: Suite, folder: epath.PathLike, max_rows: int | None = None) -> None:
    """Writes a suite as a folder that `folder_suite` reads back as the same suite; completely or not at all.

    Args:
      suite: any suite.
      folder: the new folder; it must not exist, or be empty.
      max_rows: how many rows of each split are written, from the first on; None writes all.

    Raises:
      Refusal: 2 if `folder` is not empty; 3 for bad data of the suite; 6 if the disk is full.
    """
    folder = epath.Path(folder).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Refusal(BAD_CONFIG, f"{folder} exists and is not an empty folder; name a new one")
    try:
        with new_folder(folder) as working:
            _write(suite, working, max_rows)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refusal(DISK, f"no space left to write {folder}; free some and run again") from None
        raise


def _files(folder: epath.Path) -> dict[str, epath.Path]:
    """Returns name without ending -> file, of one split's folder, sorted by name."""
    children = folder.iterdir() if folder.is_dir() else ()
    paths = [path for path in children if path.suffix in ENDINGS and not path.name.startswith(".")]
    for file, count in Counter(path.stem for path in paths).items():
        if count > 1:
            both = " and ".join(str(folder / f"{file}{ending}") for ending in ENDINGS)
            raise Refusal(BAD_INPUT, f"task {file!r} has two files of one split: {both}; remove one")
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def _locate(files: dict[str, dict[str, epath.Path]], file: str, split: str) -> epath.Path | None:
    """Returns a split's file of that name, if there is one."""
    return files[split].get(file)


def _entries(path: epath.Path) -> list[_Entry]:
    """Reads `tasks.json`, if it exists."""
    if not path.exists():
        return []
    try:
        table = json.loads(path.read_bytes())
        entries = [_entry(name, fields) for name, fields in table.items()]
    except json.JSONDecodeError as error:
        raise Refusal(BAD_INPUT, f"{path}:{error.lineno}: not valid JSON ({error.msg}); correct or remove it") from None
    except (BadRow, ValueError, RecursionError, AttributeError) as error:
        raise Refusal(
            BAD_INPUT, f"{path} is not a JSON object of task objects ({error}); correct or remove it"
        ) from None
    repeated = [file for file, count in Counter(entry.file for entry in entries).items() if count > 1]
    if repeated:
        raise Refusal(BAD_INPUT, f"{path} gives two tasks the file {repeated[0]!r}; each needs a file of its own")
    return entries


def _entry(name: str, fields: dict[str, Any]) -> _Entry:
    """Makes the entry of a task; raises `BadRow` if a field is of the wrong type."""
    cluster, file = fields.get("cluster") or NO_CLUSTER, fields.get("file", name)
    held_out = fields.get("held_out", False)
    licence = fields.get("licence") or fields.get("license") or ""
    for text, field in ((name, "name"), (cluster, "cluster"), (file, "file"), (licence or "none", "licence")):
        check_text(text, field)
    if not isinstance(held_out, bool):
        raise BadRow(f"'held_out' of {name!r} is neither true nor false")
    return _Entry(name, file, cluster, held_out, licence)


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
