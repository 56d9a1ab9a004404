"""Packing: several short sequences in one row, apart by segment ids, positions restarting. Pure NumPy.

Packed once, globally: a batch is then a pure function of (rows, seed, step), the same on 1 and on 64 hosts.

Ids that all prompts begin with (a template's system prompt) can stand once at the head of each row, segment -1, seen by
all that stands behind them: what is computed of them is the same for every sequence of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from mossa_jax.config import Tokens
from mossa_jax.tokens.encoded import Encoded, Examples, in_memory

WORTH = 0.15  # share of all ids that leading ones must make up before they are shared
_SAMPLE, _CHUNK = 1_000, 1_000_000  # examples looked at first; ids compared at once


@dataclass(frozen=True)
class TrainingRows:
    """A batch of packed rows to learn from; all int32, n rows of S positions with at most M answer tokens.

    Attributes:
      tokens: [n, S].
      segments: [n, S], 1, 2, ... per example, 0 on padding, -1 on the ids that all examples share.
      positions: [n, S], restarting in every segment: from 0, or from behind the shared ids.
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
      shared: [P] int32, ids that stand at the head of every row.
      places: of each item, counted through all rows.
      at: of each token.
      segment_of, position_of: of each token: the number of its item in the row, from 1, and its own in the item,
        from P.
    """

    shape: tuple[int, int]
    shared: np.ndarray
    places: np.ndarray
    at: np.ndarray
    segment_of: np.ndarray
    position_of: np.ndarray

    @classmethod
    def of(cls, plan: Plan, sizes: np.ndarray, length: int, shared: np.ndarray) -> _Rows:
        sizes = sizes.astype(np.int64)
        before = np.cumsum(sizes) - sizes
        first = before[np.cumsum(plan.counts) - plan.counts]  # tokens in all rows before
        places = np.repeat(np.arange(len(plan)) * length + len(shared) - first, plan.counts) + before
        inside = _counting(sizes)
        segments = np.repeat(_counting(plan.counts) + 1, sizes)
        at = np.repeat(places, sizes) + inside
        return cls((len(plan), length), shared, places, at, segments, inside + len(shared))

    def tokens(self, ids: np.ndarray) -> np.ndarray:
        """[rows, length] int32 of the items' ids, one item behind the other."""
        return self._spread(ids, self.shared)

    def segments(self) -> np.ndarray:
        """[rows, length] int32."""
        return self._spread(self.segment_of, -1)

    def positions(self) -> np.ndarray:
        """[rows, length] int32."""
        return self._spread(self.position_of, np.arange(len(self.shared)))

    def _spread(self, values: np.ndarray, head: np.ndarray | int) -> np.ndarray:
        """A value of each token at its place, behind those of the shared ids; 0 on padding."""
        rows = np.zeros(self.shape, np.int32)
        rows[:, : len(self.shared)] = head
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
      examples: what is packed, without the ids that they share.
      plan: which of them go to which row.
      length: S, positions of a row.
      width: the most answer tokens in a row.
      prefix: [P] int32, the ids that they share.
    """

    examples: Examples
    plan: Plan
    length: int
    width: int
    prefix: np.ndarray

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def shared(self) -> int:
        """P, how many ids stand once at the head of every row."""
        return len(self.prefix)

    @property
    def max_own(self) -> int:
        """The most ids that an example has of its own."""
        return int(self.examples.lengths[self.plan.items].max(initial=0))

    def take(self, index: np.ndarray, width: int | None = None) -> TrainingRows:
        """The rows at `index` as a batch with M = `width` (default: `self.width`)."""
        plan, examples = self.plan.take(index), self.examples
        prompts, answers = examples.prompt_lengths[plan.items], examples.answer_lengths[plan.items]
        rows = _Rows.of(plan, prompts + answers, self.length, self.prefix)
        tokens = rows.tokens(examples.gather(plan.items))
        # The answers' tokens, one behind the other: where they are predicted, and what they are.
        at = np.repeat(rows.places + prompts, answers) + _counting(answers)
        row = at // self.length
        counts = np.bincount(row, minlength=len(plan))
        slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        shape = (len(plan), self.width if width is None else width)
        predict, labels = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        predict[row, slot], labels[row, slot] = at % self.length - 1, tokens.reshape(-1)[at]
        return TrainingRows(tokens, rows.segments(), rows.positions(), predict, labels)


def shared_prefix(examples: Examples) -> int:
    """How many leading ids all prompts have in common, where sharing them is worth it.

    At most one less than the shortest prompt has, so that every example keeps an id of its own to predict from; 0
    where they make up no more than 15 % of all ids.
    """
    if not (count := len(examples)):
        return 0
    length = int(examples.prompt_lengths.min()) - 1
    worth = WORTH * examples.lengths.sum(dtype=np.int64)
    # A few from all over the list tell most of it; then all of them, as long as there is something left to share.
    for items in (np.arange(0, count, max(count // _SAMPLE, 1)), np.arange(count)):
        step = max(_CHUNK // max(length, 1), 1)
        for start in range(0, len(items), step):
            if length * count <= worth:
                return 0
            length = _common(examples, items[start : start + step], length)
    return length if length * count > worth else 0


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading ids all prompts have in common, where sharing them is worth it, as in `shared_prefix`."""
    return shared_prefix(in_memory(Encoded(ids, ()) for ids in prompts))


