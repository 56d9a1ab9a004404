"""Packing: several short sequences in one row, apart by segment ids, positions restarting. Pure NumPy.

Packed once, globally: a batch is then a pure function of (rows, seed, step), the same on 1 and on 64 hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from mossa_jax.tokens.encoded import Encoded, Examples, in_memory


@dataclass(frozen=True)
class TrainingRows:
    """A batch of packed rows to learn from; all int32, n rows of S positions with at most M answer tokens.

    Attributes:
      tokens: [n, S].
      segments: [n, S], 1, 2, ... per example, 0 on padding.
      positions: [n, S], restarting in every segment.
      predict: [n, M], columns whose next token is part of an answer (or its EOS).
      labels: [n, M], that next token; -1 where there is none.
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
    """Packed prompts to read states from; all int32, n rows of S positions with at most P prompts.

    Attributes:
      tokens, segments, positions: as in `TrainingRows`.
      ends: [n, P], column of each prompt's last token.
      ids: [n, P], index of the prompt in the list that was packed; -1 where there is none.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(self, size: int) -> list[PromptRows]:
        """Batches of exactly `size` rows; the last one is filled up with empty rows."""
        found = []
        for start in range(0, len(self), size):
            parts = []
            for field in fields(self):
                part = getattr(self, field.name)[start : start + size]
                pad = [(0, size - len(part)), *[(0, 0)] * (part.ndim - 1)]
                parts.append(np.pad(part, pad, constant_values=-1 if field.name == "ids" else 0))
            found.append(PromptRows(*parts))
        return found


@dataclass(frozen=True)
class Plan:
    """Which items go to which row.

    Attributes:
      items: [n] int64, row after row and, in a row, in order of placing.
      counts: [rows] int64, how many of them each row holds.
    """

    items: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, index: np.ndarray) -> Plan:
        """The rows at `index`, in that order."""
        counts = self.counts[index]
        firsts = (np.cumsum(self.counts) - self.counts)[index]
        return Plan(self.items[np.repeat(firsts, counts) + _counting(counts)], counts)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """[rows]: the sum over each row of a value that every item has."""
        return np.bincount(np.repeat(np.arange(len(self)), self.counts), values[self.items], len(self))


def _counting(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... up to each count, one behind the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


@dataclass(frozen=True)
class _Rows:
    """Where the tokens of a plan's items go in rows of `length` positions.

    Attributes:
      shape: (rows, length).
      places: of each item, counted through all rows.
      at: of each token.
      segments, positions: of each token: the number of its item in the row, from 1, and its own in the item, from 0.
    """

    shape: tuple[int, int]
    places: np.ndarray
    at: np.ndarray
    segments: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, plan: Plan, sizes: np.ndarray, length: int) -> _Rows:
        sizes = sizes.astype(np.int64)
        before = np.cumsum(sizes) - sizes
        first = before[np.cumsum(plan.counts) - plan.counts]  # tokens in all rows before
        places = np.repeat(np.arange(len(plan)) * length - first, plan.counts) + before
        positions = _counting(sizes)
        segments = np.repeat(_counting(plan.counts) + 1, sizes)
        return cls((len(plan), length), places, np.repeat(places, sizes) + positions, segments, positions)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """A value of each token at its place: [rows, length] int32, 0 on padding."""
        rows = np.zeros(self.shape, np.int32)
        rows.reshape(-1)[self.at] = values
        return rows


class _Bins:
    """Rows that are being filled: an item goes to the fullest row that still has room for it.

    (Best fit: never packs worse than first fit, and its row is found in one look-up.)
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.items: list[int] = []
        self.row_of: list[int] = []  # of each of these
        self._rows = 0
        self._open: dict[int, list[int]] = {}  # free space -> rows with just that much
        self._free = 0  # bit s is set when some row has s free

    def put(self, item: int, length: int, new: bool = True) -> bool:
        """Places an item of 1..capacity; without `new` only where some row has room. Whether it was placed."""
        fitting = self._free >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            rows = self._open[free]
            row = rows.pop()
            if not rows:
                self._free &= ~(1 << free)
        elif new:
            free, row = self.capacity, self._rows
            self._rows += 1
        else:
            return False
        self.items.append(item)
        self.row_of.append(row)
        rest = free - length
        if rest:
            self._open.setdefault(rest, []).append(row)
            self._free |= 1 << rest
        return True

    def plan(self) -> Plan:
        row_of = np.asarray(self.row_of, np.int64)
        by_row = np.argsort(row_of, kind="stable")
        return Plan(np.asarray(self.items, np.int64)[by_row], np.bincount(row_of, minlength=self._rows))


