"""States and comparisons of models that exist already: `mossa.layer_states` and `mossa.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mossa_jax.config import PRETRAINED
from mossa_jax.devices.mesh import replicated
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.llama.adapters import Adapter, HostAdapters, stack, zero_adapter
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.files.peft import is_adapter, load_adapter, read_about
from mossa_jax.log import log
from mossa_jax.similarity import compare_states
from mossa_jax.similarity.cells import similarity_cells
from mossa_jax.similarity.checks import check_labels
from mossa_jax.states import POOLS, KeptStates, PassConfig, TokenStates, keep_states, token_states
from mossa_jax.tokens.packing import Packing
from mossa_jax.tokens.tokenizer import TEMPLATES, encode_prompts

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("layer", "estimator", "cka", "low", "high", "n", "undefined")
"""Columns of a table of `compare` and `compare_saved`."""

TOKENS = "tokens"
"""The pooling of `layer_states` that pools nothing."""

_BATCH_ROWS = 32
# States of every position and layer are on the devices at once: some two GB of them for a model of 7B.
_TOKEN_POSITIONS = 4096
# Positions per forward pass on a CPU: the states of so few stay in its cache, which makes a pass a fifth faster.
_CPU_POSITIONS = 2048


@overload
def layer_states(
    model: Model,
    prompts: Sequence[str],
    pool: Literal["tokens"],
    *,
    adapter: str | None = None,
    template: str = "none",
    max_tokens: int | None = None,
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
) -> dict[str, Float[np.ndarray, "n D"]]: ...


def layer_states(
    model: Model,
    prompts: Sequence[str],
    pool: str = "last",
    *,
    adapter: str | None = None,
    template: str = "none",
    max_tokens: int | None = None,
) -> dict[str, Float[np.ndarray, "n D"]]:
    """Computes the states of every layer for a list of prompts.

    Args:
      model: from `load_model`.
      prompts: n texts. BOS is put in front of each exactly once.
      pool: "last" takes the state of a prompt's last token, "mean" the mean over its tokens, "tokens" the states of
        all its tokens: 4 (L + 2) D bytes per token on the host, half a megabyte for a model of 7B.
      adapter: a PEFT adapter folder to run the model with; by default the model runs alone.
      template: "none", "llama2" or "chat"; the template that the prompts are put into.
      max_tokens: longer prompts are cut on the right to this many tokens; by default to the positions that the model
        was made for.

    Returns:
      Layer name -> [n, D] float32, row i for prompt i. The names are "embed", "1" to "L" (the output of each block,
      before the final norm) and "final_norm", in this order. With pool "tokens" a row is a token, and the attributes
      `prompt`, `position` and `token` of the result say which one (`TokenStates`).

    Raises:
      Refusal: 2 for an option that does not exist; 3 for no prompts, for an adapter that does not fit the model, and
        for an adapter that was tuned with another template.

    Example:
      >>> import mossa_jax as mossa
      >>> model = mossa.load_model("meta-llama/Llama-3.2-1B")
      >>> states = mossa.layer_states(model, ["Translate to German: cat", "What is the capital of France?"])
      >>> states["8"].shape
      (2, 2048)
      >>> tokens = mossa.layer_states(model, ["Translate to German: cat"], pool="tokens")
      >>> tokens["8"][tokens.position > 0]  # without BOS
    """
    _check_pool(pool, (*POOLS, TOKENS))
    if adapter is not None:
        _check_template(model, adapter, template)
    ids = _encode(model, prompts, template, max_tokens)
    loaded = {} if adapter is None else load_adapter(adapter, model.architecture)
    if pool == TOKENS:
        return token_states(model, _stack(model, [loaded]), ids, _pass_config(model, "all", ids, _TOKEN_POSITIONS))
    kept = _keep(model, [loaded], ids, pool)
    # [1, L + 2, slots, D] on the mesh -> [L + 2, n, D] on this host.
    whole = jax.device_put(kept.states, replicated(model.mesh)).addressable_data(0)
    states = np.asarray(whole)[0, :, : len(prompts)]
    return dict(zip(kept.names, states, strict=True))


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: a model with an adapter; the empty adapter is the model itself."""

    model: Model
    adapter: Adapter


