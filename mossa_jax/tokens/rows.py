"""Lays sequences out in packed rows: several in one row, told apart by segment ids, positions restarting. Pure NumPy.

Rows are planned once, for the whole data set. A batch is then a pure function of (rows, seed, step), the same on 1 and
on 64 hosts.

Ids that all sequences begin with (a template's system prompt) can stand once at the head of each training row, segment
-1, visible to every sequence after them: their keys and values are the same for every sequence of the row.

Letters: n rows or items, S positions of a row, P ids of the shared prefix, M answer tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from mossa_jax.tokens.encoded import Encoded, Examples, in_memory
from mossa_jax.tokens.plan import Plan, count_up, plan_rows

_NO_PREFIX = np.zeros(0, np.int32)

# A row has room for one prompt per so many positions, and for a few in any case.
_IDS_PER_PROMPT, _ALWAYS_ALLOWED = 16, 16


@dataclass(frozen=True)
class TrainingRows:
    """A batch of packed rows to learn from; all int32, n rows of S positions with at most M answer tokens.

    Attributes:
      tokens: [n, S].
      segments: [n, S], 1, 2, ... per example, 0 on padding, -1 on the ids that all examples share.
      positions: [n, S], restarting in every segment: from 0, or from the end of the shared ids.
      predict: [n, M], columns whose next token is part of an answer (or its EOS).
      labels: [n, M], that next token; -1 in unused slots.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    predict: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PromptRows:
    """Packed prompts to read states from; all int32, n rows of S positions with at most m prompts each.

    Attributes:
      tokens: [n, S].
      segments: [n, S], 1, 2, ... per prompt, 0 on padding.
      positions: [n, S], restarting in every segment: from 0, or from the length of the shared prefix.
      ends: [n, m], column of each prompt's last token.
      ids: [n, m], index of the prompt in the list that was packed; -1 in unused slots.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(self, sizes: Sequence[int]) -> list[PromptRows]:
        """Splits the rows into batches of exactly `sizes` rows, in order; the last one is filled up with empty rows."""
        batches = []
        for start, size in zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False):
            columns = []
            for field in fields(self):
                column = getattr(self, field.name)[start : start + size]
                pad = [(0, size - len(column)), *[(0, 0)] * (column.ndim - 1)]
                columns.append(np.pad(column, pad, constant_values=-1 if field.name == "ids" else 0))
            batches.append(PromptRows(*columns))
        return batches


@dataclass(frozen=True)
class _Layout:
    """The places of a plan's tokens in rows of `length` positions that begin with a prefix of P ids.

    Places are counted through all rows: column c of row r is place r x length + c.

    Attributes:
      shape: (rows, length).
      prefix: [P] int32, ids at the head of every row.
      item_places: [items] int64, place of each item's first token.
      token_places: [tokens] int64, place of each token, item after item.
      segment_of: [tokens] int64, number of each token's item within its row, from 1.
      position_of: [tokens] int64, position of each token within its item, from P.
    """

    shape: tuple[int, int]
    prefix: np.ndarray
    item_places: np.ndarray
    token_places: np.ndarray
    segment_of: np.ndarray
    position_of: np.ndarray

    @classmethod
    def of(cls, plan: Plan, sizes: np.ndarray, length: int, prefix: np.ndarray) -> _Layout:
        """Lays out the items of a plan.

        Args:
          plan: which items go to which row.
          sizes: [items] int, tokens of each item, in the plan's order.
          length: positions of a row, the prefix included.
          prefix: [P] int32, ids at the head of every row.
        """
        sizes = sizes.astype(np.int64)
        # Tokens of all items before each item, and before the first item of each row.
        tokens_before = np.cumsum(sizes) - sizes
        row_before = tokens_before[np.cumsum(plan.counts) - plan.counts]
        row_starts = np.arange(len(plan)) * length + len(prefix)
        item_places = np.repeat(row_starts - row_before, plan.counts) + tokens_before
        offsets = count_up(sizes)
        segment_of = np.repeat(count_up(plan.counts) + 1, sizes)
        token_places = np.repeat(item_places, sizes) + offsets
        return cls((len(plan), length), prefix, item_places, token_places, segment_of, offsets + len(prefix))

    def tokens(self, ids: np.ndarray) -> np.ndarray:
        """Puts the items' ids into their rows: [rows, length] int32.

        Args:
          ids: [tokens] int32, item after item.
        """
        return self._scatter(ids, self.prefix)

    def segments(self) -> np.ndarray:
        """Returns the segment ids of all rows: [rows, length] int32."""
        return self._scatter(self.segment_of, -1)

    def positions(self) -> np.ndarray:
        """Returns the positions of all rows: [rows, length] int32."""
        return self._scatter(self.position_of, np.arange(len(self.prefix)))

    def _scatter(self, values: np.ndarray, prefix_values: np.ndarray | int) -> np.ndarray:
        """Puts each token's value at its place, after the values of the prefix; 0 on padding."""
        rows = np.zeros(self.shape, np.int32)
        rows[:, : len(self.prefix)] = prefix_values
        rows.reshape(-1)[self.token_places] = values
        return rows


