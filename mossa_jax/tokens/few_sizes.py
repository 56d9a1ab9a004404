"""Chooses few sizes that serve many lists, so that a run compiles few programs however many tasks it has.

Every new size of a batch or of an array is a program of its own, which takes seconds to minutes to compile. Too few
sizes waste work on padding. The rules here are pure functions of the lists' sizes: all processes choose alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# What a batch costs besides its rows (the weights are read and gathered once for each): this share of a full batch.
_BATCH_COST = 1 / 16
# A second size has to save this share of the work to be worth its program.
_WORTH = 0.05
# Sizes that are tried for a batch, at most.
_CANDIDATES = 64


def two_sizes(needs: Sequence[int], cost: Callable[[int], float]) -> tuple[int, ...]:
    """Chooses the largest of `needs` and, if that saves enough work, the best smaller one for those that it serves.

    Args:
      needs: the least size that serves each list, at least one of them.
      cost: size -> the work on a list that gets this size.

    Returns:
      One or two sizes, the smaller first.
    """
    largest = max(needs)

    def work(smaller: int) -> float:
        return sum(cost(smaller if need <= smaller else largest) for need in needs)

    best = min(sorted(set(needs)), key=work)
    return (best, largest) if work(best) < (1 - _WORTH) * work(largest) else (largest,)


def size_for(need: int, sizes: Sequence[int]) -> int:
    """Returns the first of `sizes`, the smallest first, that is at least `need`; `need` itself if none is."""
    return next((size for size in sizes if size >= need), need)


def batch_sizes(rows: Sequence[int], most: int, multiple: int, count: int = 2) -> tuple[int, ...]:
    """Chooses the rows of a full batch and, if `count` allows it and it saves enough, of a smaller one for the rest.

    Args:
      rows: of each list, at least one row in all.
      most: rows that a batch may have, before it is rounded up to `multiple`.
      multiple: that every size is one of: rows are spread evenly over so many devices.
      count: sizes, 1 or 2.

    Returns:
      One or two sizes, the larger first.
    """
    each = np.asarray([number for number in rows if number], np.int64)
    if len(each) == 1:
        # As few batches as `most` allows, all of them nearly full.
        return (-(-_even_batch(int(each[0]), most) // multiple) * multiple,)
    limit = -(-min(most, int(each.max())) // multiple)
    step = max(-(-limit // _CANDIDATES), 1)
    # Downwards, so that of sizes that cost the same the largest is taken.
    candidates = [multiple * size for size in range(limit, 0, -step)]
    overhead = _BATCH_COST * most
    best = min(((size,) for size in candidates), key=lambda sizes: _work(each, sizes, overhead))
    if count == 1:
        return best
    pairs = [(large, small) for i, large in enumerate(candidates) for small in candidates[i + 1 :]]
    pair = min(pairs, key=lambda sizes: _work(each, sizes, overhead), default=best)
    return pair if _work(each, pair, overhead) < (1 - _WORTH) * _work(each, best, overhead) else best


def batches_of(rows: int, sizes: Sequence[int]) -> list[int]:
    """Returns the size of each batch that `rows` rows take: full batches, then smaller ones where these do.

    Args:
      rows: of a list.
      sizes: from `batch_sizes`.
    """
    large, small = sizes[0], sizes[-1]
    full, rest = divmod(rows, large)
    smaller = -(-rest // small)
    # Of the batches for the rest, several small ones only if they have fewer rows than a full one.
    return [large] * full + ([small] * smaller if smaller * small < large else [large])


def _work(rows: np.ndarray, sizes: tuple[int, ...], overhead: float) -> float:
    """Returns the work on all lists, in rows: those of all batches, and `overhead` for each batch."""
    large, small = sizes[0], sizes[-1]
    full, rest = np.divmod(rows, large)
    smaller = -(-rest // small)
    is_split = smaller * small < large
    computed = full * large + np.where(is_split, smaller * small, large)
    batches = full + np.where(is_split, smaller, 1)
    return float((computed + overhead * batches).sum())


def _even_batch(rows: int, most: int) -> int:
    """Returns the rows per batch of a single list: as few batches as `most` allows, all of them nearly full.

    The size is rounded up to an eighth of a power of two, so that lists of similar size share their programs.
    """
    # The number of batches is that of the largest size allowed; rows are then divided evenly among them.
    size = min(most, 1 << max(rows - 1, 0).bit_length())
    even = -(-rows // -(-rows // size))
    eighth = max(size // 8, 1)
    return min(-(-even // eighth) * eighth, most)
