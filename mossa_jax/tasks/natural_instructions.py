"""Super-NaturalInstructions: one JSON file per task, with its definition, categories and instances.

References:
  Wang et al. 2022, "Super-NaturalInstructions", arXiv 2204.07705.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from etils import epath

from mossa_jax.config import Tasks
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.listing import composed, is_folder, visible
from mossa_jax.foreign import read_json, user_path
from mossa_jax.tasks.folder import NO_CLUSTER
from mossa_jax.tasks.row_files import file_digest
from mossa_jax.tasks.suite import Example, LeftOut, Suite, Task, split_of
from mossa_jax.tasks.usable import BadRow, bad_row_counter, check_text, usable_rows

_LARGEST = 2**30  # bytes of a task's file, which is read at once


def natural_instructions_suite(config: Tasks) -> Suite:
    """Reads a suite with one task per `task*.json` in `config.folder` or its `tasks/`; nothing is held out.

    A prompt is the definition, a blank line and the instance's input; the target is the first reference output; the
    cluster is the first category. The files have no splits: the text of an instance's input alone decides whether it
    is a test prompt (`config.test_share`).

    Raises:
      Refusal: 3 if there are no such files, or one of them is no task.
    """
    folder = epath.Path(user_path(config.folder, "config.tasks.folder"))
    paths = _task_files(folder) or _task_files(folder / "tasks")
    if not paths:
        raise Refusal(
            BAD_INPUT,
            f"{folder} holds no task*.json, nor does its tasks/; name a folder of Super-NaturalInstructions "
            "(--config.tasks.folder)",
        )
    others = [path for path in visible(paths[0].parent) if path.suffix.lower() == ".json" and path not in paths]
    left_out = (LeftOut("other_files", tuple(path.name for path in others)),) if others else ()
    return Suite(folder.name, tuple(_task(path, config) for path in paths), left_out=left_out)


def _task_files(folder: epath.Path) -> list[epath.Path]:
    if not is_folder(folder):
        return []
    return [path for path in visible(folder) if path.name.startswith("task") and path.name.lower().endswith(".json")]


def _task(path: epath.Path, config: Tasks) -> Task:
    name, share = composed(path.stem), config.test_share
    bad_rows: dict[str, int] = {}

    def read(split: str) -> Iterator[Example]:
        if split == "validation":
            return
        content = _load(path)
        definition = _text(path, content, "Definition")
        yield from usable_rows(
            ((n, instance) for n, instance in enumerate(content["Instances"], 1) if _split(instance, share) == split),
            partial(_example, definition=definition),
            bad_row_counter(bad_rows, split, config.allow_bad_rows),
            lambda n: f"{path}, instance {n}",
            f"{path}, {split} part by tasks.test_share={share} of {len(content['Instances'])} instances",
        )

    def digest(split: str) -> str:
        parts = [file_digest(path), split, share, config.allow_bad_rows]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    content = _load(path)
    return Task(name, _cluster(path, content), read, str(path), digest, bad_rows, _licence(content))


def _load(path: epath.Path) -> dict[str, Any]:
    """Reads a task's file and checks that it has instances."""
    content = read_json(path, "fetch it again", _LARGEST)
    if not isinstance(content, dict) or not isinstance(content.get("Instances"), list):
        raise Refusal(BAD_INPUT, f"{path} is no task: it has no list 'Instances'; correct it or move it elsewhere")
    return content


def _first(value: Any) -> Any:
    """Returns the first element of a list, None for an empty one; other values as they are."""
    return value if not isinstance(value, list) else value[0] if value else None


def _cluster(path: epath.Path, content: dict[str, Any]) -> str:
    """Returns a task's first category."""
    return NO_CLUSTER if _first(content.get("Categories")) is None else _text(path, content, "Categories")


def _licence(content: dict[str, Any]) -> str:
    """Returns the licences of a task's instances, as its file states them; empty if it does not."""
    stated = content.get("Instance License")
    names = stated if isinstance(stated, list) else [stated]
    return ", ".join(name for name in names if isinstance(name, str) and name.strip())


def _text(path: epath.Path, content: dict[str, Any], field: str) -> str:
    """Returns the first text of a field of a task."""
    try:
        return check_text(_first(content.get(field)), field)
    except BadRow as problem:
        raise Refusal(BAD_INPUT, f"{path}: {problem}; correct it or move it elsewhere") from None


def _split(instance: Any, test_share: float) -> str:
    """Returns an instance's split; unusable ones belong to `train`, where they are reported."""
    try:
        return split_of(_input(instance), test_share)
    except BadRow:
        return "train"


def _input(instance: Any) -> str:
    """Returns an instance's input; raises `BadRow` if it has none."""
    if not isinstance(instance, dict):
        raise BadRow(f"a {type(instance).__name__}, not an object with 'input' and 'output'")
    return check_text(instance.get("input"), "input")


def _example(instance: Any, definition: str) -> Example:
    """Makes an example of an instance; raises `BadRow` if it is unusable."""
    prompt = _input(instance)
    return Example(f"{definition}\n\n{prompt}", check_text(_first(instance.get("output")), "output"))