def _common(examples: Examples, items: np.ndarray, length: int) -> int:
    """How many of the first `length` ids of example 0 all of `items` have as well."""
    wanted = examples.prompt(0)[:length]
    for number in np.unique(examples.store[items]):
        starts = examples.starts[items[examples.store[items] == number]]
        found = examples.stores[number][starts[:, None] + np.arange(length)]
        same = (found == wanted[:length]).all(axis=0)
        length = int(np.append(same, False).argmin())
    return length


def pack_examples(examples: Examples, length: int, long: int = 0, shared: int = 0) -> tuple[PackedExamples, ...]:
    """Packs prompts with their answers; the loss is on answers and EOS only.

    Args:
      examples: to pack.
      length, long: as `short` and `long` in `plan_rows`.
      shared: P, leading ids that all prompts have in common (`shared_prefix`): every row begins with them, segment
        -1, positions 0..P-1, and the examples follow without them, their positions from P on.

    Returns:
      The rows of `length` positions and, where there are any, those of `long`.
    """
    prefix = np.asarray(examples.prompt(0)[:shared]) if shared else np.zeros(0, np.int32)
    own = replace(examples, starts=examples.starts + shared, prompt_lengths=examples.prompt_lengths - shared)
    found = []
    for plan, size in zip(plan_rows(own.lengths, length - shared, max(long - shared, 0)), (length, long), strict=True):
        if size == length or len(plan):
            width = int(plan.sums(own.answer_lengths).max(initial=0))
            found.append(PackedExamples(own, plan, size, width, prefix))
    return tuple(found)


def pack_text(documents: Sequence[Sequence[int]], length: int) -> PackedExamples:
    """Packs whole documents for pre-training: every token after a document's first is a label."""
    cut = [list(ids)[:length] for ids in documents if len(ids) > 1]
    return pack_examples(in_memory(Encoded(ids[:1], ids[1:]) for ids in cut), length)[0]


def pack_prompts(
    prompts: Sequence[Sequence[int]], length: int, long: int = 0, shared: int = 0
) -> tuple[PromptRows, ...]:
    """Packs prompts; `ids` says which prompt is where.

    Args:
      prompts: ids of each.
      length, long: as `short` and `long` in `plan_rows`.
      shared: leading ids that all prompts have in common; they stand in no row, and positions begin behind them.

    Returns:
      The rows of `length` positions and those of `long`, where there are any; none of them is empty.
    """
    lengths = np.asarray([len(ids) - shared for ids in prompts], np.int64)
    found = []
    for plan, size in zip(plan_rows(lengths, length, long), (length, long), strict=True):
        if not len(plan):
            continue
        rows = _Rows.of(plan, lengths[plan.items], size, np.zeros(0, np.int32))
        ends = np.zeros((len(plan), plan.counts.max()), np.int32)
        ids = np.full(ends.shape, -1, np.int32)
        row, column = np.repeat(np.arange(len(plan)), plan.counts), _counting(plan.counts)
        ends[row, column], ids[row, column] = rows.places % size + lengths[plan.items] - 1, plan.items
        tokens = rows.tokens(np.concatenate([prompts[item][shared:] for item in plan.items]))
        segments = rows.segments()
        found.append(PromptRows(tokens, segments, rows.positions() + shared * (segments > 0), ends, ids))
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


def rows_per_batch(batch_rows: int, row_length: int, length: int) -> int:
    """Returns how many rows of `length` positions fill as many positions as a batch of rows of `row_length`.

    Batches of long rows so take about as much memory and time as batches of short ones.

    Args:
      batch_rows: rows of `row_length` positions in a batch.
      row_length: positions of those rows.
      length: positions of the other rows.
    """
    return max(batch_rows * row_length // length, 1)


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts packed into rows, and the ids that they share.

    Attributes:
      rows: the rows of `row_length` positions, then those of `long_row_length`; neither if it would be empty.
      prefix: [P] int32, ids that all prompts begin with and that stand in no row; [0] where none are shared.
      max_own: the most ids that a prompt has behind the prefix.
    """

    rows: tuple[PromptRows, ...]
    prefix: np.ndarray
    max_own: int


@dataclass(frozen=True)
class Packing:
    """How sequences are packed into rows: the one rule from a run's configuration to its training rows and prompts.

    Attributes:
      row_length: S, positions of a row.
      long_row_length: positions of the rows for sequences that do not fit `row_length`; 0 if every sequence fits.
      share_prefix: whether ids that all sequences begin with are worked through once for all of them, where the model
        allows it and they make up more than 15 % of all ids.
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
          may_share: whether the model allows sequences to share a prefix (`llama.model.shareable`).

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


def packed(examples: Examples, tokens: Tokens, may_share: bool) -> tuple[PackedExamples, ...]:
    """Examples in the rows that a configuration asks for; ids that all prompts begin with once a row, if they may."""
    shared = shared_prefix(examples) if tokens.share_prefix and may_share else 0
    return pack_examples(examples, tokens.row_length, tokens.long_row_length, shared)
