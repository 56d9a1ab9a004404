"""Decides which packed rows make the batch of a step: a pure function of the rows, the seed and the step.

A resumed run, and a run on another number of hosts, therefore sees the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mossa_jax.tokens.rows import PackedExamples


def batch_index(rows: int, batch: int, seed: Sequence[int], step: int) -> np.ndarray:
    """Returns the rows that are in the batch of `step`: [batch] int64, a pure function of the arguments.

    Epochs follow one another without a gap; each is a permutation of all rows, drawn from (seed, epoch).

    Args:
      rows: how many rows there are.
      batch: how many of them a batch holds; a batch may span several epochs.
      seed: what the permutations are drawn from.
      step: number of the batch, from 0.
    """
    flat = np.arange(step * batch, (step + 1) * batch)
    epochs = flat // rows
    index = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([*seed, int(epoch)]).permutation(rows)
        in_epoch = epochs == epoch
        index[in_epoch] = order[flat[in_epoch] % rows]
    return index


def rows_per_batch(batch_rows: int, row_length: int, length: int) -> int:
    """Returns how many rows of `length` positions fill as many positions as a batch of rows of `row_length`.

    A batch of long rows thus takes about as much memory and time as a batch of short ones.

    Args:
      batch_rows: rows of `row_length` positions in a batch.
      row_length: positions of those rows.
      length: positions of the other rows.
    """
    return max(batch_rows * row_length // length, 1)


@dataclass(frozen=True)
class Batches:
    """The batches of one model: each holds rows of one length, and batches of long rows are spread evenly.

    Attributes:
      rows: how many short and how many long rows there are.
      sizes: how many rows make a batch of short and of long rows.
      seed: what the order of rows is drawn from.
    """

    rows: tuple[int, int]
    sizes: tuple[int, int]
    seed: tuple[int, ...] = ()

    @classmethod
    def of(cls, packed: Sequence[PackedExamples], batch_rows: int, seed: Sequence[int] = ()) -> Batches:
        """Returns the batches of a model's packed rows.

        Args:
          packed: the short rows and, if there are any, the long ones.
          batch_rows: short rows per batch; a batch of long rows has about as many positions.
          seed: what the order of rows is drawn from.
        """
        short, *long = packed
        if not long:
            return cls((len(short), 0), (batch_rows, 1), tuple(seed))
        size = rows_per_batch(batch_rows, short.length, long[0].length)
        return cls((len(short), len(long[0])), (batch_rows, size), tuple(seed))

    @property
    def per_epoch(self) -> float:
        """How many batches show every row once."""
        return self.rows[0] / self.sizes[0] + self.rows[1] / self.sizes[1]

    def at(self, step: int) -> tuple[int, np.ndarray]:
        """Returns the batch of `step`, a pure function: 0 for short rows or 1 for long ones, and their index.

        Args:
          step: number of the batch, from 0.
        """
        # `long` of every `total` batches are batches of long rows.
        long = self.rows[1] * self.sizes[0]
        total = long + self.rows[0] * self.sizes[1]
        long_before = step * long // total
        if (step + 1) * long // total > long_before:
            return 1, batch_index(self.rows[1], self.sizes[1], (*self.seed, 1), long_before)
        return 0, batch_index(self.rows[0], self.sizes[0], self.seed, step - long_before)
