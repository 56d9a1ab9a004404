"""AdamW with clipping and a cosine, as a function of a step count that may differ between models of a population.

Full fine-tuning has the same for all parameters of one model, or Adafactor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mossa_jax.llama.placement import leaf_name

Parameters = TypeVar("Parameters")


@dataclass(frozen=True)
class Optimizer:
    """AdamW; the schedule's length is an argument of the update, not of the compiled program.

    Attributes:
      learning_rate: at the top of the schedule.
      warmup: share of the steps in which the learning rate rises from zero.
      beta1, beta2: decay of the first and the second moment.
      weight_decay: decoupled, and scaled by the learning rate.
      clip: largest global norm of a gradient.

    References:
      Loshchilov and Hutter 2019, "Decoupled weight decay regularization", arXiv 1711.05101.
    """

    learning_rate: float
    warmup: float
    beta1: float
    beta2: float
    weight_decay: float
    clip: float

    def transformation(self) -> optax.GradientTransformation:
        """Clips by global norm, tracks Adam's moments, adds decoupled decay; `update` applies the learning rate."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.scale_by_adam(b1=self.beta1, b2=self.beta2),
            optax.add_decayed_weights(self.weight_decay),
        )

    def rate(self, step: Int[Array, " ..."], total: Int[Array, " ..."]) -> Float[Array, " ..."]:
        """Returns the learning rate at `step` of `total`: linear warm-up, then a half cosine to zero.

        Args:
          step: [...] integers from 0.
          total: [...] integers, the length of the schedule in steps.

        Returns:
          [...] float32.

        References:
          Loshchilov and Hutter 2017, "SGDR: Stochastic gradient descent with warm restarts", arXiv 1608.03983, equation
          5, without restarts.
        """
        # Float32 is exact for step counts up to 2^24. Both may be traced, and differ between the models of a `vmap`.
        step, total = jnp.asarray(step, jnp.float32), jnp.maximum(jnp.asarray(total, jnp.float32), 1)
        # The first step already moves (step + 1); the cosine reaches zero at `total`, one step after the last one.
        rise = jnp.floor(self.warmup * total)
        rising = (step + 1) / jnp.maximum(rise, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * (step - rise) / jnp.maximum(total - rise, 1)))
        # Both branches are computed; the divisors above are at least 1, so neither is ever NaN.
        return self.learning_rate * jnp.where(step < rise, rising, cosine)

    @jax.named_scope("optimizer")
    def update(
        self,
        gradients: Parameters,
        moments: optax.OptState,
        parameters: Parameters,
        step: Int[Array, ""],
        total: Int[Array, ""],
    ) -> tuple[Parameters, optax.OptState]:
        """Takes one step; returns the new parameters and the new moments.

        Args:
          gradients: of the mean loss, shaped like `parameters`.
          moments: state of `transformation`.
          parameters: before the step.
          step: from 0.
          total: length of the schedule.
        """
        updates, moments = self.transformation().update(gradients, moments, parameters)
        rate = self.rate(step, total)
        # The rate is applied here and not by optax, whose schedules have a length that is fixed when the program is
        # compiled. As in AdamW, it scales the decay as well.
        return jax.tree.map(lambda p, u: p - rate * u, parameters, updates), moments


@dataclass(frozen=True)
class FullOptimizer(Optimizer):
    """`Optimizer` for all parameters: AdamW, or Adafactor for memory; weight decay is on norms and biases as well.

    Adafactor has no first moment. It keeps means of rows and columns as a matrix's second moments, which decay by
    1 - t^-0.8, and scales an update down to a root mean square of 1. Steps are not scaled by the size of parameters,
    so a learning rate means about what it means for Adam. Betas are not used.

    Attributes:
      kind: one of `config.OPTIMIZERS`.

    References:
      Shazeer and Stern 2018, "Adafactor: Adaptive learning rates with sublinear memory cost", arXiv 1804.04235.
    """

    kind: str = "adamw"

    def transformation(self) -> optax.GradientTransformation:
        """Clips by global norm, tracks moments, adds decoupled decay; `update` applies the learning rate."""
        moments = optax.scale_by_adam(b1=self.beta1, b2=self.beta2)
        if self.kind == "adafactor":
            # The decay 1 - t^-0.8 is that of section 7.2, the clip at a root mean square of 1 that of section 6. Every
            # matrix is factored, however small.
            factored = optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=1)
            moments = _layer_by_layer(optax.chain(factored, optax.clip_by_block_rms(1.0)))
        return optax.chain(_clip(self.clip), moments, optax.add_decayed_weights(self.weight_decay))


def _clip(largest: float) -> optax.GradientTransformation:
    """Clips by global norm with one product per gradient.

    optax's own divides each gradient, and XLA keeps a quotient that is used twice in memory.
    """

    def update(updates: Any, state: optax.EmptyState, parameters: Any = None) -> tuple[Any, optax.EmptyState]:
        # A gradient of zero gives infinity here, and so a scale of 1.
        scale = jnp.minimum(1.0, largest / optax.global_norm(updates))
        return jax.tree.map(lambda leaf: scale * leaf, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _layer_by_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation to each layer's matrices by themselves, instead of to the stack of them."""

    def split(tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the leaves outside the blocks, and the blocks' leaves [L, ...], by name."""
        named = {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        blocks = {name: leaf for name, leaf in named.items() if name.startswith("blocks.")}
        # By name rather than as a state: the two halves are trees of different shapes.
        return {name: leaf for name, leaf in named.items() if name not in blocks}, blocks

    def init(parameters: Any) -> tuple[Any, Any]:
        rest, blocks = split(parameters)
        # Under `vmap` a block's matrix is [D_out, D_in]. In the stack [L, D_out, D_in] the layer axis could be taken
        # for one of the two that are factored, and one clip would hold for all layers together.
        return inner.init(rest), jax.vmap(inner.init)(blocks)

    def update(updates: Any, state: tuple[Any, Any], parameters: Any) -> tuple[Any, tuple[Any, Any]]:
        (rest, blocks), (rest_parameters, block_parameters) = split(updates), split(parameters)
        rest, rest_state = inner.update(rest, state[0], rest_parameters)
        blocks, block_state = jax.vmap(inner.update)(blocks, state[1], block_parameters)
        named = {**rest, **blocks}
        return jax.tree.map_with_path(lambda path, _: named[leaf_name(path)], updates), (rest_state, block_state)

    return optax.GradientTransformation(init, update)
