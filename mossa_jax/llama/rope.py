"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864), and how long contexts stretch their frequencies.

Shape letters: B rows, S positions, H heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

ROPE_TYPES = ("default", "linear", "dynamic", "llama3")


@dataclass(frozen=True)
class Rope:
    """Frequencies of the rotation.

    Attributes:
      theta: base of the frequencies.
      rope_type: one of `ROPE_TYPES`. `linear` divides all frequencies by `factor`. `dynamic` lets theta grow with a
        sequence that is longer than `context` (NTK-aware scaling). `llama3` divides long wavelengths by `factor`,
        keeps short ones, and puts a ramp between them.
      factor: how far the context is stretched.
      context: positions of the original training, for `dynamic` and `llama3`.
      low, high: for `llama3`: the ramp runs over wavelengths from context / low down to context / high.

    References:
      Chen et al. 2023, "Extending context window of large language models via positional interpolation", arXiv
      2306.15595 (`linear`); Peng et al. 2023, "YaRN", arXiv 2309.00071 (`dynamic`: NTK-aware scaling).
    """

    theta: float
    rope_type: str = "default"
    factor: float = 1.0
    context: int = 0
    low: float = 1.0
    high: float = 1.0

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Returns radians per position for each pair of a head: [d/2] float64.

        For `dynamic` these are the frequencies of sequences within the context.
        """
        # theta^(-2i/d) for pair i (section 3.2.2), in float64 on the host and rounded once.
        frequency = self.theta ** -(np.arange(0, head_dim, 2) / head_dim)
        if self.rope_type == "linear":
            return frequency / self.factor
        if self.rope_type == "llama3":
            # Turns of each pair over the original context.
            turns = self.context * frequency / (2 * np.pi)
            # 1 for pairs with more than `high` turns, 0 for fewer than `low`, and a ramp between.
            unstretched = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
            return unstretched * frequency + (1 - unstretched) * frequency / self.factor
        return frequency


class RotaryTable(NamedTuple):
    """Cosine and sine of every position's angles.

    Attributes:
      cos, sin: [B, S, d/2], float32 or wider.
    """

    cos: Float[Array, "B S half_d"]
    sin: Float[Array, "B S half_d"]


def read_rope(config: dict[str, Any], positions: int) -> Rope:
    """Reads the rotation from a `config.json`, in the spelling of transformers 4 or 5.

    Args:
      config: parsed `config.json`.
      positions: its `max_position_embeddings`.

    Raises:
      KeyError: a parameter of the scaling is missing.
      ValueError: the type is not one of `ROPE_TYPES`, or its parameters make no sense.
      TypeError: a value has the wrong type.
    """
    # transformers 4 has `rope_scaling` and `rope_theta`, transformers 5 puts both into `rope_parameters`.
    settings = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope_type = settings.get("rope_type") or settings.get("type") or "default"
    theta = float(settings.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    if rope_type not in ROPE_TYPES:
        raise ValueError(f"rope_type {rope_type!r} is not supported; use one of {', '.join(ROPE_TYPES)}")
    partial = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if float(partial) != 1.0:
        raise ValueError(f"partial_rotary_factor={partial} is not supported; only whole heads are rotated")
    if rope_type == "default":
        return Rope(theta)
    factor = float(settings["factor"])
    if factor < 1:
        raise ValueError(f"rope factor {factor} is below 1")
    if rope_type == "linear":
        return Rope(theta, rope_type, factor)
    if rope_type == "dynamic":
        # The context is `max_position_embeddings`, as in transformers; the config names no other.
        return Rope(theta, rope_type, factor, positions)
    low, high = float(settings["low_freq_factor"]), float(settings["high_freq_factor"])
    if high <= low:
        raise ValueError(f"high_freq_factor={high} must be above low_freq_factor={low}")
    return Rope(theta, rope_type, factor, int(settings["original_max_position_embeddings"]), low, high)


def rotary_table(
    rope: Rope, head_dim: int, positions: Int[Array, "B S"], lengths: Int[Array, "B S"] | None, dtype: DTypeLike
) -> RotaryTable:
    """Computes the cosine and sine of every position's angles.

    Args:
      rope: frequencies.
      head_dim: d.
      positions: [B, S] int32.
      lengths: [B, S] int32, the length of the sequence that each position belongs to. Only `dynamic` needs it: its
        frequencies are those that transformers gives to that sequence alone.
      dtype: at least float32.

    Returns:
      Two arrays [B, S, d/2] of `dtype`.
    """
    if rope.rope_type == "dynamic":
        assert lengths is not None, "dynamic scaling needs the lengths of sequences"
        # NTK-aware scaling: theta grows so that the slowest pair is stretched by `stretch`, the fastest not at all.
        # Within the context `stretch` is 1.
        longest = jnp.maximum(lengths, rope.context).astype(dtype)  # [B, S]
        stretch = rope.factor * longest / rope.context - (rope.factor - 1)
        theta = rope.theta * stretch ** (head_dim / (head_dim - 2))
        # [B, S, d/2]
        frequency = theta[..., None] ** -jnp.asarray(np.arange(0, head_dim, 2) / head_dim, dtype)
    else:
        frequency = jnp.asarray(rope.frequencies(head_dim), dtype)  # [d/2]
    # In float32 also for bfloat16 models: an angle of 1,000 radians in bfloat16 is off by up to 2.
    angle = positions[..., None].astype(dtype) * frequency  # [B, S, d/2]
    return RotaryTable(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B S H d"], table: RotaryTable) -> Float[Array, "B S H d"]:
    """Rotates `x` [B, S, H, d] in the table's precision.

    Element i is paired with element i + d/2, as in Hugging Face weights.
    """
    cos, sin = (x[:, :, None, :] for x in table)  # [B, S, 1, d/2]
    # [B, S, H, d/2] each. A pair (x, y) turns to (x cos - y sin, y cos + x sin).
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
