"""Numbers of a model's states that are not finite: found, and refused by the name of the model and its first layer.

A weight that is NaN, or a number type that a state overflows, makes every later layer of a prompt not finite, too.

Shape letters: M models, L layers, n rows, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.devices.mesh import replicated
from mossa_jax.errors import NOT_FINITE, Refusal
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.weights import first_not_finite
from mossa_jax.states.keep import KeptStates


class NotFinite(NamedTuple):
    """The first place where states are not finite.

    Attributes:
      model: its index.
      layer: the first layer with such states, by name.
      rows: how many rows of that layer are not finite.
      of: how many rows there are.
    """

    model: int
    layer: str
    rows: int
    of: int


def find_not_finite(kept: KeptStates) -> NotFinite | None:
    """Returns the first layer of the first model whose states are not finite in some row, or None."""
    assert isinstance(kept.states.sharding, jax.sharding.NamedSharding), "states are placed by name"
    counts = np.asarray(_counts(kept.states, kept.valid, kept.states.sharding.mesh))  # [M, L + 2]
    return _first(counts, kept.names, int(kept.valid.sum()))


def find_not_finite_on_host(states: Mapping[str, Float[np.ndarray, "n D"]]) -> NotFinite | None:
    """Does the same for one model's states by layer name."""
    counts = [int((~np.isfinite(rows).all(1)).sum()) for rows in states.values()]
    return _first(np.asarray([counts]), [*states], len(next(iter(states.values()))))


def refuse_not_finite(name: str, where: NotFinite, base: Model | None, what: str = "prompts") -> NoReturn:
    """Refuses states that are not finite.

    Args:
      name: of the model.
      where: the first such layer.
      base: the model whose weights it runs over, if it is at hand.
      what: the rows are, for the message.

    Raises:
      Refusal: 5, naming model and layer, and the weight of the base model that is not finite, if there is one.
    """
    found = f"{name}: states of layer {where.layer} are not finite for {where.rows:,} of {where.of:,} {what}"
    tensor = None if base is None else first_not_finite(base.state, base.architecture)
    if base is not None and tensor is not None:
        raise Refusal(NOT_FINITE, f"{found}: {tensor} of {base.name} holds NaN or infinity; copy the model again")
    raise Refusal(
        NOT_FINITE,
        f"{found}: numbers overflow; use dtype float32, and an adapter of a smaller scale",
    )


def _first(counts: Int[np.ndarray, "M K"], names: Sequence[str], rows: int) -> NotFinite | None:
    models, layers = np.nonzero(counts)
    if not len(models):
        return None
    return NotFinite(int(models[0]), names[layers[0]], int(counts[models[0], layers[0]]), rows)


@partial(jax.jit, static_argnums=2)
def _counts(states: Float[Array, "M K n D"], valid: Bool[Array, " n"], mesh: jax.sharding.Mesh) -> Int[Array, "M K"]:
    """Counts the rows of every model and layer that are not finite; all processes get the counts."""
    return jax.lax.with_sharding_constraint((valid & ~jnp.isfinite(states).all(3)).sum(2), replicated(mesh))
