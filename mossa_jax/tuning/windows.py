"""The losses that a curve shows: means over windows of a model's own steps.

A window ends at every `tuning.log_every`-th step of a model, and at its last one. The sum since the last end is part of
the training state, so a checkpoint may cut a window anywhere: the curve of a run that was interrupted is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int


class Window(NamedTuple):
    """The losses since a window began, one entry per model. Names and order are part of the checkpoint format.

    Attributes:
      losses: number of the finite ones.
      total: their sum, nats per answer token.
    """

    losses: Int[Array, " ..."]
    total: Float[Array, " ..."]

    @classmethod
    def of(cls, make: Callable[[DTypeLike], Any]) -> Window:
        """Fills each field with what `make` returns for its dtype: arrays, shapes or shardings."""
        return cls(losses=make(np.int32), total=make(np.float32))


def add_loss(
    window: Window, step: Int[Array, ""], loss: Float[Array, ""], is_finite: Bool[Array, ""], length: int
) -> Window:
    """Returns the window after a step of one model.

    Args:
      window: before the step.
      step: number of the step, from 0.
      loss: nats per answer token.
      is_finite: whether it counts.
      length: steps of a window, `tuning.log_every`.
    """
    is_first = step % length == 0
    losses, total = (jnp.where(is_first, 0, field) for field in window)
    # A selection, so that a loss that is not finite adds 0.
    return Window(losses + is_finite, total + jnp.where(is_finite, loss, 0.0).astype(jnp.float32))


def ends_window(done: int, length: int, total: int) -> bool:
    """Returns whether a window ends when a model has done `done` of its `total` steps."""
    return done % length == 0 or done == total
