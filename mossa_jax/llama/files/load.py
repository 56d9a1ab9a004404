"""A model by folder or hub id: architecture, weights on the mesh, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from mossa_jax.config import MINIATURE, Config
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.architecture import Architecture, read_architecture
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.files.weights import load_weights
from mossa_jax.llama.model import shareable
from mossa_jax.monitoring import goodput
from mossa_jax.tokens.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Model:
    """A base model, ready to run.

    Attributes:
      name: the folder or hub id it was asked for by.
      folder: where its files lie.
      architecture: from its config.json.
      state: its weights, sharded over `mesh`.
      mesh: the devices.
    """

    name: str
    folder: epath.Path
    architecture: Architecture
    state: Any
    mesh: jax.sharding.Mesh

    def tokenizer(self, template: str = "none") -> Tokenizer:
        """Its tokenizer with a prompt template."""
        return load_tokenizer(self.folder, template, self.architecture.bos, self.architecture.eos)


def load_model(name: str, dtype: str = "float32", mesh: jax.sharding.Mesh | None = None, revision: str = "") -> Model:
    """Loads a Llama model.

    Args:
      name: a Hugging Face model folder or a hub id.
      dtype: "float32", "bfloat16" or, where jax computes with 64 bits, "float64"; weights and compute.
      mesh: default: one device.
      revision: of a hub id.

    Raises:
      Refusal: 2 for a number type, or a mesh that does not fit the model's heads; 3 when the model is missing or
        cannot be represented; 4 when access is denied.
    """
    if dtype not in ("float32", "bfloat16", "float64"):
        raise Refusal(BAD_CONFIG, f"dtype {dtype!r} is not supported; float32, bfloat16 and float64 are")
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise Refusal(BAD_CONFIG, "dtype 'float64' needs 64-bit jax; set JAX_ENABLE_X64=1")
    folder = locate(name, revision)
    architecture = read_architecture(folder)
    mesh = mesh_lib.single_device() if mesh is None else mesh
    with goodput.lost("load"):
        weights = load_weights(folder, architecture, mesh, jnp.dtype(dtype))
    return Model(name, folder, architecture, weights, mesh)


def base_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer of a configuration's base model, with its template; fetches no weights.

    Raises:
      Refusal: 3 for a model folder without config or tokenizer, 4 when access is denied.
    """
    if config.base == MINIATURE:
        from mossa_jax.tasks.miniature import TOKENIZER

        return load_tokenizer(TOKENIZER, config.tokens.template, bos=1, eos=(2,))
    folder = locate(config.base, config.revision, text_only=True)
    architecture = read_architecture(folder)
    return load_tokenizer(folder, config.tokens.template, architecture.bos, architecture.eos)


def may_share(config: Config) -> bool:
    """Whether the base model can work through leading ids once for several examples."""
    if config.base == MINIATURE:
        return True
    return shareable(read_architecture(locate(config.base, config.revision, config_only=True)))
