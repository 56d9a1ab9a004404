"""Prompts in JSONL files, for `launch.compare`: one list per file, with what its rows say of items and templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath

from mossa_jax.config import Columns
from mossa_jax.tasks.items import items_of
from mossa_jax.tasks.row_files import read_prompts


@dataclass(frozen=True)
class PromptLists:
    """The prompts of files, in the form that `mossa.compare` takes.

    Attributes:
      prompts: file -> n texts.
      items: file -> [n] int, the same for prompts whose rows name one item; None if no row names any.
      templates: file -> [n] int, the wording of each prompt; None if some row does not say.
    """

    prompts: dict[str, list[str]]
    items: dict[str, np.ndarray | None]
    templates: dict[str, np.ndarray | None]


def read_prompt_files(files: Sequence[str]) -> PromptLists:
    """Reads files with an object per line: `inputs`, the prompt, and optionally `item` and `template`, as in a suite.

    Raises:
      Refusal: 3, with file and line, for a line that cannot be used, or a file without any that can.
    """
    lists = PromptLists({}, {}, {})
    for file in files:
        rows = list(read_prompts(epath.Path(file), Columns()))
        items, templates = [row.item for row in rows], [row.template for row in rows]
        lists.prompts[file] = [row.inputs for row in rows]
        lists.items[file] = items_of(items) if any(items) else None
        lists.templates[file] = np.asarray(templates) if min(templates) >= 0 else None
    return lists
