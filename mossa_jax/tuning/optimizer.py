"""AdamW with clipping and a cosine, as a function of a step count that may differ between models of a population."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax


@dataclass(frozen=True)
class Optimizer:
    """Loshchilov and Hutter's AdamW; the schedule's length is an argument of the update, not of the program."""

    learning_rate: float
    warmup: float
    beta1: float
    beta2: float
    weight_decay: float
    clip: float

    def transformation(self) -> optax.GradientTransformation:
        """Clip by global norm, Adam moments, decoupled decay; the learning rate is applied in `update`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.scale_by_adam(b1=self.beta1, b2=self.beta2),
            optax.add_decayed_weights(self.weight_decay),
        )

    def rate(self, step: jax.Array, total: jax.Array) -> jax.Array:
        """Learning rate at `step` (from 0) of `total`: linear warm-up, then a half cosine to zero."""
        step, total = jnp.asarray(step, jnp.float32), jnp.maximum(jnp.asarray(total, jnp.float32), 1)
        rise = jnp.floor(self.warmup * total)
        rising = (step + 1) / jnp.maximum(rise, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * (step - rise) / jnp.maximum(total - rise, 1)))
        return self.learning_rate * jnp.where(step < rise, rising, cosine)

    def update(self, gradients, moments, parameters, step, total):
        """One update; returns (parameters, moments)."""
        updates, moments = self.transformation().update(gradients, moments, parameters)
        rate = self.rate(step, total)
        return jax.tree.map(lambda p, u: p - rate * u, parameters, updates), moments
