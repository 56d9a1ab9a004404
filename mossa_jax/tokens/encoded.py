"""Encoded examples, on disk and memory-mapped: a suite is encoded once and its ids are never in memory all at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mossa_jax.config import Config, Tokens
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.cache import build_once, map_array
from mossa_jax.files.names import digest
from mossa_jax.processes.watchdog import sign
from mossa_jax.tasks.items import COLUMN, GUESSED, ROWS, guess_items, items_of
from mossa_jax.tasks.order import draw_seed, take_rows
from mossa_jax.tasks.suite import Example, Task
from mossa_jax.tokens.tokenizer import Tokenizer, cut_pair, cut_prompt

# Version of the cached files; another number encodes everything anew.
_FORMAT = 5
# Rows that are encoded at once.
_CHUNK = 1_000
_IDS = "ids.int32"
_COLUMNS = ("prompt_lengths", "answer_lengths", "cut", "templates", "items", "keys")


@dataclass(frozen=True)
class Encoded:
    """One example: prompt and answer ids (EOS last)."""

    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class Examples:
    """Examples as ids, prompt before answer, in memory or on disk.

    Attributes:
      stores: flat int32 arrays of ids, in memory or mapped from disk.
      store: [n] int64, index of the store that holds the example.
      starts: [n] int64, index of the example's first id in its store.
      prompt_lengths: [n] int32, ids of the prompt.
      answer_lengths: [n] int32, ids of the answer.
    """

    stores: tuple[np.ndarray, ...]
    store: np.ndarray
    starts: np.ndarray
    prompt_lengths: np.ndarray
    answer_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Ids of prompt and answer together: [n] int32."""
        return self.prompt_lengths + self.answer_lengths

    def prompt(self, item: int) -> np.ndarray:
        """Returns the ids of an example's prompt: [ids] int32."""
        start = self.starts[item]
        return self.stores[self.store[item]][start : start + self.prompt_lengths[item]]

    def gather(self, items: np.ndarray) -> np.ndarray:
        """Concatenates the ids of the examples at `items`, [k] int64: [ids] int32."""
        starts, stops = self.starts[items], self.starts[items] + self.lengths[items]
        examples = [self.stores[s][a:b] for s, a, b in zip(self.store[items], starts, stops, strict=True)]
        return np.concatenate(examples) if examples else np.zeros(0, np.int32)

    def select(self, items: np.ndarray) -> Examples:
        """Returns the examples at `items`, [k] int64, in that order."""
        columns = (self.store, self.starts, self.prompt_lengths, self.answer_lengths)
        return Examples(self.stores, *(column[items] for column in columns))


def concatenate(lists: Sequence[Examples]) -> Examples:
    """Concatenates several lists of examples, without copying their ids."""
    # Index of each list's first store among all stores.
    first_stores = np.cumsum([0, *[len(examples.stores) for examples in lists]])
    return Examples(
        tuple(store for examples in lists for store in examples.stores),
        np.concatenate([examples.store + first for examples, first in zip(lists, first_stores, strict=False)]),
        np.concatenate([examples.starts for examples in lists]),
        np.concatenate([examples.prompt_lengths for examples in lists]),
        np.concatenate([examples.answer_lengths for examples in lists]),
    )


def in_memory(examples: Iterable[Encoded]) -> Examples:
    """Holds a few examples in memory, without a file."""
    pairs = [(example.prompt, example.answer) for example in examples]
    ids = [np.asarray(side, np.int32) for pair in pairs for side in pair]
    flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    prompt_lengths = np.asarray([len(prompt) for prompt, _ in pairs], np.int32)
    answer_lengths = np.asarray([len(answer) for _, answer in pairs], np.int32)
    return from_flat(flat, prompt_lengths, answer_lengths)


def from_flat(flat: np.ndarray, prompt_lengths: np.ndarray, answer_lengths: np.ndarray) -> Examples:
    """Makes examples of one flat store of ids, [ids] int32, in which they follow one another."""
    ends = np.cumsum(prompt_lengths + answer_lengths, dtype=np.int64)
    starts = ends - prompt_lengths - answer_lengths
    return Examples((flat,), np.zeros(len(ends), np.int64), starts, prompt_lengths, answer_lengths)


@dataclass(frozen=True)
class EncodedSplit:
    """One split of a task, encoded.

    Attributes:
      examples: its rows, in order.
      cut: [n] bool, rows that were too long.
      templates: [n] int32, each row's instruction template; -1 if the source does not say.
      items: [n] int32, the same for rows that belong together beside their template; others have their own.
      item_source: where the items come from: "column", "guessed" (test prompts only) or "rows" (each its own).
      bad_rows: how many unusable rows were left out.
      fingerprint: identifies the rows that were encoded.
      digest: hex digits of everything above, whatever the rows' source: equal ones train or prompt alike.
      keys: [n, 2] uint64, the same for texts that are equal before they are cut, of prompt and answer (`text_key`).
    """

    examples: Examples
    cut: np.ndarray
    templates: np.ndarray
    items: np.ndarray
    item_source: str
    bad_rows: int
    fingerprint: str
    digest: str
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.cut)


