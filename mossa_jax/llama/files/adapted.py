"""Base models with an adapter of others, which may bring weights of its own for the embedding, the head or norms."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.paths import on_disk
from mossa_jax.files.safetensors import read_header
from mossa_jax.llama.adapters import Adapter
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.peft import WEIGHTS, BaseChanges, read_adapter
from mossa_jax.llama.files.peft_modules import EMBEDDING
from mossa_jax.llama.files.weights import replace_weights
from mossa_jax.llama.placement import leaf_name


class AdaptedModel(NamedTuple):
    """A base model as an adapter wants it, and the adapter.

    Attributes:
      model: the same object where the adapter changes nothing in the base.
      adapter: the updates of projections, NumPy float32.
      keeps_tied: false where the model's head is the embedding, and the adapter has changed one of the two alone.
    """

    model: Model
    adapter: Adapter
    keeps_tied: bool


def load_adapted(model: Model, folder: epath.PathLike) -> AdaptedModel:
    """Reads an adapter of any kind that `read_adapter` takes, and changes the base where it brings weights of its own.

    Arrays that do not change are shared with `model`, which stays as it is.

    Raises:
      Refusal: as in `peft.read_adapter`; 3 for ids beyond the embedding.
    """
    arch = model.architecture
    read = read_adapter(folder, arch)
    if not read.base:
        return AdaptedModel(model, read.adapter, read.base.keeps_tied)
    state = model.state
    if read.base.weights:
        with on_disk(epath.Path(folder) / WEIGHTS) as local:
            stored = read_header(epath.Path(local))
            places = {name: stored[in_file] for name, in_file in read.base.weights.items()}
            state = replace_weights(state, model.folder, arch, model.mesh, places)
    if read.base.rows and max(read.base.rows[0]) >= arch.vocab:
        raise Refusal(
            BAD_INPUT,
            f"{folder}: trainable_token_indices go up to {max(read.base.rows[0])}, the base model has {arch.vocab} ids",
        )
    state = jax.tree.map_with_path(lambda path, leaf: _updated(leaf_name(path), leaf, read.base), state)
    old, new = jax.tree.leaves(model.state), jax.tree.leaves(state)
    # Whole copies of what the base has anyway are common: PEFT stores the embedding unasked where it was resized.
    if all(one is other or bool((one == other).all()) for one, other in zip(old, new, strict=True)):
        return AdaptedModel(model, read.adapter, True)
    return AdaptedModel(dataclasses.replace(model, state=state), read.adapter, read.base.keeps_tied)


def _updated(name: str, leaf: jax.Array, changes: BaseChanges) -> jax.Array:
    """Returns a leaf of the model's state with the updates and rows that are meant for it."""
    module = {"embedding": EMBEDDING, "head": "lm_head"}.get(name)
    new = leaf
    if module in changes.updates:
        a, b, scale = changes.updates[module]
        # A row per id, [V, D]: the embedding's a and the head's b have the ids.
        update = (a.T @ b.T if module == EMBEDDING else b @ a) * np.float32(scale)
        new = (leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) + update).astype(leaf.dtype)
    if module == EMBEDDING and changes.rows:
        ids, rows = changes.rows
        new = new.at[np.asarray(ids)].set(rows.astype(leaf.dtype))
    return new if new is leaf else jax.device_put(new, leaf.sharding)
