"""Training examples whose answers are permuted over the prompts of their task: what a twin learns.

Such a model sees the format and the answers of its task, but not the link between a prompt and its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mossa_jax.config import Tokens
from mossa_jax.files.cache import build_once, map_array
from mossa_jax.files.names import digest
from mossa_jax.processes.watchdog import sign
from mossa_jax.tokens.encoded import EncodedSplit, Examples, from_flat
from mossa_jax.tokens.tokenizer import Tokenizer, cut_pair

# Version of the cached files; another number permutes everything anew.
_FORMAT = 1
_IDS, _LENGTHS = "ids.int32", "lengths.npy"
# Rows between two signs of life.
_CHUNK = 1_000


def draw_answers(templates: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    """Draws which row's answer each row gets: never its own, and one of its template wherever there is another.

    Args:
      templates: [n] int32, each row's instruction template; -1 if unknown, which counts as a template of its own.
      seed: of the draw.

    Returns:
      [n] int64, a permutation of the rows; with n = 1 the row itself, since there is no other.
    """
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(templates == template) for template in np.unique(templates)]
    # Rows that are alone with their template exchange answers with one another; a last one joins the first group.
    single = [group for group in groups if len(group) == 1]
    groups = [group for group in groups if len(group) > 1]
    if len(single) == 1 and groups:
        groups[0] = np.concatenate([groups[0], single[0]])
    elif single:
        groups.append(np.concatenate(single))
    answers = np.arange(len(templates))
    for group in groups:
        # One cycle through all rows of the group has no fixed point.
        cycle = rng.permutation(group)
        answers[cycle] = np.roll(cycle, 1)
    return answers


def permute_answers(split: EncodedSplit, tokenizer: Tokenizer, tokens: Tokens, seed: Sequence[int]) -> Examples:
    """Returns a split's examples with permuted answers, mapped from the cache on disk.

    A prompt with an answer that is longer than its own is cut as in `cut_pair`.

    Args:
      split: the encoded training rows of a task.
      tokenizer: that encoded them.
      tokens: how long rows may be, and how they are cut.
      seed: of the permutation.
    """
    lengths = (tokens.max_tokens, tokens.truncation)
    key = digest([_FORMAT, "permuted", split.fingerprint, len(split), tokenizer.identity, *lengths, list(seed)])
    folder = build_once(f"tokens/{key}", lambda folder: _write(folder, split, tokenizer, tokens, seed))
    flat = map_array(folder / _IDS, np.int32)
    prompt_lengths, answer_lengths = np.load(folder / _LENGTHS)
    return from_flat(flat, prompt_lengths, answer_lengths)


def _write(folder: Path, split: EncodedSplit, tokenizer: Tokenizer, tokens: Tokens, seed: Sequence[int]) -> None:
    examples = split.examples
    lengths = np.zeros((2, len(split)), np.int32)  # [2, n]: ids of prompts, of answers
    with (folder / _IDS).open("wb") as file:
        for row, other in enumerate(draw_answers(split.templates, seed)):
            if row % _CHUNK == 0:
                sign()
            answer_ids = examples.gather(np.asarray([other]))[examples.prompt_lengths[other] :]
            pair = (examples.prompt(row).tolist(), answer_ids.tolist())
            prompt, answer = cut_pair(tokenizer, *pair, tokens.max_tokens, tokens.truncation)
            np.asarray([*prompt, *answer], np.int32).tofile(file)
            lengths[:, row] = len(prompt), len(answer)
    np.save(folder / _LENGTHS, lengths)
