"""Which prompts of a task belong together: as the source names them or, if it does not, by the long texts they share.

Prompts about one passage, or one row in ten wordings, are no independent evidence. Where no source names them, two
prompts are joined that share a run of eight words of content:

- Words of templates are left out first, so that neither a template nor its seam with a content joins prompts. A
  template occurs with many contents, a passage with few questions: so a phrase of `_PHRASE` words is template text if
  many prompts have it, which is more than one in fifty, but at least more than twelve, or a third of a small task.
- A long context can have more questions. Phrases that a third of the prompts or fewer have are content where `_LONG` of
  them follow one another: a wording of a template is shorter, and the instruction of a task stands in all prompts.
- What two prompts share must be at least `_SHARE` of the shorter one's content. A passage is that; a wording that is
  rare, because the task has few rows, is not.
- Runs of few different words ("0 0 0 0 ...") say nothing.
- Chains: those are joined first that share most, and no join makes a group larger than the bounds above. So a phrase in
  common cannot chain a task into one item.

Time and memory are linear in the text, but for one sort: about 90 bytes per word at most.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

COLUMN, GUESSED, ROWS = "column", "guessed", "rows"
"""Where items come from: named by the source, guessed from the texts, or each row is one of its own."""

# Words of a phrase, which tells templates from contents; of a run, which joins prompts; and different ones of a run.
_PHRASE, _RUN, _DIFFERENT = 4, 8, 5
# More prompts than this number, or this share of them if that is more, have a phrase of a template; and in no case do
# more than the third of a task have one of a content.
_MANY, _MANY_SHARE, _MOST_SHARE = 12, 1 / 50, 1 / 3
# Phrases in a row that make a long context.
_LONG = 40
# Least share of the shorter prompt's content that both prompts have.
_SHARE = 0.3

# A word, or one character of a script that puts no spaces between words.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
# Odd constants of SplitMix64.
_FACTOR, _SECOND_FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def items_of(names: Sequence[str]) -> np.ndarray:
    """Numbers the items that rows name: [n] int32; a row without a name is an item of its own.

    Args:
      names: of each row's item; empty if it has none.
    """
    seen: dict[str | int, int] = {}
    return np.asarray([seen.setdefault(name or row, len(seen)) for row, name in enumerate(names)], np.int32)


def guess_items(texts: Iterable[str]) -> np.ndarray:
    """Guesses which prompts belong together: [n] int32, the same for the prompts of one item.

    The result depends on the texts and their order alone.

    Args:
      texts: the prompts, read once.
    """
    vocabulary: dict[str, int] = {}
    codes, sizes = array("I"), []
    for text in texts:
        row = [vocabulary.setdefault(word, len(vocabulary)) for word in _WORD.findall(text.lower())]
        codes.extend(row)
        sizes.append(len(row))
    # [words of all prompts]: each word's number and prompt.
    words = np.frombuffer(codes, np.uint32)
    rows = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    most = int(len(sizes) * _MOST_SHARE)
    many = max(min(most, _MANY), int(len(sizes) * _MANY_SHARE))
    content = ~_is_template(words, rows, many, most)
    return _join(len(sizes), _links(words[content], rows[content], len(sizes)), many, most)


def _is_template(words: np.ndarray, rows: np.ndarray, many: int, most: int) -> np.ndarray:
    """Marks the words of templates: [words] bool.

    Args:
      words: [words] uint32, prompt after prompt.
      rows: [words] int32, the prompt of each word.
      many: the most prompts that have a phrase of a content, unless it is long.
      most: the most prompts that have a phrase of a long one.
    """
    counts = _row_counts(_hashes(words, rows, _PHRASE), rows)
    is_template = (counts > many) & ~_in_long_stretch((counts > many) & (counts <= most), rows)
    covered = is_template.copy()
    for place in range(1, _PHRASE):
        covered[place:] |= is_template[:-place]
    return covered


def _hashes(words: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """Hashes the `length` words from each word on: [words] uint64, 0 where the prompt ends before.

    Args:
      words: [words] uint32, prompt after prompt.
      rows: [words] int32, the prompt of each word.
      length: words that are hashed together.
    """
    hashes = np.zeros(len(words), np.uint64)
    ends = len(words) - length + 1
    if ends <= 0:
        return hashes
    # Neighbouring numbers get unlike bits, as a weighted sum of small numbers would have many collisions.
    mixed = (words.astype(np.uint64) + np.uint64(1)) * _FACTOR
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _SECOND_FACTOR
    mixed ^= mixed >> np.uint64(32)
    for place in range(length):
        hashes[:ends] = hashes[:ends] * _FACTOR + mixed[place : place + ends]
    hashes[ends:] = 0
    hashes[:ends][rows[:ends] != rows[length - 1 :]] = 0
    return hashes


def _different(words: np.ndarray, length: int) -> np.ndarray:
    """Counts the different ones of the `length` words from each word on: [words] int8."""
    counts = np.zeros(len(words), np.int8)
    for place in range(min(length, len(words))):
        is_new = np.ones(len(words) - place, bool)
        for before in range(place):
            is_new &= words[place:] != words[before : len(words) - place + before]
        counts[: len(words) - place] += is_new
    return counts


def _row_counts(hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Counts the prompts that have each hash: [words] int32, 0 for hash 0."""
    order = np.argsort(hashes, kind="stable")
    group, is_new_row = _groups(hashes[order], rows[order])
    counts = np.empty(len(order), np.int32)
    counts[order] = np.bincount(group, is_new_row)[group]
    counts[hashes == 0] = 0
    return counts