def plan_rows(lengths: Sequence[int], short: int, long: int = 0) -> tuple[Plan, Plan]:
    """Groups items into rows: first-fit decreasing (with best fit), deterministic.

    What does not fit `short` positions goes to rows of `long`, whose gaps are then filled with what does.

    Args:
      lengths: of the items.
      short, long: positions of the two kinds of rows; long 0: there is only one kind.

    Returns:
      The short rows and the long ones.

    Raises:
      ValueError: an item has no length, or fits no row.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    if len(lengths) and not (0 < lengths[order[-1]] and lengths[order[0]] <= max(short, long)):
        worst = order[-1] if lengths[order[-1]] <= 0 else order[0]
        raise ValueError(f"item {worst} has length {lengths[worst]}, which is not in 1..{max(short, long)}")
    few, many = _Bins(short), _Bins(long)
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if length > short:
            many.put(item, length)
        elif not many.put(item, length, new=False):
            few.put(item, length)
    return few.plan(), many.plan()


@dataclass(frozen=True)
class PackedExamples:
    """Rows of examples, by index: the ids stay where they are, and a batch of rows is put together when it is taken.

    Attributes:
      examples: what is packed.
      plan: which of them go to which row.
      length: S, positions of a row.
      width: the most answer tokens in a row.
    """

    examples: Examples
    plan: Plan
    length: int
    width: int

    def __len__(self) -> int:
        return len(self.plan)

    def take(self, index: np.ndarray, width: int | None = None) -> TrainingRows:
        """The rows at `index` as a batch with M = `width` (default: `self.width`)."""
        plan, examples = self.plan.take(index), self.examples
        prompts, answers = examples.prompt_lengths[plan.items], examples.answer_lengths[plan.items]
        rows = _Rows.of(plan, prompts + answers, self.length)
        tokens = rows.spread(examples.gather(plan.items))
        # The answers' tokens, one behind the other: where they are predicted, and what they are.
        at = np.repeat(rows.places + prompts, answers) + _counting(answers)
        row = at // self.length
        counts = np.bincount(row, minlength=len(plan))
        slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        shape = (len(plan), self.width if width is None else width)
        predict, labels = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        predict[row, slot], labels[row, slot] = at % self.length - 1, tokens.reshape(-1)[at]
        return TrainingRows(tokens, rows.spread(rows.segments), rows.spread(rows.positions), predict, labels)

    def nothing(self, rows: int, width: int) -> TrainingRows:
        """A batch of empty rows of the same length."""
        blank = np.zeros((rows, self.length), np.int32)
        none = np.zeros((rows, width), np.int32)
        return TrainingRows(blank, blank, blank, none, none - 1)


def pack_examples(examples: Examples, length: int, long: int = 0) -> tuple[PackedExamples, ...]:
    """Packs prompts with their answers; the loss is on answers and EOS only.

    Args:
      examples: to pack.
      length, long: as `short` and `long` in `plan_rows`.

    Returns:
      The rows of `length` positions and, where there are any, those of `long`.
    """
    short, more = plan_rows(examples.lengths, length, long)
    answers = lambda plan: plan.sums(examples.answer_lengths).max(initial=0)  # noqa: E731
    found = PackedExamples(examples, short, length, int(answers(short)))
    return (found, PackedExamples(examples, more, long, int(answers(more)))) if len(more) else (found,)


def pack_text(documents: Sequence[Sequence[int]], length: int) -> PackedExamples:
    """Packs whole documents for pre-training: every token after a document's first is a label."""
    cut = [list(ids)[:length] for ids in documents if len(ids) > 1]
    return pack_examples(in_memory(Encoded(ids[:1], ids[1:]) for ids in cut), length)[0]


def pack_prompts(prompts: Sequence[Sequence[int]], length: int, long: int = 0) -> tuple[PromptRows, ...]:
    """Packs prompts; `ids` says which prompt is where.

    Returns:
      The rows of `length` positions and those of `long`, where there are any; none of them is empty.
    """
    lengths = np.asarray([len(ids) for ids in prompts], np.int64)
    found = []
    for plan, size in zip(plan_rows(lengths, length, long), (length, long), strict=True):
        if not len(plan):
            continue
        rows = _Rows.of(plan, lengths[plan.items], size)
        ends = np.zeros((len(plan), plan.counts.max()), np.int32)
        ids = np.full(ends.shape, -1, np.int32)
        row, column = np.repeat(np.arange(len(plan)), plan.counts), _counting(plan.counts)
        ends[row, column], ids[row, column] = rows.places % size + lengths[plan.items] - 1, plan.items
        tokens = rows.spread(np.concatenate([prompts[item] for item in plan.items]))
        found.append(PromptRows(tokens, rows.spread(rows.segments), rows.spread(rows.positions), ends, ids))
    return tuple(found)


def batch_index(rows: int, batch: int, seed: Sequence[int], step: int) -> np.ndarray:
    """Which rows are in the batch of `step`: [batch] int64, a pure function of the arguments.

    Epochs follow one another without a gap; each is a permutation of all rows, drawn from (seed, epoch).
    """
    flat = np.arange(step * batch, (step + 1) * batch)
    epochs = flat // rows
    index = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([*seed, int(epoch)]).permutation(rows)
        here = epochs == epoch
        index[here] = order[flat[here] % rows]
    return index


@dataclass(frozen=True)
class Batches:
    """The batches of one model: each of rows of one length, long ones spread evenly among short ones.

    Attributes:
      rows: how many rows there are, short and long.
      sizes: how many of them make a batch; a batch of long rows has about as many positions as one of short rows.
      seed: what the order of rows is drawn from.
    """

    rows: tuple[int, int]
    sizes: tuple[int, int]
    seed: tuple[int, ...] = ()

    @property
    def per_epoch(self) -> float:
        """Batches that show every row once."""
        return self.rows[0] / self.sizes[0] + self.rows[1] / self.sizes[1]

    def at(self, step: int) -> tuple[int, np.ndarray]:
        """The batch of `step`: 0 for short rows or 1 for long ones, and their index. A pure function."""
        long = self.rows[1] * self.sizes[0]  # of every `long + short` batches, `long` are of long rows
        whole = long + self.rows[0] * self.sizes[1]
        before = step * long // whole
        if (step + 1) * long // whole > before:
            return 1, batch_index(self.rows[1], self.sizes[1], (*self.seed, 1), before)
        return 0, batch_index(self.rows[0], self.sizes[0], self.seed, step - before)


def batches_of(rows: Sequence[int], batch_rows: int, length: int, long: int = 0, seed: Sequence[int] = ()) -> Batches:
    """The batches that `batch_rows` short rows a step make of so many short (and long) rows."""
    short, more = (*rows, 0)[:2]
    return Batches((short, more), (batch_rows, max(batch_rows * length // long, 1) if long else 1), tuple(seed))
