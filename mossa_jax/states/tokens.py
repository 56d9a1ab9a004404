"""States of every token of every prompt, brought to the host: for probes, lenses and whatever else reads positions.

Shape letters: L layers, B packed rows, S positions, P prompts per row, D hidden, t tokens of all prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import Adapters, HostAdapters
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.model import merge
from mossa_jax.states.forward import Layer, PassSpec, RowBatch, run_models
from mossa_jax.states.prompts import PassConfig, PromptPass


class TokenStates(dict[str, np.ndarray]):
    """States of every token, a row per token: prompt after prompt, and in the order of the prompt.

    A dictionary from layer names to [t, D] float32, in the order of the layers; its attributes say whose the rows are.

    Attributes:
      prompt: [t] int32, the number of the token's prompt.
      position: [t] int32, its place in the prompt, from 0 (BOS).
      token: [t] int32, its id.
    """

    def __init__(
        self,
        layers: Mapping[str, Float[np.ndarray, "t D"]],
        prompt: Int[np.ndarray, " t"],
        position: Int[np.ndarray, " t"],
        token: Int[np.ndarray, " t"],
    ):
        """Joins layer name -> [t, D] with the prompt, position and id of each row."""
        super().__init__(layers)
        self.prompt, self.position, self.token = prompt, position, token

    def __repr__(self) -> str:
        prompts, shape = len(np.unique(self.prompt)), np.shape(next(iter(self.values()), np.zeros((0, 0))))
        return f"TokenStates({len(self)} layers x {shape[0]:,} tokens of {prompts:,} prompts x width {shape[1]:,})"

    def of_prompt(self, number: int) -> dict[str, Float[np.ndarray, "tokens D"]]:
        """Returns the states of one prompt's tokens, layer name -> [tokens, D]."""
        first, behind = np.searchsorted(self.prompt, [number, number + 1])
        return {name: states[first:behind] for name, states in self.items()}


def token_states(
    model: Model,
    adapter: HostAdapters,
    prompts: Sequence[Sequence[int]],
    config: PassConfig,
    after_batch: Callable[[np.ndarray], None] | None = None,
) -> TokenStates:
    """Runs one model over all prompts and returns the state of every token at every layer.

    Args:
      model: the base model.
      adapter: stacked [1, ...] on the host; a zero adapter is the base model itself.
      prompts: token ids, BOS included.
      config: batch size and packing; `pool` must be `all`.
      after_batch: called with the states of each batch.

    Raises:
      ValueError: a prompt has no ids or fits no row.
    """
    arch = model.architecture
    lengths = np.array([len(ids) for ids in prompts])
    starts = np.append(0, np.cumsum(lengths))
    # [L + 2, t, D]: one block of memory, of which each layer is a view.
    states = np.empty((arch.layers + 2, starts[-1], arch.hidden), np.float32)
    run = PromptPass(model, adapter, prompts, config)
    for batch in run.batches():
        # [L + 2, B, S, D], [B, S], [B, S] and [B, P], on this host.
        on_host = _to_host(model.mesh, token_batch(run.spec, *run.arguments, batch))
        segments, positions, ids = (_to_host(model.mesh, part) for part in (batch.segments, batch.positions, batch.ids))
        row, column = np.nonzero(segments)
        # The k-th prompt of a row is its segment k.
        place = starts[ids[row, segments[row, column] - 1]] + positions[row, column]
        states[:, place] = on_host[:, row, column]
        if after_batch is not None:
            after_batch(on_host)
    return TokenStates(
        dict(zip(arch.state_names(), states, strict=True)),
        prompt=np.repeat(np.arange(len(prompts), dtype=np.int32), lengths),
        position=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        token=np.concatenate([np.asarray(ids, np.int32) for ids in prompts]),
    )


@partial(jax.jit, static_argnames=("spec",))
def token_batch(spec: PassSpec, base: nnx.State, adapters: Adapters, batch: RowBatch) -> Float[Array, "L+2 B S D"]:
    """Runs one model over one batch and returns the states of every position, padding included, as float32."""
    rows, length = batch.tokens.shape
    shape = (spec.arch.layers + 2, rows, length, spec.arch.hidden)
    layout = mesh_lib.sharding(spec.mesh, shape, (None, "rows", None, None))

    def write(states: jax.Array, layer: Layer, x: jax.Array, every_position: bool) -> jax.Array:
        del every_position  # always, with pool `all`
        return jax.lax.with_sharding_constraint(states.at[layer].set(x[0].astype(jnp.float32)), layout)

    return run_models(spec, merge(spec.arch, base), adapters, batch, None, write, jnp.zeros(shape, jnp.float32))


def _to_host(mesh: jax.sharding.Mesh, array: jax.Array) -> Any:
    """Returns an array on the host of every process."""
    return np.asarray(jax.device_put(array, mesh_lib.replicated(mesh)).addressable_data(0))
