"""Packing: several short sequences in one row, apart by segment ids, positions restarting. Pure NumPy.

Packed once, globally: a batch is then a pure function of (rows, seed, step), the same on 1 and on 64 hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from mossa_jax.cache import build_once
from mossa_jax.rundir import digest
from mossa_jax.tokens.encoded import Encoded, Examples, in_memory

_FORMAT = 1  # of the files below; another number makes them anew
_CHUNK = 2_048


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
class PackedExamples:
    """Rows of S positions, in memory or mapped from disk: 7 bytes a position, the rest is made for a batch at a time.

    Attributes:
      tokens: [n, S] int32.
      segments: [n, S] int16, 1, 2, ... per example, 0 on padding.
      answers: [n, S] bool, where a token is part of an answer.
      width: the most answer tokens in a row.
    """

    tokens: np.ndarray
    segments: np.ndarray
    answers: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """S, positions of a row."""
        return self.tokens.shape[1]

    def take(self, index: np.ndarray, width: int | None = None) -> TrainingRows:
        """The rows at `index` as a batch with M = `width` (default: `self.width`)."""
        tokens, segments = self.tokens[index], self.segments[index].astype(np.int32)
        row, column = np.nonzero(self.answers[index])
        counts = np.bincount(row, minlength=len(tokens))
        slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        shape = (len(tokens), self.width if width is None else width)
        predict, labels = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        predict[row, slot], labels[row, slot] = column - 1, tokens[row, column]
        return TrainingRows(tokens, segments, restarting(segments), predict, labels)

    def nothing(self, rows: int, width: int) -> TrainingRows:
        """A batch of empty rows of the same length."""
        blank = np.zeros((rows, self.length), np.int32)
        none = np.zeros((rows, width), np.int32)
        return TrainingRows(blank, blank, blank, none, none - 1)


def restarting(segments: np.ndarray) -> np.ndarray:
    """Positions that restart in every segment: [n, S] int32, 0 on padding."""
    columns = np.arange(segments.shape[1], dtype=np.int32)
    first = np.ones(segments.shape, bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    begin = np.maximum.accumulate(np.where(first, columns, 0), axis=1)
    return ((columns - begin) * (segments > 0)).astype(np.int32)


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


class _Bins:
    """Rows that are being filled: an item goes to the fullest row that still has room for it.

    (Best fit: never packs worse than first fit, and its row is found in one look-up.)
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.rows: list[list[int]] = []
        self._open: dict[int, list[int]] = {}  # free space -> rows with just that much
        self._free = 0  # bit s is set when some row has s free

    def put(self, item: int, length: int, new: bool = True) -> bool:
        """Places an item of 1..capacity; without `new` only where some row has room. Whether it was placed."""
        fitting = self._free >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = self._open[free].pop()
            if not self._open[free]:
                self._free &= ~(1 << free)
        elif new:
            free, row = self.capacity, len(self.rows)
            self.rows.append([])
        else:
            return False
        self.rows[row].append(item)
        rest = free - length
        if rest:
            self._open.setdefault(rest, []).append(row)
            self._free |= 1 << rest
        return True


