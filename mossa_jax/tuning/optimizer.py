"""AdamW with clipping and a cosine, as a function of a step count that may differ between models of a population.

Beside it what full fine-tuning takes: the same for all parameters of one model, and Adafactor.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from mossa_jax.llama.placement import leaf_name


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


@dataclass(frozen=True)
class FullOptimizer(Optimizer):
    """`Optimizer` for all parameters: AdamW, or Adafactor for memory; weight decay is on norms and biases as well.

    Adafactor (Shazeer and Stern, arXiv 1804.04235) has no first moment, keeps means of rows and columns as a matrix's
    second moments, which decay by 1 - t^-0.8, and scales an update down to a root mean square of 1. Steps are not
    scaled by the size of parameters: a learning rate means about what it means for Adam. Betas are not used.

    Attributes:
      kind: one of `config.OPTIMIZERS`.
    """

    kind: str = "adamw"

    def transformation(self) -> optax.GradientTransformation:
        """Clip by global norm, moments, decoupled decay; the learning rate is applied in `update`."""
        moments = optax.scale_by_adam(b1=self.beta1, b2=self.beta2)
        if self.kind == "adafactor":
            factored = optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=1)
            moments = _by_layer(optax.chain(factored, optax.clip_by_block_rms(1.0)))
        return optax.chain(_clip(self.clip), moments, optax.add_decayed_weights(self.weight_decay))


def _clip(largest: float) -> optax.GradientTransformation:
    """Clip by global norm. optax's divides each gradient, and XLA keeps a quotient that is used twice in memory."""

    def update(updates, state, parameters=None):
        scale = jnp.minimum(1.0, largest / optax.global_norm(updates))
        return jax.tree.map(lambda leaf: scale * leaf, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _by_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that meets each layer's matrices by themselves, and not the stack of them."""

    def parts(tree):
        named = {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        return [{n: leaf for n, leaf in named.items() if n.startswith("blocks.") == stacked} for stacked in (0, 1)]

    def init(parameters):
        rest, blocks = parts(parameters)
        return inner.init(rest), jax.vmap(inner.init)(blocks)

    def update(updates, state, parameters):
        rest, blocks = zip(parts(updates), state, parts(parameters), strict=True)
        (rest, state_rest), (blocks, state_blocks) = inner.update(*rest), jax.vmap(inner.update)(*blocks)
        named = {**rest, **blocks}
        return jax.tree.map_with_path(lambda path, _: named[leaf_name(path)], updates), (state_rest, state_blocks)

    return optax.GradientTransformation(init, update)
