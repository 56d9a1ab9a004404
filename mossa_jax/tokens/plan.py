"""Decides which sequences share a packed row: first-fit decreasing over bins, from lengths alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Which items go to which row.

    Attributes:
      items: [n] int64, row after row and, within a row, in the order in which they are laid down.
      counts: [rows] int64, how many items each row holds.
    """

    items: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, index: np.ndarray) -> Plan:
        """Returns the rows at `index`, in that order."""
        counts = self.counts[index]
        firsts = (np.cumsum(self.counts) - self.counts)[index]
        return Plan(self.items[np.repeat(firsts, counts) + count_up(counts)], counts)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over each row a value that every item has: [rows] float64.

        Args:
          values: [items], indexed by item.
        """
        return np.bincount(np.repeat(np.arange(len(self)), self.counts), values[self.items], len(self))


def count_up(counts: np.ndarray) -> np.ndarray:
    """Concatenates 0, 1, ..., c - 1 for each c of `counts`, [n] integers: [sum of counts] int64."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def plan_rows(
    lengths: Sequence[int] | np.ndarray, short: int, long: int = 0, most: tuple[int, int] = (0, 0)
) -> tuple[Plan, Plan]:
    """Groups items into rows: first-fit decreasing (with best fit), deterministic.

    Items that do not fit `short` positions go to rows of `long`, whose gaps are then filled with items that do.

    Args:
      lengths: length of each item.
      short: positions of a short row.
      long: positions of a long row; 0 if there are only short ones.
      most: items that a short and a long row may hold; 0 for any number.

    Returns:
      The plan of the short rows and that of the long ones.

    Raises:
      ValueError: an item has no length, or fits no row.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    if len(lengths) and not (0 < lengths[order[-1]] and lengths[order[0]] <= max(short, long)):
        worst = order[-1] if lengths[order[-1]] <= 0 else order[0]
        raise ValueError(f"item {worst} has length {lengths[worst]}, which is not in 1..{max(short, long)}")
    short_bins, long_bins = _Bins(short, most[0]), _Bins(long, most[1])
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if length > short:
            long_bins.add(item, length)
        elif not long_bins.add(item, length, open_row=False):
            short_bins.add(item, length)
    return short_bins.plan(), long_bins.plan()


class _Bins:
    """Rows that are being filled: an item goes to the fullest row that still has room for it.

    Best fit never packs worse than first fit, and finds its row in one look-up.
    """

    def __init__(self, capacity: int, most: int):
        self.capacity, self.most = capacity, most
        self.items: list[int] = []
        # The row of each of these items.
        self.row_of: list[int] = []
        # How many items each row holds.
        self._counts: list[int] = []
        # Free positions -> the rows with exactly that many.
        self._rows_by_room: dict[int, list[int]] = {}
        # Bit r is set if some row has r free positions.
        self._rooms = 0

    def add(self, item: int, length: int, open_row: bool = True) -> bool:
        """Adds an item to a row and returns whether it found one.

        Args:
          item: index of the item.
          length: its length, 1..capacity.
          open_row: open a new row if no row has room for it.
        """
        fitting = self._rooms >> length
        if fitting:
            # The lowest bit that is set is the tightest fit.
            room = length + (fitting & -fitting).bit_length() - 1
            rows = self._rows_by_room[room]
            row = rows.pop()
            if not rows:
                self._rooms &= ~(1 << room)
        elif open_row:
            room, row = self.capacity, len(self._counts)
            self._counts.append(0)
        else:
            return False
        self.items.append(item)
        self.row_of.append(row)
        self._counts[row] += 1
        left = room - length
        # A row with all the items that it may hold is closed, whatever room is left.
        if left and self._counts[row] != self.most:
            self._rows_by_room.setdefault(left, []).append(row)
            self._rooms |= 1 << left
        return True

    def plan(self) -> Plan:
        """Returns which items went to which row."""
        row_of = np.asarray(self.row_of, np.int64)
        by_row = np.argsort(row_of, kind="stable")
        return Plan(np.asarray(self.items, np.int64)[by_row], np.asarray(self._counts, np.int64))
