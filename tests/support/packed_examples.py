"""Random examples, and the rows that they are packed into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mossa_jax.tokens.encoded import Encoded
from mossa_jax.tokens.rows import PackedExamples, TrainingRows


def random_examples(count: int, seed: int, longest: int = 20) -> list[Encoded]:
    """Examples of random ids, prompts of 1 to `longest` ids and answers of 1 to 8."""
    rng = np.random.default_rng(seed)

    def ids(size: int) -> list[int]:
        return rng.integers(3, 500, size).tolist()

    return [Encoded([1, *ids(rng.integers(0, longest))], [*ids(rng.integers(0, 8)), 2]) for _ in range(count)]


def behind(prefix: Sequence[int], examples: Sequence[Encoded]) -> list[Encoded]:
    """The examples with `prefix` in front of their prompts."""
    return [Encoded([*prefix, *example.prompt], example.answer) for example in examples]


def all_rows(packed: PackedExamples, width: int | None = None) -> TrainingRows:
    """Every packed row, in one batch."""
    return packed.take(np.arange(len(packed)), width)
