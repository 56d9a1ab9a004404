"""Models that exist already: their states, comparisons, and adapters merged into them.

What `import mossa_jax` offers beside `load_model` and `cka`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED
from mossa_jax.devices.mesh import replicated
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.llama.adapters import stack, zero_adapter
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.files.peft import is_adapter, load_adapter, read_about
from mossa_jax.log import log
from mossa_jax.similarity import compare_states
from mossa_jax.similarity.cells import cells
from mossa_jax.states import POOLS, KeptStates, keep_states
from mossa_jax.tokens.tokenizer import TEMPLATES, encode_prompts

COLUMNS = ("layer", "estimator", "cka", "low", "high", "n", "undefined")
_BATCH_ROWS = 32
_CACHED = 2048  # positions a forward pass on a CPU, whose states then stay in its cache: a fifth faster


def layer_states(
    model: Model,
    prompts: Sequence[str],
    pool: str = "last",
    *,
    adapter: str | None = None,
    template: str = "none",
    max_tokens: int | None = None,
) -> dict[str, np.ndarray]:
    """Pooled states of every layer for some prompts.

    Args:
      model: from `load_model`.
      prompts: texts; BOS is put in front exactly once.
      pool: "last" (last prompt token) or "mean" (over the prompt's tokens).
      adapter: a PEFT folder to run the model with; default: the model alone.
      template: "none", "llama2" or "chat".
      max_tokens: prompts are cut to so many on the right; default: what the model was made for.

    Returns:
      Layer name ("embed", "1".."L", "final_norm") -> [n, D] float32, row i for prompt i.

    Raises:
      Refusal: 2 for a bad option, 3 for no prompts or an adapter that does not fit.
    """
    folders = [] if adapter is None else [adapter]
    for folder in folders:
        _check_template(model, folder, template)
    ids = _encode(model, prompts, template, max_tokens)
    kept = _states(model, [load_adapter(folder, model.architecture) for folder in folders] or [{}], ids, pool)
    states = np.asarray(jax.device_put(kept.states, replicated(model.mesh)).addressable_data(0))[0, :, : len(prompts)]
    return dict(zip(kept.names, states, strict=True))


@dataclass(frozen=True)
class _Side:
    """One model of a comparison: the base with an adapter, or a whole model."""

    name: str
    model: Model
    adapter: dict


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
) -> pd.DataFrame:
    """CKA between two models at every layer over the same prompts.

    Args:
      base: the base model: folder, hub id, or a loaded `Model`. Its tokenizer encodes the prompts for both sides.
      experimental: "pretrained" (the base itself), a PEFT adapter folder for the base, or a whole model.
      control: an adapter folder or a whole model.
      prompts: texts, at least 4.
      pool, template, max_tokens: as in `layer_states`.
      dtype, revision: as in `load_model`.

    Returns:
      A row per layer name and estimator: `layer, estimator, cka, low, high, n, undefined`; `low` and `high` are the
      95 % jackknife interval; where `undefined` holds a reason, the figures are NaN.

    Raises:
      Refusal: 2 or 3 with the reason.
    """
    for name in (base, experimental, control):  # access is checked for all before anything is loaded
        if isinstance(name, str) and name != PRETRAINED and not is_adapter(name):
            locate(name, revision if name == base else "", config_only=True)
    model = base if isinstance(base, Model) else load_model(base, dtype, revision=revision)
    sides = [_side(model, experimental, dtype), _side(model, control, dtype)]
    for name in (experimental, control):
        _check_template(model, name, template)
    depths = [side.model.architecture.layers for side in sides]
    if depths[0] != depths[1]:
        raise Refusal(BAD_INPUT, f"{experimental} has {depths[0]} layers and {control} {depths[1]}; they must agree")
    ids = _encode(model, prompts, template, max_tokens)
    if repeats := len(ids) - len(set(map(tuple, ids))):
        log.warning(
            "%d of %d prompts repeat others, which raises debiased values and narrows intervals; leave them out",
            repeats, len(ids),
        )  # fmt: skip
    if sides[0].model is sides[1].model:
        kept = _states(sides[0].model, [side.adapter for side in sides], ids, pool)
        states, valid, names = kept.states, kept.valid, kept.names
    else:
        both = [_states(side.model, [side.adapter], ids, pool) for side in sides]
        width = max(kept.states.shape[-1] for kept in both)  # zero columns change no inner product
        padded = [jnp.pad(k.states, ((0, 0), (0, 0), (0, 0), (0, width - k.states.shape[-1]))) for k in both]
        states, valid, names = jnp.concatenate(padded), both[0].valid, both[0].names
    pairs = [(0, 1)]
    rows = cells(compare_states(states, valid, pairs), pairs, names)[0]
    return pd.DataFrame(rows)[list(COLUMNS)]


def _side(model: Model, name: str, dtype: str) -> _Side:
    if name == PRETRAINED:
        return _Side(name, model, {})
    if is_adapter(name):
        return _Side(name, model, load_adapter(name, model.architecture))
    other = load_model(name, dtype, model.mesh)
    if other.architecture.vocab != model.architecture.vocab:
        raise Refusal(
            BAD_INPUT,
            f"{name} has a vocabulary of {other.architecture.vocab}, {model.name} of {model.architecture.vocab}; "
            "both sides must read the same ids",
        )
    return _Side(name, other, {})


def _check_template(model: Model, name: str, template: str) -> None:
    """Refuses to ask a tuned model in other words than it was tuned with, where its folder says in which."""
    if name != PRETRAINED and template in TEMPLATES:
        what = "adapter" if is_adapter(name) else "model"
        model.tokenizer(template).check_record(read_about(name).get("template"), f"{what} {name}")


def _encode(model: Model, prompts: Sequence[str], template: str, max_tokens: int | None) -> list[list[int]]:
    if template not in TEMPLATES:
        raise Refusal(BAD_CONFIG, f"template {template!r} is unknown; these are: {', '.join(TEMPLATES)}")
    if max_tokens is not None and max_tokens < 1:
        raise Refusal(BAD_CONFIG, f"max_tokens={max_tokens} leaves nothing to read; give at least 1")
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise Refusal(BAD_INPUT, "prompts must be a list of texts")
    if len(prompts) == 0:
        raise Refusal(BAD_INPUT, "no prompts were given; similarity needs at least 4")
    limit = model.architecture.positions if max_tokens is None else max_tokens
    ids, _ = encode_prompts(model.tokenizer(template), prompts, limit, "paper")
    empty = [index for index, prompt in enumerate(ids) if not prompt]
    if empty:
        raise Refusal(BAD_INPUT, f"prompt {empty[0]} has no tokens and the model has no BOS; leave it out")
    return ids


def _states(model: Model, adapters: list[dict], ids: list[list[int]], pool: str) -> KeptStates:
    if pool not in POOLS:
        raise Refusal(BAD_CONFIG, f"pool {pool!r} is unknown; these are: {', '.join(POOLS)}")
    arch = model.architecture
    if not any(adapters):
        adapters = [zero_adapter(arch) for _ in adapters]
    row_length = -(-max(len(prompt) for prompt in ids) // 64) * 64
    on_cpu = model.mesh.devices.flat[0].platform == "cpu"
    return keep_states(
        arch, model.state, stack(arch, adapters), ids, model.mesh, pool=pool, row_length=row_length,
        batch_rows=max(_CACHED // row_length, 1) if on_cpu else _BATCH_ROWS,
    )  # fmt: skip
