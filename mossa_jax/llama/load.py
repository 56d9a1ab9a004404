"""A model by folder or hub id: architecture, weights on the mesh, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from mossa_jax import mesh as mesh_lib
from mossa_jax.llama.architecture import Architecture, read_architecture
from mossa_jax.llama.weights import load_weights
from mossa_jax.rundir import BAD_INPUT, NO_ACCESS, Refusal
from mossa_jax.tokens.tokenizer import Tokenizer, load_tokenizer

_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")


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
      dtype: "float32" or "bfloat16"; weights and compute.
      mesh: default: one device.
      revision: of a hub id.

    Raises:
      Refusal: 3 when the model is missing or cannot be represented, 4 when access is denied.
    """
    if dtype not in ("float32", "bfloat16"):
        raise Refusal(BAD_INPUT, f"dtype {dtype!r} is not supported; float32 and bfloat16 are")
    folder = locate(name, revision)
    architecture = read_architecture(folder)
    mesh = mesh_lib.single_device() if mesh is None else mesh
    return Model(name, folder, architecture, load_weights(folder, architecture, mesh, jnp.dtype(dtype)), mesh)


def locate(name: str, revision: str = "") -> epath.Path:
    """The folder of a model: itself, or a hub id's snapshot, downloaded on first use.

    Raises:
      Refusal: 3 when there is no such folder or repository, 4 when the repository is gated.
    """
    folder = epath.Path(name)
    if folder.is_dir():
        return folder
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise Refusal(BAD_INPUT, f"model folder {name} does not exist; give a Hugging Face folder or a hub id org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return epath.Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_FILES)))
    except GatedRepoError:
        raise Refusal(
            NO_ACCESS,
            f"hub model {name} is gated: ask for access on its page, then set HF_TOKEN; an ungated model of the same "
            "shape, or a local folder, works as well",
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise Refusal(
            BAD_INPUT, f"{name} is neither a folder nor a hub model{f' with revision {revision}' if revision else ''}"
        ) from None
    except OSError as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refusal(BAD_INPUT, f"{name} is no folder here and the hub cannot be reached ({first})") from None
