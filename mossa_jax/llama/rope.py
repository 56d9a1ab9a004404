"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864), and how long contexts stretch their frequencies.

Shape letters: B rows, S positions, H heads, d head width, R numbers of a head that are rotated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.foreign import short
from mossa_jax.llama.fields import Fields

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
# Fields of `rope_parameters`; others would mean a rotation that is not known here.
_KNOWN = (
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor",
    "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "truncate", "short_factor", "long_factor", "finetuned",
)  # fmt: skip
_LEAST, _MOST_POSITIONS, _MOST_THETA, _MOST_FACTOR = 1e-6, 10**9, 1e15, 1e6


@dataclass(frozen=True)
class Rope:
    """Frequencies of the rotation.

    Attributes:
      theta: base of the frequencies.
      rope_type: one of `ROPE_TYPES`. `linear` divides all frequencies by `factor`. `dynamic` lets theta grow with a
        sequence that is longer than `context` (NTK-aware scaling). `llama3` divides long wavelengths by `factor`,
        keeps short ones, and puts a ramp between them. `yarn` does the same with a ramp over the pairs' numbers.
        `longrope` divides each frequency by a factor of its own: `short`, or `long` for sequences beyond `context`.
      factor: how far the context is stretched.
      context: positions of the original training, for all types but `default` and `linear`.
      low, high: for `llama3`, the ramp runs over wavelengths from context / low down to context / high; for `yarn`,
        from the pair with `low` turns over the context down to the one with `high`.
      is_whole: for `yarn`, the ramp begins and ends at whole pairs.
      magnitude: factor of cosine and sine, for `yarn` and `longrope`.
      short, long: for `longrope`, R/2 divisors each.
      rotated: the first numbers of each head, which alone are rotated (R); 0: all.

    References:
      Chen et al. 2023, "Extending context window of large language models via positional interpolation", arXiv
      2306.15595 (`linear`); Peng et al. 2023, "YaRN", arXiv 2309.00071 (`yarn`, and `dynamic`: NTK-aware scaling);
      Ding et al. 2024, "LongRoPE", arXiv 2402.13753.
    """

    theta: float
    rope_type: str = "default"
    factor: float = 1.0
    context: int = 0
    low: float = 1.0
    high: float = 1.0
    is_whole: bool = True
    magnitude: float = 1.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    rotated: int = 0

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies depend on the length of the sequence that they are for."""
        return self.rope_type in ("dynamic", "longrope")

    @property
    def longest(self) -> int:
        """Returns the positions that the scaling was made for, where they follow from it; else 0."""
        return int(self.context * self.factor) if self.rope_type in ("dynamic", "yarn") else 0

    def width(self, head_dim: int) -> int:
        """Returns R of heads with `head_dim` numbers."""
        return self.rotated or head_dim

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Returns radians per position for each pair of a head: [R/2] float64.

        For `dynamic` and `longrope` these are the frequencies of sequences within the context.
        """
        width = self.width(head_dim)
        # theta^(-2i/R) for pair i (section 3.2.2), in float64 on the host and rounded once.
        frequency = self.theta ** -(np.arange(0, width, 2) / width)
        if self.rope_type == "linear":
            return frequency / self.factor
        if self.rope_type == "longrope":
            return frequency / np.asarray(self.short)
        if self.rope_type == "llama3":
            # Turns of each pair over the original context.
            turns = self.context * frequency / (2 * np.pi)
            # 1 for pairs with more than `high` turns, 0 for fewer than `low`, and a ramp between.
            unstretched = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        elif self.rope_type == "yarn":
            unstretched = 1 - self._ramp(width)
        else:
            return frequency
        return unstretched * frequency + (1 - unstretched) * frequency / self.factor

    def _ramp(self, width: int) -> np.ndarray:
        """Returns how far each pair is stretched by `yarn`: [R/2], 0 not at all, 1 by the whole factor."""

        def pair(turns: float) -> float:
            # The number of the pair that turns so often over the original context, as a real number.
            return width * math.log(self.context / (2 * math.pi * turns)) / (2 * math.log(self.theta))

        first, last = pair(self.high), pair(self.low)
        if self.is_whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        # Of no width, it is a step: as in transformers.
        last += 0.001 * (first == last)
        return np.clip((np.arange(width // 2) - first) / (last - first), 0.0, 1.0)


class RotaryTable(NamedTuple):
    """Cosine and sine of every position's angles.

    Attributes:
      cos, sin: [B, S, R/2], float32 or wider.
    """

    cos: Float[Array, "B S half_R"]
    sin: Float[Array, "B S half_R"]


class RotaryTables(NamedTuple):
    """The tables of a model whose windowed blocks rotate otherwise than the rest."""

    windowed: RotaryTable
    unwindowed: RotaryTable

    def of_block(self, is_windowed: Bool[Array, ""]) -> RotaryTable:
        """Returns the table of one block."""
        parts = zip(*self, strict=True)
        return RotaryTable(*(jax.lax.select(is_windowed, windowed, other) for windowed, other in parts))


def read_rope(fields: Fields, head_dim: int, positions: int, model_type: str) -> Rope:
    """Reads the rotation from a `config.json`, in the spelling of transformers 4 or 5.

    Args:
      fields: of the config.
      head_dim: d.
      positions: its `max_position_embeddings`.
      model_type: the family.

    Raises:
      ValueError: the type is not one of `ROPE_TYPES`, or a parameter is missing, unknown, or out of its range.
    """
    theta = fields.number("rope_theta", _LEAST, _MOST_THETA, 1_000_000.0 if model_type == "gemma3_text" else 10_000.0)
    share = fields.number("partial_rotary_factor", 0.0, 1.0, 1.0)
    old = fields.object("rope_scaling")
    if model_type == "gemma3_text":
        # Scaling of the old spelling is of the blocks without a window.
        settings = _of_blocks(fields, "full_attention")
        settings = Fields({**settings.config, **old}, settings.prefix)
        return _rope(settings, theta, 0, share, head_dim, positions, model_type)
    # transformers 4 has `rope_scaling` and `rope_theta`, transformers 5 puts both into `rope_parameters`, and reads the
    # first where a config has both.
    settings = Fields(old, "rope_scaling.") if old else Fields(fields.object("rope_parameters"), "rope_parameters.")
    # Phi 3 states it for the whole model, with a default, and so do some others.
    default = 4096 if model_type == "phi3" else 0
    context = fields.whole("original_max_position_embeddings", 1, _MOST_POSITIONS, default)
    return _rope(settings, theta, context, share, head_dim, positions, model_type)


def local_rope(fields: Fields, head_dim: int, positions: int) -> Rope:
    """Reads the rotation of windowed blocks in a family where it is another one; as `read_rope`."""
    theta = fields.number("rope_local_base_freq", _LEAST, _MOST_THETA, 10_000.0)
    return _rope(_of_blocks(fields, "sliding_attention"), theta, 0, 1.0, head_dim, positions, "gemma3_text")


def _of_blocks(fields: Fields, kind: str) -> Fields:
    """Returns the part of `rope_parameters` that is for one kind of blocks."""
    kinds = fields.object("rope_parameters")
    if other := [name for name in kinds if name not in ("full_attention", "sliding_attention")]:
        raise ValueError(f"rope_parameters.{short(other[0])} is none of full_attention and sliding_attention")
    part = Fields(kinds, "rope_parameters.").object(kind) if kinds else {"rope_type": "default"}
    return Fields(part, f"rope_parameters.{kind}.")


def _rope(
    settings: Fields, theta: float, context: int, share: float, head_dim: int, positions: int, model_type: str
) -> Rope:
    """Reads the parameters of one rotation; theta, context and share are what the rest of the config says of them."""
    if unknown := [name for name in settings.config if name not in _KNOWN and settings.has(name)]:
        raise ValueError(f"{settings.prefix}{short(unknown[0])} is not supported; a rotation has {', '.join(_KNOWN)}")
    # The first configs had `type`, and Phi 3 `su` or `yarn` for what is now LongRoPE.
    field = "rope_type" if settings.has("rope_type") else "type"
    names = {"su": "longrope", "yarn": "longrope"} if model_type == "phi3" else {}
    rope_type = settings.choice(field, (*ROPE_TYPES, *names), "default")
    rope_type = names.get(rope_type, rope_type)
    if model_type == "phi3" and rope_type not in ("default", "longrope"):
        raise ValueError(f"{settings.prefix}{field}={rope_type!r} is not supported in a phi3; use default or longrope")
    theta = settings.number("rope_theta", _LEAST, _MOST_THETA, theta)
    share = settings.number("partial_rotary_factor", 0.0, 1.0, share)
    rotated = int(head_dim * share)
    if share != 1.0 and (model_type != "phi3" or rotated < 2 or rotated % 2):
        raise ValueError(
            f"partial_rotary_factor={share} of heads with {head_dim} numbers is not supported; phi3 may rotate an even "
            "number of them, from 2, and all others rotate whole heads"
        )
    rotated = 0 if rotated == head_dim else rotated
    if rope_type == "default":
        return Rope(theta, rotated=rotated)
    context = context or settings.whole("original_max_position_embeddings", 1, _MOST_POSITIONS, positions)
    if rope_type == "longrope":
        return _longrope(settings, theta, context, rotated, head_dim, positions)
    # Null: as far as the model's positions go beyond its first context.
    is_null = rope_type == "yarn" and "factor" in settings.config
    factor = settings.number("factor", 1.0, _MOST_FACTOR, positions / context if is_null else None)
    if rope_type == "linear":
        return Rope(theta, rope_type, factor, rotated=rotated)
    if rope_type == "dynamic":
        if head_dim < 4:
            raise ValueError(f"rope_type=dynamic needs heads with 4 numbers or more, and head_dim={head_dim}")
        # The context is `max_position_embeddings`, as in transformers; the config names no other.
        return Rope(theta, rope_type, factor, positions, rotated=rotated)
    if rope_type == "llama3":
        low, high = (settings.number(name, 1e-9, 1e9) for name in ("low_freq_factor", "high_freq_factor"))
        if high <= low:
            raise ValueError(f"high_freq_factor={high} must be above low_freq_factor={low}")
        return Rope(theta, rope_type, factor, context, low, high, rotated=rotated)
    if theta <= 1:
        raise ValueError(f"rope_theta={theta} must be above 1 for rope_type=yarn")
    # 0 counts as absent, as in transformers.
    high, low = settings.number("beta_fast", 0, 1e9, 0) or 32.0, settings.number("beta_slow", 0, 1e9, 0) or 1.0
    return Rope(
        theta,
        rope_type,
        factor,
        context,
        low,
        high,
        is_whole=settings.flag("truncate", True),
        magnitude=_yarn_magnitude(settings, factor),
        rotated=rotated,
    )


def _yarn_magnitude(settings: Fields, factor: float) -> float:
    """Returns the factor of cosine and sine: stated, or 0.1 m log(factor) + 1 (section 3.4 of YaRN)."""

    def magnitude(m: float) -> float:
        return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale, all_dim = (settings.number(name, 0, 1e6, 0) for name in ("mscale", "mscale_all_dim"))
    if settings.has("attention_factor"):
        return settings.number("attention_factor", 0, 1e6)
    return magnitude(scale) / magnitude(all_dim) if scale and all_dim else magnitude(1.0)


def _longrope(settings: Fields, theta: float, context: int, rotated: int, head_dim: int, positions: int) -> Rope:
    pairs = (rotated or head_dim) // 2
    short_factors, long_factors = (settings.numbers(name, 1e-3, 1e6, pairs) for name in ("short_factor", "long_factor"))
    factor = settings.number("factor", 1e-3, _MOST_FACTOR, positions / context)
    magnitude = 1.0
    if settings.has("attention_factor"):
        magnitude = settings.number("attention_factor", 0, 1e6)
    elif factor > 1:
        if context < 2:
            raise ValueError(f"original_max_position_embeddings={context} is not from 2 on, which longrope needs")
        magnitude = math.sqrt(1 + math.log(factor) / math.log(context))
    return Rope(
        theta,
        "longrope",
        factor,
        context,
        magnitude=magnitude,
        short=short_factors,
        long=long_factors,
        rotated=rotated,
    )


def rotary_table(
    rope: Rope, head_dim: int, positions: Int[Array, "B S"], lengths: Int[Array, "B S"] | None, dtype: DTypeLike
) -> RotaryTable:
    """Computes the cosine and sine of every position's angles.

    Args:
      rope: frequencies.
      head_dim: d.
      positions: [B, S] int32.
      lengths: [B, S] int32, the length of the sequence that each position belongs to. Only a rotation that depends on
        it needs it: its frequencies are those that transformers gives to that sequence alone.
      dtype: at least float32.

    Returns:
      Two arrays [B, S, R/2] of `dtype`.
    """
    width = rope.width(head_dim)
    if rope.rope_type == "dynamic":
        assert lengths is not None, "dynamic scaling needs the lengths of sequences"
        # NTK-aware scaling: theta grows so that the slowest pair is stretched by `stretch`, the fastest not at all.
        # Within the context `stretch` is 1.
        longest = jnp.maximum(lengths, rope.context).astype(dtype)  # [B, S]
        stretch = rope.factor * longest / rope.context - (rope.factor - 1)
        theta = rope.theta * stretch ** (width / (width - 2))
        # [B, S, R/2]
        frequency = theta[..., None] ** -jnp.asarray(np.arange(0, width, 2) / width, dtype)
    else:
        frequency = jnp.asarray(rope.frequencies(head_dim), dtype)  # [R/2]
        if rope.rope_type == "longrope":
            assert lengths is not None, "long rotary scaling needs the lengths of sequences"
            beyond = rope.frequencies(head_dim) * np.asarray(rope.short) / np.asarray(rope.long)  # [R/2]
            # [B, S, R/2]
            frequency = jnp.where((lengths > rope.context)[..., None], jnp.asarray(beyond, dtype), frequency)
    # In float32 also for bfloat16 models: an angle of 1,000 radians in bfloat16 is off by up to 2.
    angle = positions[..., None].astype(dtype) * frequency  # [B, S, R/2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return RotaryTable(cos, sin) if rope.magnitude == 1 else RotaryTable(rope.magnitude * cos, rope.magnitude * sin)


def rotate(x: Float[Array, "B S H d"], table: RotaryTable) -> Float[Array, "B S H d"]:
    """Rotates the first R numbers of each head of `x` [B, S, H, d] in the table's precision.

    Element i is paired with element i + R/2, as in Hugging Face weights.
    """
    cos, sin = (x[:, :, None, :] for x in table)  # [B, S, 1, R/2]
    width = 2 * cos.shape[-1]
    turned, rest = (x, None) if width == x.shape[-1] else (x[..., :width], x[..., width:])
    # [B, S, H, R/2] each. A pair (x, y) turns to (x cos - y sin, y cos + x sin).
    first, second = jnp.split(turned.astype(cos.dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    rotated = rotated.astype(x.dtype)
    return rotated if rest is None else jnp.concatenate([rotated, rest], axis=-1)