def compare(
    base: str | Model,
    experimental: str,
    control: str,
    prompts: Sequence[str],
    *,
    pool: str = "last",
    template: str = "none",
    max_tokens: int | None = None,
    dtype: str = "float32",
    revision: str = "",
    items: Sequence | None = None,
) -> pd.DataFrame:
    """Computes CKA between two models at every layer, over the same prompts.

    Args:
      base: the base model: a folder, a hub id or a loaded `Model`. Its tokenizer encodes the prompts for both sides.
      experimental: "pretrained" (the base itself), a PEFT adapter folder for the base, or a whole model.
      control: an adapter folder for the base, or a whole model.
      prompts: texts, at least 4.
      pool: as in `layer_states`.
      template: as in `layer_states`.
      max_tokens: as in `layer_states`.
      dtype: number type of weights and compute, as in `load_model`.
      revision: of the base if it is a hub id.
      items: one id per prompt: prompts with the same one are related, as questions on one passage are. Pairs of them
        are left out of the debiased value, and intervals rest on items.

    Returns:
      One row per layer name and estimator, with the columns `layer, estimator, cka, low, high, n, undefined`.
      `estimator` is "biased" (the MOSSA paper's) or "debiased"; `low` and `high` are the ends of the 95 % jackknife
      interval; `n` is the number of prompts that counted. If `undefined` holds a reason, the figures are NaN.

    Raises:
      Refusal: 2 for an option that does not exist; 3 for a model, adapter or prompt that cannot be read, and for
        sides with different numbers of layers, vocabularies or templates; 4 if access to a model is denied.

    Example:
      >>> import mossa_jax as mossa
      >>> questions = [line.strip() for line in open("questions.txt")]
      >>> table = mossa.compare("meta-llama/Llama-2-7b-hf", "pretrained", "adapters/boolq", questions, pool="mean")
      >>> table[table.estimator == "debiased"].set_index("layer").cka.idxmin()  # where tuning changed most
    """
    import pandas as pd

    # Access is checked for all models before anything is loaded.
    for name in (base, experimental, control):
        if isinstance(name, str) and name != PRETRAINED and not is_adapter(name):
            locate(name, revision if name == base else "", config_only=True)
    model = base if isinstance(base, Model) else load_model(base, dtype, revision=revision)
    sides = [_load_side(model, experimental, dtype), _load_side(model, control, dtype)]
    for name in (experimental, control):
        _check_template(model, name, template)
    depths = [side.model.architecture.layers for side in sides]
    if depths[0] != depths[1]:
        raise Refusal(BAD_INPUT, f"{experimental} has {depths[0]} layers and {control} {depths[1]}; they must agree")
    ids = _encode(model, prompts, template, max_tokens)
    check_labels(items, None, len(ids))
    _warn_of_repeats(ids)
    if sides[0].model is sides[1].model:
        kept = _keep(model, [side.adapter for side in sides], ids, pool)
        states = kept.states  # [2, L + 2, n, D]
    else:
        both = [_keep(side.model, [side.adapter], ids, pool) for side in sides]
        kept = both[0]
        # The narrower side gets zero columns, which change no inner product.
        width = max(side.states.shape[-1] for side in both)
        padded = [jnp.pad(s.states, ((0, 0), (0, 0), (0, 0), (0, width - s.states.shape[-1]))) for s in both]
        states = jnp.concatenate(padded)
    pairs = [(0, 1)]
    labels = None
    if items is not None:
        # The kept states have slots behind the prompts, which belong to no item.
        names = np.unique(np.asarray(items), return_inverse=True)[1].reshape(-1)
        labels = np.pad(names, (0, len(kept.valid) - len(ids)), constant_values=-1)
    similarities = compare_states(states, kept.valid, pairs, items=labels)
    rows = similarity_cells(similarities, pairs, kept.names)[0]
    return pd.DataFrame(rows)[list(COLUMNS)]


