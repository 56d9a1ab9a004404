"""A Llama in float64 NumPy, written from the definition: what the programs on a device are checked against.

Each prompt by itself: no packed rows, no segments, no cache, no shared prefix, no kernel. Gradients are central
differences of the loss, which in float64 are exact to about nine digits.

Shape letters: L layers, N prompts, S ids of the longest, D hidden, H heads, K key/value heads, d head width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mossa_jax.llama.adapters import Adapter
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.placement import leaf_name
from mossa_jax.tokens.encoded import Encoded

Weights = dict[str, np.ndarray]
"""Leaf name -> float64 array; the blocks' leaves have a leading axis of layers."""

# Half of the distance of a central difference, in units of a random direction: a thousandth of a step for a million
# weights. Rounding of the loss leaves about nine digits of the slope.
_STEP = 1e-6


def weights_of(tree: Any) -> Weights:
    """Copies a model's state, or a tree like it, to the host in float64, by leaf name."""
    return {leaf_name(path): np.asarray(leaf, np.float64) for path, leaf in jax.tree.leaves_with_path(tree)}


def run(
    arch: Architecture, weights: Weights, adapter: Adapter, prompts: Sequence[Sequence[int]]
) -> tuple[Float[np.ndarray, "L+2 N S D"], Float[np.ndarray, "N S V"]]:
    """Runs prompts through one model, each by itself.

    Args:
      arch: without windows, biases and norms of queries.
      weights: of the base.
      adapter: {} for none.
      prompts: N lists of ids. Shorter ones are filled up on the right, which no id before sees.

    Returns:
      The states of all layer names [L + 2, N, S, D], and the logits [N, S, V]; float64.
    """
    ids = np.zeros((len(prompts), max(map(len, prompts))), np.int64)  # [N, S]
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    x = weights["embedding"][ids]  # [N, S, D]
    states = [x]
    for layer in range(arch.layers):
        x = _block(arch, weights, adapter, layer, x)
        states.append(x)
    states.append(_norm(arch, x, weights["final_norm.weight"]))
    head = weights["embedding" if arch.tied_head else "head"]
    return np.stack(states), _product(states[-1], head.T)


def mean_loss(arch: Architecture, weights: Weights, adapter: Adapter, examples: Sequence[Encoded]) -> float:
    """Returns the mean negative log likelihood of all answer tokens, in nats."""
    everything = run(arch, weights, adapter, [[*example.prompt, *example.answer] for example in examples])[1]
    nats, count = 0.0, 0
    for example, logits in zip(examples, everything, strict=True):
        start, answer = len(example.prompt), list(example.answer)
        # The token before each answer token predicts it.
        logits = logits[start - 1 : start - 1 + len(answer)]  # [answer, V]
        largest = logits.max(1)
        normaliser = largest + np.log(np.exp(logits - largest[:, None]).sum(1))  # [answer]
        nats += float((normaliser - logits[np.arange(len(answer)), answer]).sum())
        count += len(answer)
    return nats / count


def adapter_slope(
    arch: Architecture, weights: Weights, adapter: Adapter, direction: Adapter, examples: Sequence[Encoded]
) -> float:
    """Returns the derivative of `mean_loss` by an adapter's matrices along `direction`, target -> {"a", "b"}."""

    def loss(step: float) -> float:
        moved = {
            target: update | {name: update[name] + step * direction[target][name] for name in ("a", "b")}
            for target, update in adapter.items()
        }
        return mean_loss(arch, weights, moved, examples)

    return (loss(_STEP) - loss(-_STEP)) / (2 * _STEP)


def weight_slope(arch: Architecture, weights: Weights, direction: Weights, examples: Sequence[Encoded]) -> float:
    """Returns the derivative of `mean_loss` by all weights of the base along `direction`."""

    def loss(step: float) -> float:
        return mean_loss(arch, {name: w + step * direction[name] for name, w in weights.items()}, {}, examples)

    return (loss(_STEP) - loss(-_STEP)) / (2 * _STEP)


def _block(arch: Architecture, weights: Weights, adapter: Adapter, layer: int, x: np.ndarray) -> np.ndarray:
    """Runs one block: [N, S, D] -> [N, S, D]."""

    def project(name: str, x: np.ndarray) -> np.ndarray:
        room = "attention" if name[0] in "qkvo" else "feed_forward"
        y = _product(x, weights[f"blocks.{room}.{name}.weight"][layer].T)
        if name in adapter:
            update = adapter[name]
            y = y + float(update["scale"][layer]) * _product(_product(x, update["a"][layer]), update["b"][layer])
        return y

    normed = _norm(arch, x, weights["blocks.attention_norm.weight"][layer])
    (count, length), groups = x.shape[:2], arch.heads // arch.kv_heads
    # [N, H or K, S, d] each.
    q, k, v = (
        project(name, normed).reshape(count, length, -1, arch.head_dim).transpose(0, 2, 1, 3)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    q, k = _rotate(arch, q), _rotate(arch, k)
    # Each key/value head serves a group of query heads.
    k, v = np.repeat(k, groups, 1), np.repeat(v, groups, 1)
    scores = q @ k.swapaxes(2, 3) / np.sqrt(arch.head_dim)  # [N, H, S, S]
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    out = scores / scores.sum(-1, keepdims=True) @ v  # [N, H, S, d]
    x = x + project("o_proj", out.transpose(0, 2, 1, 3).reshape(count, length, -1))
    normed = _norm(arch, x, weights["blocks.feed_forward_norm.weight"][layer])
    gate = project("gate_proj", normed)
    return x + project("down_proj", gate / (1 + np.exp(-gate)) * project("up_proj", normed))


def _product(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Multiplies [N, S, D] by a matrix, in one product."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)


def _norm(arch: Architecture, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * x / np.sqrt(np.square(x).mean(-1, keepdims=True) + arch.norm_eps)


def _rotate(arch: Architecture, x: np.ndarray) -> np.ndarray:
    """Rotates element i with element i + d/2: [N, heads, S, d] -> the same."""
    angle = np.arange(x.shape[2])[:, None] * arch.rope.frequencies(arch.head_dim)  # [S, d/2]
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
