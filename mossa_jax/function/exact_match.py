"""Task score: exact match of greedy answers on test prompts.

Shape letters: A adapters, n examples, B prompts of a batch, S positions, T new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import HostAdapters, place_adapters
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.generate import greedy
from mossa_jax.processes.watchdog import sign
from mossa_jax.tasks.suite import Example
from mossa_jax.tokens.tokenizer import Tokenizer, encode_prompts

SCORE_ROWS = 64
"""Prompts that a run answers at once."""

# Widths and row counts are rounded up to these multiples: every new shape of a batch is compiled anew.
_WIDTH_MULTIPLE = 32
_ROWS_MULTIPLE = 16


@dataclass(frozen=True)
class AnswerConfig:
    """How prompts are read and answered.

    Attributes:
      max_tokens: longer prompts are cut to this many ids.
      truncation: which end is cut, as in `tokens.tokenizer.encode_prompts`.
      new_tokens: the most tokens of an answer.
      batch_rows: prompts answered at once.
    """

    max_tokens: int
    truncation: str
    new_tokens: int
    batch_rows: int = SCORE_ROWS


def exact_match(
    model: Model, adapters: HostAdapters, tokenizer: Tokenizer, examples: Sequence[Example], config: AnswerConfig
) -> Float[np.ndarray, " A"]:
    """Returns the share of prompts that each adapter answers exactly, apart from white space at the ends.

    Prompts are sorted by length and decoded in batches, so that little of a batch is padding.

    Args:
      model: the base model.
      adapters: stacked [A, ...] on the host.
      tokenizer: with the template of the prompts.
      examples: prompts with their targets.
      config: how prompts are read and answered.

    Returns:
      [A] float64, between 0 and 1.
    """
    mesh = model.mesh
    prompts, _ = encode_prompts(
        tokenizer, [example.inputs for example in examples], config.max_tokens, config.truncation
    )
    placed = place_adapters(mesh, adapters)
    models = len(next(iter(jax.tree.leaves(adapters))))
    is_right = np.zeros((models, len(examples)), bool)  # [A, n]
    # Shortest first: the prompts of a batch have about the same length.
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = min(config.batch_rows, mesh_lib.round_up(len(prompts), _ROWS_MULTIPLE))
    # Rows of a batch are spread over `fsdp` in equal shares.
    size = mesh_lib.round_up(size, mesh.shape["fsdp"])
    for start in range(0, len(by_length), size):
        sign()
        batch = by_length[start : start + size]
        width = mesh_lib.round_up(max(len(prompts[i]) for i in batch), _WIDTH_MULTIPLE)
        # The last batch may have rows without a prompt. They keep length 1, the least that `greedy` takes, and are not
        # read.
        tokens = np.zeros((size, width), np.int32)  # [B, S], padded on the right
        lengths = np.ones(size, np.int32)  # [B]
        for row, item in enumerate(batch):
            tokens[row, : len(prompts[item])] = prompts[item]
            lengths[row] = len(prompts[item])
        answers = greedy(
            model.architecture,
            model.state,
            placed,
            mesh_lib.place(mesh, tokens, ("rows", None)),
            mesh_lib.place(mesh, lengths, ("rows",)),
            # The tokenizer's id and those of the checkpoint end an answer, each named once.
            eos=tuple(dict.fromkeys((tokenizer.eos, *model.architecture.eos))),
            new_tokens=config.new_tokens,
            mesh=mesh,
        )
        # [A, B, T] int32, whole on every process: each of them scores all rows.
        ids = np.asarray(jax.device_put(answers, mesh_lib.replicated(mesh)))
        for row, item in enumerate(batch):
            target = examples[item].targets.strip()
            is_right[:, item] = [tokenizer.text(ids[a, row].tolist()) == target for a in range(models)]
    return is_right.mean(axis=1)