def _load_side(model: Model, name: str, dtype: str) -> _Side:
    if name == PRETRAINED:
        return _Side(model, {})
    if is_adapter(name):
        return _Side(model, load_adapter(name, model.architecture))
    other = load_model(name, dtype, model.mesh)
    if other.architecture.vocab != model.architecture.vocab:
        raise Refusal(
            BAD_INPUT,
            f"{name} has a vocabulary of {other.architecture.vocab}, {model.name} of {model.architecture.vocab}; "
            "both sides must read the same ids",
        )
    return _Side(other, {})


def _check_template(model: Model, name: str, template: str) -> None:
    """Refuses to prompt a tuned model with another template than its folder says it was tuned with."""
    if name != PRETRAINED and template in TEMPLATES:
        label = f"{'adapter' if is_adapter(name) else 'model'} {name}"
        model.tokenizer(template).check_record(read_about(name).get("template"), label)


def _encode(model: Model, prompts: Sequence[str], template: str, max_tokens: int | None) -> list[list[int]]:
    if template not in TEMPLATES:
        raise Refusal(BAD_CONFIG, f"template {template!r} is unknown; give one of {', '.join(TEMPLATES)}")
    if max_tokens is not None and max_tokens < 1:
        raise Refusal(BAD_CONFIG, f"max_tokens={max_tokens} leaves nothing to read; give at least 1")
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise Refusal(BAD_INPUT, "prompts are not a list of texts; give a list, one text per prompt")
    if len(prompts) == 0:
        raise Refusal(BAD_INPUT, "there are no prompts; similarity needs at least 4")
    limit = model.architecture.positions if max_tokens is None else max_tokens
    ids, _ = encode_prompts(model.tokenizer(template), prompts, limit, "paper")
    empty = [index for index, prompt in enumerate(ids) if not prompt]
    if empty:
        raise Refusal(BAD_INPUT, f"prompt {empty[0]} has no tokens and the model has no BOS; leave it out")
    return ids


def _warn_of_repeats(ids: Sequence[Sequence[int]]) -> None:
    if repeats := len(ids) - len(set(map(tuple, ids))):
        log.warning(
            "%d of %d prompts repeat others, which raises debiased values and narrows intervals; leave them out",
            repeats,
            len(ids),
        )


def _keep(model: Model, adapters: Sequence[Adapter], ids: Sequence[Sequence[int]], pool: str) -> KeptStates:
    """Runs a model with each of several adapters; the empty adapter is the model itself."""
    _check_pool(pool, POOLS)
    return keep_states(model, _stack(model, adapters), ids, _pass_config(model, pool, ids))


def _check_pool(pool: str, pools: Sequence[str]) -> None:
    if pool not in pools:
        raise Refusal(BAD_CONFIG, f"pool {pool!r} is unknown; give one of {', '.join(pools)}")


def _stack(model: Model, adapters: Sequence[Adapter]) -> HostAdapters:
    """Stacks adapters [M, ...] on the host; empty ones become zeros."""
    arch = model.architecture
    return stack(arch, adapters if any(adapters) else [zero_adapter(arch) for _ in adapters])


def _pass_config(model: Model, pool: str, ids: Sequence[Sequence[int]], most_positions: int = 0) -> PassConfig:
    """Chooses rows that the prompts fit, and how many of them run at once; `most_positions` 0 for no bound."""
    packing = Packing.fitting(ids)
    on_cpu = model.mesh.devices.flat[0].platform == "cpu"
    positions = _CPU_POSITIONS if on_cpu else most_positions
    return PassConfig(pool, max(positions // packing.row_length, 1) if positions else _BATCH_ROWS, packing)
