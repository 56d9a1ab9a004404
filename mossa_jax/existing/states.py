"""States of one model at every layer: `mossa.layer_states`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import jax
import numpy as np
from jaxtyping import Float

from mossa_jax.devices.mesh import replicated
from mossa_jax.existing.passes import (
    ALL,
    TOKEN_POSITIONS,
    BatchProgress,
    batch_count,
    check_tuned,
    pass_config,
    stack_adapters,
)
from mossa_jax.existing.prompts import Reading, check_choice, check_texts
from mossa_jax.foreign import user_path
from mossa_jax.llama.files.adapted import load_adapted
from mossa_jax.llama.files.load import Model
from mossa_jax.states import POOLS, TokenStates, keep_states, token_states
from mossa_jax.states.finite import find_not_finite_on_host, refuse_not_finite

TOKENS = "tokens"
"""The pooling of `layer_states` that pools nothing."""


@overload
def layer_states(
    model: Model,
    prompts: Sequence[str],
    pool: Literal["tokens"],
    *,
    adapter: str | None = None,
    template: str = "none",
    max_tokens: int | None = None,
    truncation: str = "keep_end",
) -> TokenStates: ...


@overload
def layer_states(
    model: Model,
    prompts: Sequence[str],
    pool: str = "last",
    *,
    adapter: str | None = None,
    template: str = "none",
    max_tokens: int | None = None,
    truncation: str = "keep_end",
) -> dict[str, Float[np.ndarray, "n D"]]: ...


def layer_states(
    model: Model,
    prompts: Sequence[str],
    pool: str = "last",
    *,
    adapter: str | None = None,
    template: str = "none",
    max_tokens: int | None = None,
    truncation: str = "keep_end",
) -> dict[str, Float[np.ndarray, "n D"]]:
    """Computes the states of every layer for a list of prompts.

    Args:
      model: from `load_model`.
      prompts: n texts. BOS is put in front of each exactly once, if the model has one.
      pool: "last" takes the state of a prompt's last token, "mean" the mean over its tokens, "tokens" the states of
        all its tokens: 4 (L + 2) D bytes per token on the host, half a megabyte for a model of 7B.
      adapter: a PEFT adapter folder to run the model with; by default the model runs alone.
      template: "none", "llama2" or "chat"; the template that the prompts are put into.
      max_tokens: longer prompts are cut to this many tokens, and a warning says how many; by default to the positions
        that the model was made for.
      truncation: what a prompt that is too long loses: "keep_end" cuts the beginning of its content, as a run does by
        default (`tokens.truncation`), "paper" its right end, as in the MOSSA paper's own code.

    Returns:
      Layer name -> [n, D] float32, row i for prompt i. The names are "embed", "1" to "L" (the output of each block,
      before the final norm) and "final_norm", in this order. With pool "tokens" a row is a token, and the attributes
      `prompt`, `position` and `token` of the result say which one (`TokenStates`).

    Raises:
      Refusal: 2 for an option that does not exist; 3 for no prompts, for an adapter that does not fit the model, and
        for an adapter that was tuned with another template; 5 for states that are not finite, and for an adapter or a
        base that is not, naming layer or tensor.

    Example:
      >>> import mossa_jax as mossa
      >>> model = mossa.load_model("meta-llama/Llama-3.2-1B")
      >>> states = mossa.layer_states(model, ["Translate to German: cat", "What is the capital of France?"])
      >>> states["8"].shape
      (2, 2048)
      >>> tokens = mossa.layer_states(model, ["Translate to German: cat"], pool="tokens")
      >>> tokens["8"][tokens.position > 0]  # without BOS
    """
    check_choice("pool", pool, (*POOLS, TOKENS))
    reading = Reading(template, max_tokens, truncation)
    check_texts(prompts)
    if adapter is not None:
        adapter = user_path(adapter, "adapter")
        check_tuned(model, adapter, template)
    ids = reading.encode(model, {"": prompts})[""]
    model, update, _ = (model, {}, True) if adapter is None else load_adapted(model, adapter)
    adapters = stack_adapters(model, [update])
    is_pooled = pool != TOKENS
    config = pass_config(model, pool if is_pooled else ALL, [ids], 0 if is_pooled else TOKEN_POSITIONS)
    sizes = config.pack(model.architecture, ids).sizes
    shapes = config.shapes([sizes], model.mesh)
    after_batch = BatchProgress("states", batch_count(shapes, sizes)).after_batch()
    # What messages call the model that runs.
    name = model.name if adapter is None else f"{model.name} with {adapter}"
    if not is_pooled:
        tokens = token_states(model, adapters, ids, config, after_batch)
        _check_finite(name, model, tokens, "tokens")
        return tokens
    kept = keep_states(model, adapters, ids, config, shapes, after_batch)
    # [1, L + 2, slots, D] on the mesh -> [L + 2, n, D] on this host.
    whole = jax.device_put(kept.states, replicated(model.mesh)).addressable_data(0)
    states = dict(zip(kept.names, np.asarray(whole)[0, :, : len(prompts)], strict=True))
    _check_finite(name, model, states, "prompts")
    return states


def _check_finite(name: str, model: Model, states: dict[str, Float[np.ndarray, "n D"]], what: str) -> None:
    """Refuses, with code 5, states that are not finite."""
    where = find_not_finite_on_host(states)
    if where is not None:
        refuse_not_finite(name, where, model, what)
