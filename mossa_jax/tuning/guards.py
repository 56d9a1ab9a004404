"""Guards of a training step: they skip updates that are not finite, count loss spikes, and add up losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.tuning.windows import Window, add_loss

# A spike is a loss above _SPIKE times the usual loss, once a model has taken _SETTLED steps. The usual loss is a plain
# mean at first, then one that forgets over about 1 / _FORGET = 50 steps.
_SPIKE, _FORGET, _SETTLED = 3.0, 0.02, 20


class Guards(NamedTuple):
    """The memory of the guards, one entry per model. The names and their order are part of the checkpoint format.

    Attributes:
      bad: updates skipped in a row, up to and including this step.
      skipped: updates skipped in all.
      spikes: steps whose loss was a spike.
      usual: the usual loss, nats per answer token.
      window: the losses since the last one that was recorded.
    """

    bad: Int[Array, " ..."]
    skipped: Int[Array, " ..."]
    spikes: Int[Array, " ..."]
    usual: Float[Array, " ..."]
    window: Window

    @classmethod
    def of(cls, make: Callable[[DTypeLike], Any]) -> Guards:
        """Fills each field with what `make` returns for its dtype: arrays, shapes or shardings."""
        return cls(
            bad=make(np.int32),
            skipped=make(np.int32),
            spikes=make(np.int32),
            usual=make(np.float32),
            window=Window.of(make),
        )


def update_guards(
    guards: Guards, step: Int[Array, ""], loss: Float[Array, ""], is_finite: Bool[Array, ""], log_every: int
) -> Guards:
    """Returns the guards after a step of one model.

    Args:
      guards: before the step.
      step: number of the step, from 0.
      loss: nats per answer token.
      is_finite: whether both loss and gradient are finite; if not, the update is skipped.
      log_every: steps of a window.
    """
    usual = guards.usual
    # Compared with the usual loss before this step, which a spike would raise.
    is_spike = is_finite & (step >= _SETTLED) & (loss > _SPIKE * usual)
    # 1 / number of finite losses so far: a plain mean, until the share falls to _FORGET.
    share = jnp.maximum(1.0 / (step + 1.0 - guards.skipped), _FORGET)
    return Guards(
        bad=jnp.where(is_finite, 0, guards.bad + 1),
        skipped=guards.skipped + ~is_finite,
        spikes=guards.spikes + is_spike,
        usual=jnp.where(is_finite, usual + share * (loss - usual), usual),
        window=add_loss(guards.window, step, loss, is_finite, log_every),
    )


def keep_if(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Returns the tree `new` where `condition` holds, else the tree `old`, without a branch."""
    # A selection: no NaN of the side that is not taken gets through.
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)
