"""Task score: exact match of greedy answers on test prompts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import HostAdapters, place_adapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.generate import greedy
from mossa_jax.processes.watchdog import sign
from mossa_jax.tasks.suite import Example
from mossa_jax.tokens.tokenizer import Tokenizer, encode_prompts

SCORE_ROWS = 64
"""Prompts that a run answers at once."""

_WIDTH_STEP = 32
_ROWS_STEP = 16


def exact_match(
    arch: Architecture,
    base,
    adapters: HostAdapters,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    mesh: jax.sharding.Mesh,
    *,
    max_tokens: int,
    truncation: str,
    new_tokens: int,
    batch_rows: int,
) -> np.ndarray:
    """Share of prompts that each adapter answers exactly, white space at the ends aside: [A] float64.

    Prompts are sorted by length and decoded in batches whose width is rounded up, so that few shapes are compiled.
    """
    prompts, _ = encode_prompts(tokenizer, [example.inputs for example in examples], max_tokens, truncation)
    placed = place_adapters(mesh, adapters)
    count = len(next(iter(jax.tree.leaves(adapters))))
    right = np.zeros((count, len(examples)), bool)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = mesh_lib.round_up(min(batch_rows, mesh_lib.round_up(len(prompts), _ROWS_STEP)), mesh.shape["fsdp"])
    for start in range(0, len(order), size):
        sign()
        chosen = order[start : start + size]
        width = mesh_lib.round_up(max(len(prompts[i]) for i in chosen), _WIDTH_STEP)
        tokens = np.zeros((size, width), np.int32)
        lengths = np.ones(size, np.int32)
        for row, item in enumerate(chosen):
            tokens[row, : len(prompts[item])] = prompts[item]
            lengths[row] = len(prompts[item])
        answers = greedy(
            arch,
            base,
            placed,
            mesh_lib.place(mesh, tokens, ("rows", None)),
            mesh_lib.place(mesh, lengths, ("rows",)),
            eos=tuple(dict.fromkeys((tokenizer.eos, *arch.eos))),
            new_tokens=new_tokens,
            mesh=mesh,
        )
        answers = np.asarray(jax.device_put(answers, mesh_lib.replicated(mesh)))
        for row, item in enumerate(chosen):
            target = examples[item].targets.strip()
            right[:, item] = [tokenizer.text(answers[model, row].tolist()) == target for model in range(count)]
    return right.mean(axis=1)
