"""The gold answer as a factor of a task's prompts: its class, its first token, or the base's embedding of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.model import merge
from mossa_jax.similarity.layerwise import replicate
from mossa_jax.similarity.projections import Factor
from mossa_jax.tokens.encoded import EncodedSplit

CLASS, FIRST_TOKEN, EMBEDDING = "class", "first token", "embedding"
"""What stands for the answer."""

ROWS_PER_LEVEL = 2
"""Prompts per level, on average, that answers need to count as classes."""

COLUMNS_SHARE = 0.1
"""Components of the embedding per prompt, at most."""


def gold_answers(encoded: EncodedSplit, rows: Int[np.ndarray, " n"]) -> list[tuple[int, ...]]:
    """Returns the token ids of the answers of some rows, without the end of sequence."""
    examples = encoded.examples
    ids = (examples.gather(np.asarray([row]))[examples.prompt_lengths[row] :] for row in rows)
    return [tuple(answer[:-1].tolist()) for answer in ids]


def answer_labels(answers: Sequence[tuple[int, ...]]) -> tuple[str, Int[np.ndarray, " n"]] | None:
    """Returns what stands for the answers and the level of each, or None if they repeat too rarely for levels.

    The first token is the first one in which any two answers differ: a tokenizer may begin all answers alike.

    Args:
      answers: token ids.
    """
    longest = max((len(answer) for answer in answers), default=0)
    first = next((at for at in range(longest) if len({answer[: at + 1] for answer in answers}) > 1), 0)
    for kind, keys in ((CLASS, list(answers)), (FIRST_TOKEN, [answer[: first + 1] for answer in answers])):
        numbers: dict[tuple[int, ...], int] = {}
        labels = np.asarray([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
        if len(answers) >= ROWS_PER_LEVEL * len(numbers):
            return kind, labels
    return None


def answer_factor(model: Model, answers: Sequence[tuple[int, ...]]) -> tuple[str, Factor]:
    """Returns what stands for the answers, and the factor.

    Args:
      model: the base, whose embedding stands for answers that hardly repeat; no model runs.
      answers: token ids.
    """
    levels = answer_labels(answers)
    if levels is not None:
        return levels[0], Factor(labels=levels[1])
    columns = components(mean_embeddings(model, answers), int(COLUMNS_SHARE * len(answers)))
    return EMBEDDING, Factor(columns=columns)


def components(rows: Float[np.ndarray, "n D"], most: int) -> Float[np.ndarray, "n k"]:
    """Returns the scores of the first principal components of rows, at most so many, float64."""
    rows = np.asarray(rows, np.float64)
    u, size, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    count = min(most, int((size > 1e-6 * size[:1].max(initial=0)).sum()))
    return u[:, :count] * size[:count]


def mean_embeddings(model: Model, answers: Sequence[tuple[int, ...]]) -> Float[np.ndarray, "n D"]:
    """Returns the mean of the base's input embeddings over the tokens of each answer, float32; 0 for an empty one."""
    longest = max(1, max(len(answer) for answer in answers))
    # The next power of two, so that tasks share programs.
    ids = np.full((len(answers), 1 << (longest - 1).bit_length()), -1, np.int32)
    for row, answer in zip(ids, answers, strict=True):
        row[: len(answer)] = answer
    return np.asarray(_mean_embeddings(model.architecture, model.mesh, model.state, ids))


@partial(jax.jit, static_argnums=(0, 1))
def _mean_embeddings(
    arch: Architecture, mesh: jax.sharding.Mesh, state: nnx.State, ids: Int[Array, "n S"]
) -> Float[Array, "n D"]:
    embedding = merge(arch, state).embedding[...]  # [V, D]

    # Position by position: embeddings of all tokens at once would be S times as large.
    def add(total: jax.Array, column: jax.Array) -> tuple[jax.Array, None]:
        rows = embedding[jnp.maximum(column, 0)].astype(jnp.float32)  # [n, D]
        return total + jnp.where((column >= 0)[:, None], rows, 0), None

    empty = jnp.zeros((ids.shape[0], embedding.shape[1]), jnp.float32)
    total, _ = jax.lax.scan(add, empty, ids.T)
    counts = jnp.maximum((ids >= 0).sum(1), 1)[:, None]
    return replicate(total / counts, mesh)
