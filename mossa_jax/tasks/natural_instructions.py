"""Super-NaturalInstructions files: one JSON object a task, with its definition, categories and instances."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from etils import epath

from mossa_jax.config import Tasks
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.tasks.folder import NO_CLUSTER
from mossa_jax.tasks.row_files import BadRow, check_text, file_digest, split_of, usable_rows
from mossa_jax.tasks.suite import Example, Suite, Task


def natural_instructions_suite(config: Tasks) -> Suite:
    """One task for each `task*.json` in `config.folder`, or in its `tasks/`, by name; nothing is held out.

    A prompt is the definition, a blank line and the instance's input; the target is the first reference output; the
    cluster is the first category. The files have no splits: an instance's input alone decides (`config.test_share`).

    Raises:
      Refusal: 3 when there are no such files, or one of them is no task.
    """
    folder = epath.Path(config.folder).expanduser()
    paths = sorted(folder.glob("task*.json")) or sorted((folder / "tasks").glob("task*.json"))
    if not paths:
        raise Refusal(
            BAD_INPUT, f"{folder} holds no task*.json, nor does its tasks/; give a folder of Super-NaturalInstructions"
        )
    return Suite(folder.name, tuple(_task(path, config) for path in paths))


def _task(path: epath.Path, config: Tasks) -> Task:
    name, share = path.stem, config.test_share
    bad_rows: dict[str, int] = {}

    def read(split: str) -> Iterator[Example]:
        def count_bad() -> None:
            bad_rows[split] = bad_rows.get(split, 0) + 1

        if split == "validation":
            return
        content = _load(path)
        definition = _definition(path, content)
        yield from usable_rows(
            ((n, instance) for n, instance in enumerate(content["Instances"], 1) if _split(instance, share) == split),
            partial(_example, definition=definition),
            count_bad if config.allow_bad_rows else None,
            lambda n: f"{path}, instance {n}",
            f"{path}, {split} part by tasks.test_share={share} of {len(content['Instances'])} instances",
        )

    def digest(split: str) -> str:
        parts = [file_digest(path), split, share, config.allow_bad_rows]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    return Task(name, _cluster(path, _load(path)), read, str(path), digest, bad_rows)


def _load(path: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise Refusal(BAD_INPUT, f"{path}:{error.lineno}: not valid JSON ({error.msg}); fetch it again") from None
    except (ValueError, RecursionError):
        raise Refusal(BAD_INPUT, f"{path} is not a JSON text in UTF-8; fetch it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("Instances"), list):
        raise Refusal(BAD_INPUT, f"{path} is no task: it has no list 'Instances'; mend it or move it away")
    return content


def _first(value: Any) -> Any:
    """The first of a list, where there is a list."""
    return value if not isinstance(value, list) else value[0] if value else None


def _definition(path: epath.Path, content: dict[str, Any]) -> str:
    definition = _first(content.get("Definition"))
    try:
        check_text(definition, "Definition")
    except BadRow as problem:
        raise Refusal(BAD_INPUT, f"{path}: {problem}; mend it or move it away") from None
    return definition


def _cluster(path: epath.Path, content: dict[str, Any]) -> str:
    cluster = _first(content.get("Categories"))
    if cluster is None:
        return NO_CLUSTER
    try:
        check_text(cluster, "Categories")
    except BadRow as problem:
        raise Refusal(BAD_INPUT, f"{path}: {problem}; mend it or move it away") from None
    return cluster


def _split(instance: Any, test_share: float) -> str:
    """Where an instance belongs; unusable ones are met in `train`."""
    try:
        return split_of(_input(instance), test_share)
    except BadRow:
        return "train"


def _input(instance: Any) -> str:
    if not isinstance(instance, dict):
        raise BadRow(f"a {type(instance).__name__}, not an object with 'input' and 'output'")
    check_text(instance.get("input"), "input")
    return instance["input"]


def _example(instance: Any, definition: str) -> Example:
    prompt = _input(instance)
    answer = _first(instance.get("output"))
    check_text(answer, "output")
    return Example(f"{definition}\n\n{prompt}", answer)
