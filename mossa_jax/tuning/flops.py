"""FLOPs of a training step by formula."""

from __future__ import annotations

from collections.abc import Sequence

from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture


def step_flops(
    arch: Architecture,
    *,
    rows: int,
    row_length: int,
    rank: int,
    targets: Sequence[str],
    answers: int,
    remat: bool = True,
) -> dict[str, float]:
    """FLOPs of one model's training step, by formula; a multiplication with its addition counts two.

    For each of the T = rows x row_length tokens:

    - `blocks`: 4 N, with N the parameters of the blocks' matrices, without embedding and head: 2 N forward and 2 N
      backward through the activations. The base is frozen, so the 2 N of its own gradient are absent (Kaplan et al.
      2020, 2.1, have 6 N).
    - `attention`: 12 L H d k, with k the mean number of keys that a query may see: (S + 1) / 2 in whole causal rows of
      S positions, fewer with a window. 4 forward (scores, weighted values), 8 backward. Packed rows need less.
    - `adapters`: 6 P, with P the parameters of one adapter: the usual 2 forward and 4 backward.

    And `head`: 4 V D for each of the rows x `answers` columns; forward, and backward through the activations.

    `model` is their sum, and what model-FLOP use counts. `recomputed` comes on top with `remat`: the blocks' forward
    pass once more, without the product of `down_proj`, whose result no gradient needs. `executed` is all of it. What an
    attention kernel recomputes by itself is in neither.
    """
    sizes = target_sizes(arch)
    tokens = rows * row_length
    blocks = arch.matrix_parameters - arch.vocab * arch.hidden
    adapters = arch.layers * rank * sum(sum(sizes[target]) for target in targets)
    windowed = len(arch.windowed)
    keys = windowed * mean_keys(row_length, arch.window) + (arch.layers - windowed) * mean_keys(row_length, 0)
    attention = 4 * arch.heads * arch.head_dim * keys
    found = {
        "blocks": 4 * blocks * tokens,
        "attention": 3 * attention * tokens,
        "adapters": 6 * adapters * tokens,
        "head": 4 * arch.vocab * arch.hidden * rows * answers,
    }
    found["model"] = sum(found.values())
    unneeded = arch.layers * arch.hidden * (arch.feed_forward + rank * ("down_proj" in targets))
    found["recomputed"] = (2 * (blocks + adapters - unneeded) + attention) * tokens if remat else 0
    found["executed"] = found["model"] + found["recomputed"]
    return {part: float(count) for part, count in found.items()}


def mean_keys(length: int, window: int) -> float:
    """Keys that a query sees, on average over a whole causal row."""
    window = min(window or length, length)
    return (window * (window + 1) / 2 + (length - window) * window) / length
