"""How a run packs its sequences: one value that goes from the configuration to training rows and to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mossa_jax.config import Tokens
from mossa_jax.tokens.encoded import Encoded, Examples, in_memory
from mossa_jax.tokens.rows import PackedExamples, PromptRows, pack_examples, pack_prompts

WORTH = 0.15
"""A prefix is shared if it makes up more than this share of all ids."""

# `shared_prefix` first looks at so many examples from all over the list, and compares so many ids at once.
_SAMPLE = 1_000
_CHUNK = 1_000_000


@dataclass(frozen=True)
class PackedSizes:
    """How large packed prompts are: all that the shapes of a pass over them depend on.

    Attributes:
      prompts: how many there are.
      rows: row length -> how many rows of it there are, and the most prompts that one of them holds.
      prefix: P, how many ids all prompts share.
      max_own: the most ids that a prompt has after the prefix.
    """

    prompts: int
    rows: dict[int, tuple[int, int]]
    prefix: int
    max_own: int


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts packed into rows, and the ids that they share.

    Attributes:
      rows: the rows of `row_length` positions, then those of `long_row_length`; neither if it would be empty.
      prefix: [P] int32, ids that all prompts begin with and that stand in no row; empty if none are shared.
      max_own: the most ids that a prompt has after the prefix.
    """

    rows: tuple[PromptRows, ...]
    prefix: np.ndarray
    max_own: int

    @property
    def sizes(self) -> PackedSizes:
        """How large these prompts are, without their ids."""
        prompts = sum(int((rows.ids >= 0).sum()) for rows in self.rows)
        rows = {rows.tokens.shape[1]: rows.ids.shape for rows in self.rows}
        return PackedSizes(prompts, rows, len(self.prefix), self.max_own)


@dataclass(frozen=True)
class Packing:
    """How sequences are packed into rows: the one rule from a run's configuration to its training rows and prompts.

    Attributes:
      row_length: S, positions of a row.
      long_row_length: positions of the rows for sequences that do not fit `row_length`; 0 if every sequence fits.
      share_prefix: whether ids that all sequences begin with are worked through once for all of them, if the model
        allows it and they make up more than `WORTH` of all ids.
    """

    row_length: int
    long_row_length: int = 0
    share_prefix: bool = True

    @classmethod
    def of(cls, tokens: Tokens) -> Packing:
        """Returns the packing that a configuration asks for."""
        return cls(tokens.row_length, tokens.long_row_length, tokens.share_prefix)

    @classmethod
    def fitting(cls, prompts: Sequence[Sequence[int]], multiple: int = 64) -> Packing:
        """Returns the packing with the shortest rows that hold the longest of `prompts`.

        Args:
          prompts: token ids of each.
          multiple: the row length is rounded up to this, so that lists of similar prompts share a compiled program.
        """
        longest = max(len(ids) for ids in prompts)
        return cls(-(-longest // multiple) * multiple)

    def examples(self, examples: Examples, may_share: bool) -> tuple[PackedExamples, ...]:
        """Packs prompts with their answers into training rows.

        Args:
          examples: to pack.
          may_share: whether the model allows sequences to share a prefix (`llama.model.can_share_prefix`).

        Returns:
          The rows of `row_length` positions and, if there are any, those of `long_row_length`.

        Raises:
          ValueError: an example has no ids or fits no row.
        """
        shared = shared_prefix(examples) if self.share_prefix and may_share else 0
        return pack_examples(examples, self.row_length, self.long_row_length, shared)

    def prompts(self, prompts: Sequence[Sequence[int]], may_share: bool) -> PackedPrompts:
        """Packs prompts without answers, as for the states that are read from them.

        Args:
          prompts: token ids of each.
          may_share: whether the model allows prompts to share a prefix, and what is read from them allows it too.

        Raises:
          ValueError: a prompt has no ids or fits no row.
        """
        shared = common_prefix(prompts) if self.share_prefix and may_share else 0
        rows = pack_prompts(prompts, self.row_length, self.long_row_length, shared)
        prefix = np.asarray(prompts[0][:shared] if shared else [], np.int32)
        return PackedPrompts(rows, prefix, max((len(ids) for ids in prompts), default=0) - shared)


def shared_prefix(examples: Examples) -> int:
    """Returns how many leading ids all prompts have in common, if sharing them is worth it.

    At most one less than the shortest prompt has, so that every example keeps an id of its own to predict from; 0
    if the common ids make up no more than `WORTH` of all ids.
    """
    if not (count := len(examples)):
        return 0
    length = int(examples.prompt_lengths.min()) - 1
    threshold = WORTH * examples.lengths.sum(dtype=np.int64)
    # First a sample from all over the list, which settles most cases; then all examples, while a prefix is left.
    for items in (np.arange(0, count, max(count // _SAMPLE, 1)), np.arange(count)):
        step = max(_CHUNK // max(length, 1), 1)
        for start in range(0, len(items), step):
            if length * count <= threshold:
                return 0
            length = _common_ids(examples, items[start : start + step], length)
    return length if length * count > threshold else 0


def common_prefix(prompts: Sequence[Any]) -> int:
    """Returns how many leading ids all prompts have in common, if sharing them is worth it, as in `shared_prefix`."""
    return shared_prefix(in_memory(Encoded(ids, ()) for ids in prompts))


def _common_ids(examples: Examples, items: np.ndarray, length: int) -> int:
    """Returns how many of the first `length` ids of example 0 stand at the head of all of `items` too."""
    reference = examples.prompt(0)[:length]
    for number in np.unique(examples.store[items]):
        starts = examples.starts[items[examples.store[items] == number]]
        # [items of this store, length]
        heads = examples.stores[number][starts[:, None] + np.arange(length)]
        same = (heads == reference[:length]).all(axis=0)
        # The first column that differs; `length` if none does.
        length = int(np.append(same, False).argmin())
    return length
