"""FLOPs of a training step, of a forward pass and of given answers, by formula."""

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
    """Counts the FLOPs of one model's training step by formula; a multiplication with its addition counts two.

    For each of the T = rows x row_length tokens:

    - `blocks`: 4 N, with N the parameters of the blocks' matrices, without embedding and head: 2 N forward and 2 N
      backward through the activations. The base is frozen, so the 2 N of its own gradient are absent (Kaplan et al.
      have 6 N).
    - `attention`: 12 L H d k, with k the mean number of keys that a query may see: (S + 1) / 2 in full causal rows of S
      positions, fewer with a window. 4 forward (scores, weighted values), 8 backward. Packed rows need less.
    - `adapters`: 6 P, with P the parameters of one adapter: the usual 2 forward and 4 backward.

    `head` is 4 V D for each of the rows x `answers` columns: forward, and backward through the activations.

    `model` is the sum of these four, and what model-FLOP utilisation counts. `recomputed` comes on top with `remat`:
    the blocks' forward pass once more, without the product of `down_proj`, whose result no gradient needs. `executed`
    is `model` plus `recomputed`. Neither includes what an attention kernel recomputes by itself.

    Args:
      arch: of the base.
      rows, row_length: packed rows per step, and S, their positions.
      rank, targets: of the adapter.
      answers: the most answer tokens in a row.
      remat: the inside of blocks is recomputed in the backward pass.

    Returns:
      The counts by these names.

    References:
      Kaplan et al. 2020, "Scaling laws for neural language models", section 2.1.
    """
    sizes = target_sizes(arch)
    tokens = rows * row_length
    # N: `matrix_parameters` has the head too, which only answer columns pass through.
    blocks = arch.matrix_parameters - arch.vocab * arch.hidden
    # P: a has D_in x r numbers and b has r x D_out, so r (D_in + D_out) per target and layer.
    adapters = arch.layers * rank * sum(sum(sizes[target]) for target in targets)
    windowed = len(arch.windowed)
    # L k: the mean number of keys, summed over layers.
    keys = windowed * mean_keys(row_length, arch.window) + (arch.layers - windowed) * mean_keys(row_length, 0)
    # FLOPs forward per token: 2 H d k for the scores and 2 H d k for the weighted values.
    attention = 4 * arch.heads * arch.head_dim * keys
    flops: dict[str, float] = {
        "blocks": 4 * blocks * tokens,
        # Forward once, and backward twice as much.
        "attention": 3 * attention * tokens,
        "adapters": 6 * adapters * tokens,
        "head": 4 * arch.vocab * arch.hidden * rows * answers,
    }
    flops["model"] = sum(flops.values())
    # Parameters, per token, of the products that are not repeated; a norm behind `down_proj` asks for its result.
    unneeded = (arch.norms == "pre") * arch.layers * arch.hidden * (arch.feed_forward + rank * ("down_proj" in targets))
    flops["recomputed"] = (2 * (blocks + adapters - unneeded) + attention) * tokens if remat else 0
    flops["executed"] = flops["model"] + flops["recomputed"]
    return {name: float(count) for name, count in flops.items()}


def forward_flops(arch: Architecture, positions: float, row_length: int) -> float:
    """Counts the operations of the blocks of one model over `positions` positions.

    The head is not run, and adapters are left out: they add less than one percent.
    """
    blocks = arch.matrix_parameters - arch.vocab * arch.hidden
    windowed = len(arch.windowed)
    keys = windowed * mean_keys(row_length, arch.window) + (arch.layers - windowed) * mean_keys(row_length, 0)
    return positions * (2 * blocks + 4 * arch.heads * arch.head_dim * keys)


def likelihood_flops(arch: Architecture, positions: float, answers: float, row_length: int) -> float:
    """Counts the operations of one model that reads prompts and given answers behind them: its blocks, and the head.

    Args:
      arch: of the model.
      positions: of all prompts.
      answers: ids of all answers, which also go through the head.
      row_length: positions of a row.
    """
    return forward_flops(arch, positions + answers, row_length) + 2 * arch.vocab * arch.hidden * answers


def mean_keys(length: int, window: int) -> float:
    """Returns the number of keys that a query sees, on average over a full causal row.

    Args:
      length: S, positions of the row.
      window: the most keys that a query sees, itself included; 0 for no limit.
    """
    window = min(window or length, length)
    # The first w queries see 1, 2, ..., w keys, all later ones w.
    return (window * (window + 1) / 2 + (length - window) * window) / length