def encode_rows(task: Task, split: str, tokenizer: Tokenizer, config: Config) -> EncodedSplit:
    """Encodes the rows of a split that a run takes, in its order; raises what `encode_split` raises."""
    limit = config.tasks.max_test if split == "test" else config.tasks.max_train
    return encode_split(task, split, tokenizer, config.tokens, limit, draw_seed(config, task, split))


def encode_split(
    task: Task, split: str, tokenizer: Tokenizer, tokens: Tokens, limit: int, seed: Sequence[int] | None = None
) -> EncodedSplit:
    """Encodes `limit` rows of a split, the first ones or a draw with a seed, or reads them from the cache.

    A prompt of the `test` split may take all `max_tokens`, since a model reads it without its answer; in other splits
    prompt and answer share that length (`cut_pair`).

    Raises:
      Refusal: 3 if there is no row, and whatever reading the task raises.
    """
    fingerprint = task.fingerprint(split)
    key = digest(
        [
            *(_FORMAT, fingerprint, tokenizer.identity, split == "test", tokens.max_tokens, tokens.truncation, limit),
            None if seed is None else list(seed),
        ]
    )

    def build(folder: Path) -> None:
        item_source = _encode(folder, take_rows(task, split, limit, seed), tokenizer, tokens, split == "test")
        about = {
            "task": task.name,
            "split": split,
            "bad_rows": task.bad_rows.get(split, 0),
            "item_source": item_source,
            "digest": _digest(folder),
        }
        (folder / "about.json").write_text(json.dumps(about))

    folder = build_once(f"tokens/{key}", build)
    prompt_lengths, answer_lengths, cut, templates, items, keys = (np.load(folder / f"{name}.npy") for name in _COLUMNS)
    if not len(cut):
        raise Refusal(BAD_INPUT, f"task {task.name!r} has no {split} rows; fill it or leave the task out (tasks.only)")
    flat = map_array(folder / _IDS, np.int32)
    about = json.loads((folder / "about.json").read_text())
    examples = from_flat(flat, prompt_lengths, answer_lengths)
    return EncodedSplit(
        examples, cut, templates, items, about["item_source"], about["bad_rows"], fingerprint, about["digest"], keys
    )


def _digest(folder: Path) -> str:
    """Returns hex digits of the ids and the columns that `_encode` wrote."""
    sha256 = hashlib.sha256()
    for name in (_IDS, *(f"{column}.npy" for column in _COLUMNS)):
        with (folder / name).open("rb") as file:
            sha256.update(hashlib.file_digest(file, "sha256").digest())
    return sha256.hexdigest()[:16]


def text_key(text: str) -> int:
    """Returns eight bytes that stand for a text, independent of its white space."""
    normalised = " ".join(text.split()).encode()
    return int.from_bytes(hashlib.blake2b(normalised, digest_size=8).digest())


def _encode(folder: Path, rows: Iterable[Example], tokenizer: Tokenizer, tokens: Tokens, prompt_only: bool) -> str:
    """Writes `_IDS`, the ids of all rows in one file, and one file for each of `_COLUMNS`.

    Args:
      folder: where the files are written.
      rows: rows of a split.
      tokenizer: of the base model.
      tokens: how long rows may be, and how they are cut.
      prompt_only: whether a prompt may take the whole length, without its answer; its items are guessed if the source
        has none.

    Returns:
      Where the rows' items come from.
    """
    columns: dict[str, list[int]] = {name: [] for name in _COLUMNS if name not in ("items", "keys")}
    keys: list[int] = []
    item_names: list[str] = []
    texts: list[str] = []
    rows = iter(rows)
    with (folder / _IDS).open("wb") as file:
        while chunk := list(islice(rows, _CHUNK)):
            sign()
            prompts = tokenizer.prompts([row.inputs for row in chunk])
            answers = tokenizer.answers([row.targets for row in chunk])
            item_names += [row.item for row in chunk]
            texts += [row.inputs for row in chunk] if prompt_only else []
            keys += [text_key(text) for row in chunk for text in (row.inputs, row.targets)]
            for row, prompt, answer in zip(chunk, prompts, answers, strict=True):
                size = len(prompt) + (0 if prompt_only else len(answer))
                if prompt_only:
                    prompt = cut_prompt(tokenizer, prompt, tokens.max_tokens, tokens.truncation)
                else:
                    prompt, answer = cut_pair(tokenizer, prompt, answer, tokens.max_tokens, tokens.truncation)
                np.asarray([*prompt, *answer], np.int32).tofile(file)
                values = (len(prompt), len(answer), size > tokens.max_tokens, row.template)
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    is_guess = prompt_only and not any(item_names)
    items = guess_items(texts) if is_guess else items_of(item_names)
    np.save(folder / "items.npy", items)
    np.save(folder / "keys.npy", np.asarray(keys, np.uint64).reshape(-1, 2))
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", np.asarray(column, bool if name == "cut" else np.int32))
    if any(item_names):
        return COLUMN
    return GUESSED if is_guess and len(np.unique(items)) < len(items) else ROWS