@dataclass(frozen=True)
class PackedExamples:
    """Rows of examples, by index: the ids stay where they are until a batch of rows is taken.

    Attributes:
      examples: the packed examples, without the ids that they share.
      plan: which of them go to which row.
      length: S, positions of a row.
      width: the most answer tokens in a row.
      prefix: [P] int32, the ids that all examples share.
    """

    examples: Examples
    plan: Plan
    length: int
    width: int
    prefix: np.ndarray

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def prefix_length(self) -> int:
        """P, how many ids stand once at the head of every row."""
        return len(self.prefix)

    @property
    def max_own(self) -> int:
        """The most ids that an example has besides the prefix."""
        return int(self.examples.lengths[self.plan.items].max(initial=0))

    def take(self, index: np.ndarray, width: int | None = None) -> TrainingRows:
        """Returns the rows at `index` as a batch.

        Args:
          index: [n] int64, numbers of rows.
          width: M, answer tokens that a row has room for; `self.width` by default.
        """
        plan, examples = self.plan.take(index), self.examples
        prompts, answers = examples.prompt_lengths[plan.items], examples.answer_lengths[plan.items]
        layout = _Layout.of(plan, prompts + answers, self.length, self.prefix)
        tokens = layout.tokens(examples.gather(plan.items))
        # Place of every answer token, answer after answer, and the row and slot that it takes in [n, M].
        places = np.repeat(layout.item_places + prompts, answers) + count_up(answers)
        row = places // self.length
        counts = np.bincount(row, minlength=len(plan))
        slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        shape = (len(plan), self.width if width is None else width)
        predict, labels = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        # A token is predicted from the column before it.
        predict[row, slot], labels[row, slot] = places % self.length - 1, tokens.reshape(-1)[places]
        return TrainingRows(tokens, layout.segments(), layout.positions(), predict, labels)


def pack_examples(examples: Examples, length: int, long: int = 0, prefix_length: int = 0) -> tuple[PackedExamples, ...]:
    """Packs prompts with their answers; the loss is on answers and EOS only.

    Args:
      examples: the examples to pack.
      length: positions of a row.
      long: positions of the rows for examples that are longer; 0 if there are none.
      prefix_length: P, leading ids that all prompts have in common (`packing.shared_prefix`). Every row begins with
        them, segment -1, positions 0..P-1; the examples follow without them, their positions from P on.

    Returns:
      The rows of `length` positions and, if there are any, those of `long`.

    Raises:
      ValueError: an example fits no row.
    """
    prefix = np.asarray(examples.prompt(0)[:prefix_length]) if prefix_length else _NO_PREFIX
    own = replace(
        examples,
        starts=examples.starts + prefix_length,
        prompt_lengths=examples.prompt_lengths - prefix_length,
    )
    plans = plan_rows(own.lengths, length - prefix_length, max(long - prefix_length, 0))
    packed = []
    for plan, row_length in zip(plans, (length, long), strict=True):
        if row_length == length or len(plan):
            width = int(plan.sums(own.answer_lengths).max(initial=0))
            packed.append(PackedExamples(own, plan, row_length, width, prefix))
    return tuple(packed)


def pack_text(documents: Sequence[Sequence[int]], length: int) -> PackedExamples:
    """Packs whole documents for pre-training: every token after a document's first is a label.

    Args:
      documents: token ids of each; those with fewer than two are left out, and longer ones are cut to `length`.
      length: positions of a row.
    """
    cut = [list(ids)[:length] for ids in documents if len(ids) > 1]
    return pack_examples(in_memory(Encoded(ids[:1], ids[1:]) for ids in cut), length)[0]


def most_prompts(row_length: int) -> int:
    """Returns how many prompts a row of `row_length` positions may hold.

    Room for a row's prompts is the same in all tasks of a run, so a task of very short prompts must not decide it for
    all others. Only prompts of fewer than 16 ids on average leave positions empty.
    """
    return max(row_length // _IDS_PER_PROMPT, _ALWAYS_ALLOWED)


def pack_prompts(
    prompts: Sequence[Sequence[int]], length: int, long: int = 0, prefix_length: int = 0
) -> tuple[PromptRows, ...]:
    """Packs prompts without answers; `PromptRows.ids` tells which prompt is where.

    Args:
      prompts: token ids of each.
      length: positions of a row.
      long: positions of the rows for prompts that are longer; 0 if there are none.
      prefix_length: P, leading ids that all prompts have in common. They stand in no row, and positions begin at P.

    Returns:
      The rows of `length` positions, then those of `long`; neither if it would be empty.

    Raises:
      ValueError: a prompt has no ids of its own, or fits no row.
    """
    lengths = np.asarray([len(ids) - prefix_length for ids in prompts], np.int64)
    packed = []
    plans = plan_rows(lengths, length, long, (most_prompts(length), most_prompts(long)))
    for plan, row_length in zip(plans, (length, long), strict=True):
        if not len(plan):
            continue
        layout = _Layout.of(plan, lengths[plan.items], row_length, _NO_PREFIX)
        ends = np.zeros((len(plan), plan.counts.max()), np.int32)
        ids = np.full(ends.shape, -1, np.int32)
        row, slot = np.repeat(np.arange(len(plan)), plan.counts), count_up(plan.counts)
        ends[row, slot] = layout.item_places % row_length + lengths[plan.items] - 1
        ids[row, slot] = plan.items
        tokens = layout.tokens(np.concatenate([prompts[item][prefix_length:] for item in plan.items]))
        segments = layout.segments()
        # Padding keeps position 0.
        positions = layout.positions() + prefix_length * (segments > 0)
        packed.append(PromptRows(tokens, segments, positions, ends, ids))
    return tuple(packed)
