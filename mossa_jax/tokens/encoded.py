"""Encoded examples, on disk and memory-mapped: a suite's ids are made once and never sit in memory as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mossa_jax.config import Tokens
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.cache import build_once
from mossa_jax.files.names import digest
from mossa_jax.processes.watchdog import sign
from mossa_jax.tasks.suite import Example, Task
from mossa_jax.tokens.tokenizer import Tokenizer, cut_pair, cut_prompt

_FORMAT = 1  # of the files below; another number makes them anew
_CHUNK = 1_000
_IDS = "ids.int32"
_COLUMNS = ("prompt_lengths", "answer_lengths", "cut", "templates")


@dataclass(frozen=True)
class Encoded:
    """One example: prompt and answer ids (EOS last)."""

    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class Examples:
    """Examples as ids, prompt before answer, wherever they lie.

    Attributes:
      stores: flat int32 arrays of ids, in memory or mapped from disk.
      store: [n] which of them holds an example.
      starts: [n] int64, where in it the example begins.
      prompt_lengths, answer_lengths: [n] int32.
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
        """[n] int32: ids of prompt and answer together."""
        return self.prompt_lengths + self.answer_lengths

    def prompt(self, item: int) -> np.ndarray:
        """Ids of an example's prompt: int32."""
        start = self.starts[item]
        return self.stores[self.store[item]][start : start + self.prompt_lengths[item]]

    def gather(self, items: Sequence[int]) -> np.ndarray:
        """Ids of the examples `items`, one behind the other: int32."""
        starts, stops = self.starts[items], self.starts[items] + self.lengths[items]
        pieces = [self.stores[s][a:b] for s, a, b in zip(self.store[items], starts, stops, strict=True)]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)

    def select(self, items: np.ndarray) -> Examples:
        """The examples at `items`, in that order."""
        columns = (self.store, self.starts, self.prompt_lengths, self.answer_lengths)
        return Examples(self.stores, *(column[items] for column in columns))


def join(parts: Sequence[Examples]) -> Examples:
    """All examples of several lists, in order."""
    shifts = np.cumsum([0, *[len(part.stores) for part in parts]])
    return Examples(
        tuple(store for part in parts for store in part.stores),
        np.concatenate([part.store + shift for part, shift in zip(parts, shifts, strict=False)]),
        *[
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("starts", "prompt_lengths", "answer_lengths")
        ],
    )


def in_memory(examples: Iterable[Encoded]) -> Examples:
    """Examples that are not worth a file."""
    pairs = [(example.prompt, example.answer) for example in examples]
    parts = [np.asarray(part, np.int32) for pair in pairs for part in pair]
    flat = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    prompts = np.asarray([len(prompt) for prompt, _ in pairs], np.int32)
    answers = np.asarray([len(answer) for _, answer in pairs], np.int32)
    return _whole(flat, prompts, answers)


def _whole(flat: np.ndarray, prompts: np.ndarray, answers: np.ndarray) -> Examples:
    ends = np.cumsum(prompts + answers, dtype=np.int64)
    return Examples((flat,), np.zeros(len(ends), np.int64), ends - prompts - answers, prompts, answers)


@dataclass(frozen=True)
class EncodedSplit:
    """One split of a task, encoded.

    Attributes:
      examples: its rows, in order.
      cut: [n] bool, rows that were too long.
      templates: [n] int32, each row's instruction template; -1 where the source does not say.
      bad_rows: rows that were left out as unusable.
      fingerprint: of the rows that were encoded.
    """

    examples: Examples
    cut: np.ndarray
    templates: np.ndarray
    bad_rows: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.cut)


def encode_split(task: Task, split: str, tokenizer: Tokenizer, tokens: Tokens, limit: int) -> EncodedSplit:
    """Encodes the first `limit` rows of a split, or finds them in the cache.

    Prompts of the `test` split are cut to `max_tokens` alone, since they are asked without their answer; elsewhere
    prompt and answer share that length (`cut_pair`).

    Raises:
      Refusal: 3 when there is no row, or what reading the task raises.
    """
    fingerprint = task.fingerprint(split)
    key = digest(
        [_FORMAT, fingerprint, tokenizer.identity, split == "test", tokens.max_tokens, tokens.truncation, limit]
    )

    def build(folder: Path) -> None:
        _encode(folder, islice(task.rows(split), limit), tokenizer, tokens, split == "test")
        bad = task.bad_rows.get(split, 0)
        (folder / "about.json").write_text(json.dumps({"task": task.name, "split": split, "bad_rows": bad}))

    folder = build_once(f"tokens/{key}", build)
    prompts, answers, cut, templates = (np.load(folder / f"{name}.npy") for name in _COLUMNS)
    if not len(cut):
        raise Refusal(BAD_INPUT, f"task {task.name!r} has no {split} rows; fill it or leave the task out (tasks.only)")
    flat = np.asarray(np.memmap(folder / _IDS, np.int32, "r"))
    bad = json.loads((folder / "about.json").read_text())["bad_rows"]
    return EncodedSplit(_whole(flat, prompts, answers), cut, templates, bad, fingerprint)


def _encode(folder: Path, rows: Iterable[Example], tokenizer: Tokenizer, tokens: Tokens, alone: bool) -> None:
    """Writes `_IDS`, all ids one behind the other, and a file for each of `_COLUMNS`."""
    columns: dict[str, list[int]] = {name: [] for name in _COLUMNS}
    rows = iter(rows)
    with (folder / _IDS).open("wb") as file:
        while chunk := list(islice(rows, _CHUNK)):
            sign()
            prompts = tokenizer.prompts([row.inputs for row in chunk])
            answers = tokenizer.answers([row.targets for row in chunk])
            for row, prompt, answer in zip(chunk, prompts, answers, strict=True):
                size = len(prompt) + (0 if alone else len(answer))
                if alone:
                    prompt = cut_prompt(tokenizer, prompt, tokens.max_tokens, tokens.truncation)
                else:
                    prompt, answer = cut_pair(tokenizer, prompt, answer, tokens.max_tokens, tokens.truncation)
                np.asarray([*prompt, *answer], np.int32).tofile(file)
                for name, value in zip(
                    _COLUMNS, (len(prompt), len(answer), size > tokens.max_tokens, row.template), strict=True
                ):
                    columns[name].append(value)
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", np.asarray(values, bool if name == "cut" else np.int32))
