"""Rotary position embeddings (Su et al. 2021), with the ways to stretch their frequencies for long contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("default", "linear", "dynamic", "llama3")


@dataclass(frozen=True)
class Rope:
    """Frequencies of the rotation.

    Attributes:
      theta: base of the frequencies.
      kind: `default`; `linear` (all frequencies divided by `factor`); `dynamic` (theta grows with a sequence that is
        longer than `context`: NTK-aware scaling); `llama3` (long wavelengths divided by `factor`, short ones kept,
        a ramp between).
      factor: how far the context is stretched.
      context: positions of the original training, for `dynamic` and `llama3`.
      low, high: `llama3`: the ramp runs over wavelengths from context / low down to context / high.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    context: int = 0
    low: float = 1.0
    high: float = 1.0

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position for each pair of a head: [d/2] float64; for `dynamic` those within the context."""
        frequency = self.theta ** -(np.arange(0, head_dim, 2) / head_dim)
        if self.kind == "linear":
            return frequency / self.factor
        if self.kind == "llama3":
            turns = self.context * frequency / (2 * np.pi)  # over the original context
            kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
            return kept * frequency + (1 - kept) * frequency / self.factor
        return frequency


def read_rope(config: dict[str, Any], positions: int) -> Rope:
    """The rotation that a `config.json` asks for, in the spelling of transformers 4 or 5.

    Args:
      config: parsed `config.json`.
      positions: its `max_position_embeddings`.

    Raises:
      KeyError: a parameter of the scaling is missing.
      ValueError: a kind that is not one of `KINDS`, or one whose parameters make no sense.
      TypeError: a value of the wrong type.
    """
    stated = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = stated.get("rope_type") or stated.get("type") or "default"
    theta = float(stated.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    if kind not in KINDS:
        raise ValueError(f"rope_type {kind!r} is not supported; these are: {', '.join(KINDS)}")
    partial = stated.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if float(partial) != 1.0:
        raise ValueError(f"partial_rotary_factor={partial} is not supported; whole heads are rotated")
    if kind == "default":
        return Rope(theta)
    factor = float(stated["factor"])
    if factor < 1:
        raise ValueError(f"rope factor {factor} is below 1")
    if kind == "linear":
        return Rope(theta, kind, factor)
    if kind == "dynamic":
        return Rope(theta, kind, factor, positions)
    low, high = float(stated["low_freq_factor"]), float(stated["high_freq_factor"])
    if high <= low:
        raise ValueError(f"high_freq_factor={high} must be above low_freq_factor={low}")
    return Rope(theta, kind, factor, int(stated["original_max_position_embeddings"]), low, high)


def rotary(rope: Rope, head_dim: int, positions: jax.Array, lengths: jax.Array | None, dtype) -> tuple:
    """Cosines and sines of every position.

    Args:
      rope: frequencies.
      head_dim: d.
      positions: [B, S] int32.
      lengths: [B, S] int32, length of the sequence that a position belongs to; used by `dynamic` alone, whose
        frequencies are those that transformers gives to the sequence by itself.
      dtype: at least float32.

    Returns:
      Two arrays [B, S, d/2] of `dtype`.
    """
    if rope.kind == "dynamic":
        longest = jnp.maximum(lengths, rope.context).astype(dtype)
        stretch = rope.factor * longest / rope.context - (rope.factor - 1)
        theta = rope.theta * stretch ** (head_dim / (head_dim - 2))
        frequency = theta[..., None] ** -jnp.asarray(np.arange(0, head_dim, 2) / head_dim, dtype)
    else:
        frequency = jnp.asarray(rope.frequencies(head_dim), dtype)
    angle = positions[..., None].astype(dtype) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies the table to x [B, S, H, d], in the table's precision; the halves of d are the pairs, as in Hugging
    Face weights.
    """
    cos, sin = (part[:, :, None, :] for part in table)
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