def plan_rows(lengths: Sequence[int], short: int, long: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Groups items into rows: first-fit decreasing (with best fit), deterministic.

    What does not fit `short` positions goes to rows of `long`, whose gaps are then filled with what does.

    Args:
      lengths: of the items.
      short, long: positions of the two kinds of rows; long 0: there is only one kind.

    Returns:
      Rows of item indices, short ones and long ones; in a row, in order of placing.

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
    return few.rows, many.rows


def _layout(rows: list[list[int]], lengths: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
    """Where the items of some rows go, item after item: (items, their places from row 0's start, segment numbers)."""
    counts = np.asarray([len(row) for row in rows])
    items = np.asarray([item for row in rows for item in row], np.int64)
    sizes = lengths[items]
    before = np.cumsum(sizes) - sizes
    first = np.cumsum(counts) - counts
    in_row = before - np.repeat(before[first], counts)
    places = np.repeat(np.arange(len(rows)), counts) * length + in_row
    return items, places, np.arange(len(items)) - np.repeat(first, counts) + 1


def _spread(places: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every token of items at `places`: its flat place, and its number within its item."""
    inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(places, sizes) + inside, inside


def _fill(
    examples: Examples, rows: list[list[int]], length: int, allocate: Callable[[str, tuple[int, int], type], np.ndarray]
) -> PackedExamples:
    shape = (len(rows), length)
    tokens, segments = allocate("tokens", shape, np.int32), allocate("segments", shape, np.int16)
    answers = allocate("answers", shape, np.bool_)
    lengths, prompts = examples.lengths.astype(np.int64), examples.prompt_lengths
    width = 0
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        items, places, numbers = _layout(part, lengths, length)
        at, inside = _spread(places, lengths[items])
        here = [array[start : start + len(part)].reshape(-1) for array in (tokens, segments, answers)]
        here[0][at] = examples.gather(items)
        here[1][at] = np.repeat(numbers, lengths[items])
        here[2][at] = inside >= np.repeat(prompts[items], lengths[items])
        width = max(width, int(here[2].reshape(len(part), length).sum(axis=1).max()))
    return PackedExamples(tokens, segments, answers, width)


def pack_examples(examples: Examples, length: int, long: int = 0) -> tuple[PackedExamples, ...]:
    """Packs prompts with their answers in memory; the loss is on answers and EOS only.

    Args:
      examples: to pack.
      length, long: as `short` and `long` in `plan_rows`.

    Returns:
      The rows of `length` positions and, where there are any, those of `long`.
    """
    kinds = zip(plan_rows(examples.lengths, length, long), (length, long), strict=True)
    return tuple(
        _fill(examples, rows, size, lambda _, shape, dtype: np.zeros(shape, dtype))
        for rows, size in kinds
        if rows or size == length
    )


def packed_on_disk(examples: Examples, length: int, long: int = 0) -> tuple[PackedExamples, ...]:
    """`pack_examples` in files of the cache, memory-mapped; found there when these examples were packed before."""

    def build(folder: Path) -> None:
        planned = plan_rows(examples.lengths, length, long)
        for kind, (rows, size) in enumerate(zip(planned, (length, long), strict=True)):
            if not rows:
                continue

            def allocate(name: str, shape: tuple[int, int], dtype: type, kind: int = kind) -> np.ndarray:
                return np.lib.format.open_memmap(folder / f"{name}-{kind}.npy", "w+", dtype, shape)

            packed = _fill(examples, rows, size, allocate)
            np.save(folder / f"width-{kind}.npy", packed.width)

    folder = build_once(f"packed/{digest([_FORMAT, examples.key, length, long])}", build)

    def kept(kind: int, size: int) -> PackedExamples:
        if not (folder / f"width-{kind}.npy").exists():
            empty = [np.zeros((0, size), dtype) for dtype in (np.int32, np.int16, np.bool_)]
            return PackedExamples(*empty, 0)
        names = ("tokens", "segments", "answers")
        arrays = [np.asarray(np.load(folder / f"{name}-{kind}.npy", mmap_mode="r")) for name in names]
        return PackedExamples(*arrays, int(np.load(folder / f"width-{kind}.npy")))

    found = [kept(0, length), kept(1, long)]
    return tuple(found) if len(found[1]) else (found[0],)


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
    for rows, size in zip(plan_rows(lengths, length, long), (length, long), strict=True):
        if not rows:
            continue
        items, places, numbers = _layout(rows, lengths, size)
        at, inside = _spread(places, lengths[items])
        tokens, segments, positions = (np.zeros(len(rows) * size, np.int32) for _ in range(3))
        tokens[at] = np.concatenate([prompts[item] for item in items])
        segments[at], positions[at] = np.repeat(numbers, lengths[items]), inside
        ends = np.zeros((len(rows), max(len(row) for row in rows)), np.int32)
        ids = np.full(ends.shape, -1, np.int32)
        row, column = places // size, numbers - 1
        ends[row, column], ids[row, column] = places % size + lengths[items] - 1, items
        shaped = [array.reshape(len(rows), size) for array in (tokens, segments, positions)]
        found.append(PromptRows(*shaped, ends, ids))
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