def _groups(hashes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the equal hashes of a sorted list, and marks the first of each prompt: [words] int64 and bool."""
    is_first = np.ones(len(hashes), bool)
    is_first[1:] = hashes[1:] != hashes[:-1]
    is_new_row = is_first.copy()
    is_new_row[1:] |= rows[1:] != rows[:-1]
    return np.cumsum(is_first) - 1, is_new_row


def _in_long_stretch(is_shared: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Marks what is one of at least `_LONG` marked ones in a row of one prompt: [words] bool."""
    is_start = np.ones(len(rows), bool)
    is_start[1:] = (is_shared[1:] != is_shared[:-1]) | (rows[1:] != rows[:-1])
    starts = np.flatnonzero(is_start)
    lengths = np.diff(np.append(starts, len(rows)))
    return np.repeat(is_shared[starts] & (lengths >= _LONG), lengths)


def _links(words: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Returns pairs of prompts that share enough words, most runs first.

    Args:
      words: [words] uint32, those of the contents, prompt after prompt.
      rows: [words] int32, the prompt of each word.
      n: prompts.

    Returns:
      [links, 3] int64: prompts that share the pair's rarest run, first prompt, second prompt.
    """
    hashes = _hashes(words, rows, _RUN)
    hashes[_different(words, _RUN) < _DIFFERENT] = 0
    # Stable, so that the prompts of one run stay in order.
    order = np.argsort(hashes, kind="stable")
    order = order[hashes[order] > 0]
    row = rows[order]
    group, is_new_row = _groups(hashes[order], row)
    group, row = group[is_new_row], row[is_new_row]
    counts = np.bincount(group) if len(group) else np.zeros(0, np.int64)
    is_pair = group[1:] == group[:-1]
    pairs, of_pair, shared = np.unique(
        np.stack([row[:-1][is_pair], row[1:][is_pair]], 1), axis=0, return_inverse=True, return_counts=True
    )
    # The rarest run of each pair.
    prompts = np.full(len(pairs), np.iinfo(np.int64).max)
    np.minimum.at(prompts, of_pair.reshape(-1), counts[group[1:]][is_pair])
    lengths = np.bincount(rows, minlength=n)
    # k runs in a row have k + _RUN - 1 words.
    is_enough = shared + _RUN - 1 >= _SHARE * lengths[pairs].min(1)
    return np.column_stack([prompts, pairs])[is_enough][np.argsort(-shared[is_enough], kind="stable")]


def _join(n: int, links: np.ndarray, many: int, most: int) -> np.ndarray:
    """Joins n prompts along links, in order: [n] int32, items numbered in the order of their first prompts."""
    parent, size = list(range(n)), [1] * n

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for count, first, second in links.tolist():
        a, b = sorted((root(first), root(second)))
        if a != b and size[a] + size[b] <= (many if count <= many else most):
            parent[b] = a
            size[a] += size[b]
    return np.unique([root(row) for row in range(n)], return_inverse=True)[1].astype(np.int32).reshape(n)
