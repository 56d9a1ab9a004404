"""The distinct test prompts of a task, and which of them belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mossa_jax.tokens.encoded import EncodedSplit


@dataclass(frozen=True)
class TestPrompts:
    """Distinct prompts, each as it first occurs; n prompts.

    Attributes:
      ids: n prompts, [length] int32 each.
      items: [n] int32, the same for prompts that belong together beside their template.
      templates: [n] int32, each prompt's instruction template; -1 if the source does not say.
      item_source: where the items come from, as in `EncodedSplit`.
      rows: [n] int64, the row of the split that each prompt is.
    """

    # The name begins with "Test", but the class is no test.
    __test__ = False

    ids: list[np.ndarray]
    items: np.ndarray
    templates: np.ndarray
    item_source: str
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> TestPrompts:
        """Returns the first `count` prompts, or all if there are fewer."""
        return TestPrompts(
            self.ids[:count], self.items[:count], self.templates[:count], self.item_source, self.rows[:count]
        )

    @property
    def template_count(self) -> int | None:
        """Different templates; None if the source does not say."""
        known = self.templates[self.templates >= 0]
        return len(np.unique(known)) if len(known) else None

    @property
    def item_sizes(self) -> np.ndarray:
        """Prompts of each item: [items] int64."""
        return np.unique(self.items, return_counts=True)[1]

    @property
    def related(self) -> float:
        """Share of pairs of prompts that are of one item."""
        pairs = len(self) * (len(self) - 1)
        return float((self.item_sizes * (self.item_sizes - 1)).sum() / pairs) if pairs else 0.0


def distinct_prompts(encoded: EncodedSplit) -> TestPrompts:
    """Returns the distinct prompts of a split; of equal ones the first counts, with its item and template.

    Rows that repeat others act like a bootstrap of rows: they undo the debiasing of CKA and count as evidence.
    """
    first: dict[bytes, int] = {}
    for row in range(len(encoded)):
        first.setdefault(encoded.examples.prompt(row).tobytes(), row)
    rows = np.fromiter(first.values(), np.int64)
    ids = [encoded.examples.prompt(row) for row in rows]
    return TestPrompts(ids, encoded.items[rows], encoded.templates[rows], encoded.item_source, rows)
