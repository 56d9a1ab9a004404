"""Packing: several short sequences in one row, apart by segment ids, positions restarting. Pure NumPy.

Packed once, globally: a batch is then a pure function of (rows, seed, step), the same on 1 and on 64 hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from mossa_jax.tokens.tokenizer import Encoded


@dataclass(frozen=True)
class TrainingRows:
    """Packed rows to learn from; all int32, n rows of S positions with at most M answer tokens.

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

    def take(self, index: np.ndarray) -> TrainingRows:
        """The rows at `index`."""
        return TrainingRows(*(getattr(self, field.name)[index] for field in fields(self)))

    def with_answers(self, width: int) -> TrainingRows:
        """The same with M = `width`, padded."""
        extra = width - self.labels.shape[1]
        pad = ((0, 0), (0, extra))
        return TrainingRows(
            self.tokens,
            self.segments,
            self.positions,
            np.pad(self.predict, pad),
            np.pad(self.labels, pad, constant_values=-1),
        )


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


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Groups items into rows of `capacity`; deterministic, longest first, fullest row that still fits.

    (Among the rows that fit, the fullest is taken: best fit, which never packs worse and is found in one look-up.)

    Returns:
      Rows of item indices; in a row, in order of placing.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # free space -> rows with just that much
    free_sizes = 0  # bit s is set when some row has s free
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[item]
        if not 0 < length <= capacity:
            raise ValueError(f"item {item} has length {length}, which is not in 1..{capacity}")
        fitting = free_sizes >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[free].pop()
            if not open_rows[free]:
                free_sizes &= ~(1 << free)
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(item)
        rest = free - length
        if rest:
            open_rows.setdefault(rest, []).append(row)
            free_sizes |= 1 << rest
    return rows


def _blank(rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.zeros((rows, length), np.int32) for _ in range(3))


def _put(arrays: tuple[np.ndarray, ...], row: int, start: int, segment: int, ids: Sequence[int]) -> None:
    tokens, segments, positions = arrays
    stop = start + len(ids)
    tokens[row, start:stop] = ids
    segments[row, start:stop] = segment
    positions[row, start:stop] = np.arange(len(ids))


def pack_examples(examples: Sequence[Encoded], length: int) -> TrainingRows:
    """Packs prompts with their answers into rows of `length` positions; the loss is on answers and EOS only."""
    rows = first_fit_decreasing([len(e.prompt) + len(e.answer) for e in examples], length)
    arrays = _blank(len(rows), length)
    width = max((sum(len(examples[item].answer) for item in row) for row in rows), default=0)
    predict = np.zeros((len(rows), width), np.int32)
    labels = np.full((len(rows), width), -1, np.int32)
    for index, row in enumerate(rows):
        start = filled = 0
        for segment, item in enumerate(row, 1):
            prompt, answer = examples[item].prompt, examples[item].answer
            _put(arrays, index, start, segment, [*prompt, *answer])
            first = start + len(prompt) - 1
            predict[index, filled : filled + len(answer)] = np.arange(first, first + len(answer))
            labels[index, filled : filled + len(answer)] = answer
            start += len(prompt) + len(answer)
            filled += len(answer)
    return TrainingRows(*arrays, predict, labels)


def pack_text(documents: Sequence[Sequence[int]], length: int) -> TrainingRows:
    """Packs whole documents for pre-training: every token after a document's first is a label."""
    cut = [list(ids)[:length] for ids in documents if len(ids) > 1]
    return pack_examples([Encoded(ids[:1], ids[1:]) for ids in cut], length)


def pack_prompts(prompts: Sequence[Sequence[int]], length: int) -> PromptRows:
    """Packs prompts into rows of `length` positions; `ids` says which prompt is where."""
    rows = first_fit_decreasing([len(ids) for ids in prompts], length)
    arrays = _blank(len(rows), length)
    width = max((len(row) for row in rows), default=0)
    ends = np.zeros((len(rows), width), np.int32)
    ids = np.full((len(rows), width), -1, np.int32)
    for index, row in enumerate(rows):
        start = 0
        for segment, item in enumerate(row):
            _put(arrays, index, start, segment + 1, prompts[item])
            start += len(prompts[item])
            ends[index, segment], ids[index, segment] = start - 1, item
    return PromptRows(*arrays, ends, ids)


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
