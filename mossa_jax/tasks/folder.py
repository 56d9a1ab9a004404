"""A suite in a folder: `<split>/<task>.jsonl`, one object a line with `inputs` and `targets`, and `tasks.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from etils import epath

from mossa_jax.rundir import BAD_INPUT, Refusal
from mossa_jax.tasks.suite import Example, Suite, Task

_NO_CLUSTER = "tasks"


def folder_suite(folder: epath.PathLike, allow_bad_rows: bool = False) -> Suite:
    """The tasks of a folder, in the order of `tasks.json` or else by name; rows are read when they are asked for.

    `tasks.json`, optional, maps a task's name to an object whose `cluster` names its cluster.

    Args:
      folder: the folder.
      allow_bad_rows: leave out rows that are no usable example, counted in `Task.bad_rows`, instead of refusing.

    Raises:
      Refusal: 3 when the folder or its `train` or `test` part is missing, or `tasks.json` does not fit the files.
    """
    folder = epath.Path(folder)
    for part in (folder, folder / "train", folder / "test"):
        if not part.is_dir():
            raise Refusal(BAD_INPUT, f"task folder {part} does not exist; it holds <split>/<task>.jsonl files")
    names = sorted(path.name.removesuffix(".jsonl") for path in (folder / "train").glob("*.jsonl"))
    if not names:
        raise Refusal(BAD_INPUT, f"{folder / 'train'} holds no .jsonl file; a task is <split>/<task>.jsonl")
    clusters = _clusters(folder)
    if clusters:
        unknown = [name for name in clusters if name not in names]
        if unknown:
            raise Refusal(BAD_INPUT, f"{folder / 'tasks.json'} names task {unknown[0]!r}, which has no train file")
        names = [*[name for name in clusters if name in names], *[name for name in names if name not in clusters]]
    lacking = [name for name in names if not (folder / "test" / f"{name}.jsonl").exists()]
    if lacking:
        raise Refusal(BAD_INPUT, f"task {lacking[0]!r} has no file {folder / 'test' / lacking[0]}.jsonl")
    return Suite(
        name=folder.name,
        tasks=tuple(_task(folder, name, clusters.get(name, _NO_CLUSTER), allow_bad_rows) for name in names),
    )


def _task(folder: epath.Path, name: str, cluster: str, allow_bad_rows: bool) -> Task:
    bad_rows: dict[str, int] = {}
    return Task(name, cluster, partial(_read_split, folder, name, bad_rows if allow_bad_rows else None), bad_rows)


def _clusters(folder: epath.Path) -> dict[str, str]:
    path = folder / "tasks.json"
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_text())
        return {name: str(entry.get("cluster") or _NO_CLUSTER) for name, entry in table.items()}
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise Refusal(BAD_INPUT, f"{path} is not a JSON object of task objects ({error})") from None


def _read_split(folder: epath.Path, name: str, bad_rows: dict[str, int] | None, split: str) -> Sequence[Example]:
    path = folder / split / f"{name}.jsonl"
    if split == "validation" and not path.exists():
        return ()
    rows, bad = read_rows(path, ("inputs", "targets"), allow_bad_rows=bad_rows is not None)
    if bad_rows is not None:
        bad_rows[split] = bad
    if not rows:
        raise Refusal(BAD_INPUT, f"task {name!r} has no rows in {path}; fill it or leave the task out (tasks.only)")
    return tuple(Example(row["inputs"], row["targets"], _template(row, path, n)) for n, row in enumerate(rows, 1))


def _template(row: dict, path: epath.Path, number: int) -> int:
    value = row.get("template", -1)
    if not isinstance(value, int):
        raise Refusal(BAD_INPUT, f"{path}, row {number}: template={value!r} is not a whole number")
    return value


def read_rows(path: epath.PathLike, required: Sequence[str], allow_bad_rows: bool = False) -> tuple[list[dict], int]:
    """Objects of a JSONL file, each with the required fields as non-empty strings, and the number of bad lines.

    Blank lines, a byte-order mark and CRLF are let pass.

    Raises:
      Refusal: 3 with file and line, at the first bad line unless these are allowed.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise Refusal(BAD_INPUT, f"{path} does not exist; it should be a JSONL file with {', '.join(required)}")
    rows, bad = [], 0
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        row, problem = _parse(line, required)
        if problem and not allow_bad_rows:
            raise Refusal(BAD_INPUT, f"{path}:{number}: {problem}; mend or remove the line")
        if problem:
            bad += 1
        else:
            rows.append(row)
    return rows, bad


def _parse(line: bytes, required: Sequence[str]) -> tuple[dict, str]:
    """A line's object, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return {}, "not valid UTF-8"
    except json.JSONDecodeError as error:
        return {}, f"not valid JSON ({error.msg})"
    if not isinstance(row, dict):
        return {}, f"a {type(row).__name__}, not an object with {required[0]!r}"
    for field in required:
        value = row.get(field)
        if not isinstance(value, str) or not value.strip():
            return {}, f"field {field!r} is {value!r}, not a text"
        if not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
            return {}, f"field {field!r} holds half of a surrogate pair, which is no text"
    return row, ""
