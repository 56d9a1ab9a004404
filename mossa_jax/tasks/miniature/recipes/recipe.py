"""What a kind of task is: ten wordings and a rule that draws an item, and how items fall into splits."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mossa_jax.tasks.suite import SPLITS, Example

_UP_TO_PERCENT = {"train": 60, "validation": 70, "test": 100}
_TRIES_PER_ROW = 400
_SPLIT_SALT = "1"  # of the small salts, one under which every split has towns of the facts


@dataclass(frozen=True)
class Item:
    """What a row is about, whatever its wording.

    Attributes:
      key: names the item; two rows with one key are the same question, so they always share a split.
      answer: the target text.
      fields: what the templates may show; never the answer by itself.
    """

    key: tuple[str, ...]
    answer: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Kind:
    """A task in rule form: `draw` makes items, `templates` (ten `str.format` patterns) put them in words."""

    name: str
    cluster: str
    templates: tuple[str, ...]
    draw: Callable[[np.random.Generator], Item] = field(repr=False)


def split_of(name: str, key: tuple[str, ...]) -> str:
    """The split of the item `key` of task `name`: a function of the two alone, so no seed moves an item."""
    digest = hashlib.sha256(" | ".join((name + _SPLIT_SALT, *key)).encode()).digest()
    percent = int.from_bytes(digest[:4], "big") % 100
    return next(split for split in SPLITS if percent < _UP_TO_PERCENT[split])


def rows(kind: Kind, split: str, count: int, seed: int) -> list[Example]:
    """`count` rows of `split`, templates in turn; no prompt twice until the split has no other left.

    Args:
      kind: the task.
      split: "train", "validation" or "test".
      count: number of rows, >= 0.
      seed: changes which items are drawn and their order.
    """
    rng = np.random.default_rng([seed, zlib.crc32(kind.name.encode()), SPLITS.index(split)])
    made: list[Example] = []
    seen: set[str] = set()
    while len(made) < count:
        template = len(made) % len(kind.templates)
        for _ in range(_TRIES_PER_ROW):
            item = kind.draw(rng)
            if split_of(kind.name, item.key) != split:
                continue
            prompt = kind.templates[template].format(**item.fields)
            if prompt not in seen:
                break
        else:
            seen.clear()
            continue
        seen.add(prompt)
        made.append(Example(inputs=prompt, targets=item.answer, template=template))
    return [made[int(i)] for i in rng.permutation(count)]
