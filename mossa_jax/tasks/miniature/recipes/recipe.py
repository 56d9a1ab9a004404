"""Recipes of tasks: ten wordings and a rule that draws items; and how items fall into splits."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mossa_jax.tasks.suite import SPLITS, Example

# An item's hash, in hundredths, lies below the bound of its split and not below that of the split before.
_UP_TO_PERCENT = {"train": 60, "validation": 70, "test": 100}
_TRIES_PER_ROW = 400
# A salt under which every split has towns for the tasks about facts.
_SPLIT_SALT = "1"


@dataclass(frozen=True)
class Item:
    """The content of a row, whatever its wording.

    Attributes:
      key: names the item; two rows with one key are the same question, so they always share a split.
      answer: the target text.
      fields: the values that templates may show; never the answer by itself.
    """

    key: tuple[str, ...]
    answer: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Recipe:
    """A task in rule form.

    Attributes:
      name: the task's name.
      cluster: its cluster.
      templates: ten `str.format` patterns that put an item into words.
      draw: draws an item.
    """

    name: str
    cluster: str
    templates: tuple[str, ...]
    draw: Callable[[np.random.Generator], Item] = field(repr=False)


def split_of_item(name: str, key: tuple[str, ...]) -> str:
    """Returns the split of an item: a function of the task's name and the item's key alone, so no seed moves it."""
    digest = hashlib.sha256(" | ".join((name + _SPLIT_SALT, *key)).encode()).digest()
    percent = int.from_bytes(digest[:4], "big") % 100
    return next(split for split in SPLITS if percent < _UP_TO_PERCENT[split])


def draw_rows(recipe: Recipe, split: str, count: int, seed: int) -> list[Example]:
    """Draws rows of a split, templates in turn; no prompt comes twice until the split has no other left.

    Args:
      recipe: of the task.
      split: "train", "validation" or "test".
      count: number of rows, >= 0.
      seed: changes which items are drawn, and their order.
    """
    rng = np.random.default_rng([seed, zlib.crc32(recipe.name.encode()), SPLITS.index(split)])
    rows: list[Example] = []
    prompts: set[str] = set()
    while len(rows) < count:
        template = len(rows) % len(recipe.templates)
        for _ in range(_TRIES_PER_ROW):
            item = recipe.draw(rng)
            if split_of_item(recipe.name, item.key) != split:
                continue
            prompt = recipe.templates[template].format(**item.fields)
            if prompt not in prompts:
                break
        else:
            prompts.clear()
            continue
        prompts.add(prompt)
        rows.append(Example(prompt, item.answer, template, " | ".join(item.key)))
    return [rows[int(i)] for i in rng.permutation(count)]
