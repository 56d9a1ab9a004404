"""Models that a run exported, checked when they are read back."""

from __future__ import annotations

from typing import Any

import jax
from etils import epath

from mossa_jax.llama.adapters import Adapter
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.about import check_files, check_owner, damaged, read_about
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.llama.fingerprint import weights_digest

OWN_WEIGHTS = "own_weights"
"""The key of the record of a model that was tuned in full, for the digest of its own weights."""


def exported_about(folder: epath.PathLike, model: str) -> dict[str, Any]:
    """Returns the record of an exported model; empty where there is none.

    Args:
      folder: of the model.
      model: the name of the tuned model that has to be there.

    Raises:
      Refusal: 3 if the record is damaged, or that of another model.
    """
    about = read_about(folder)
    check_owner(folder, about, model)
    return about


def load_exported(folder: epath.PathLike, arch: Architecture, model: str) -> Adapter:
    """Reads an adapter that a run exported, after checking that it is whole and the model's own.

    Args:
      folder: of the adapter.
      arch: of the base.
      model: the name of the tuned model.

    Raises:
      Refusal: 3 if it is damaged or another model's; else as `load_adapter`.
    """
    check_files(folder, exported_about(folder, model))
    return load_adapter(folder, arch)


def load_exported_model(
    files: epath.PathLike, folder: epath.Path, dtype: str, mesh: jax.sharding.Mesh | None, model: str
) -> Model:
    """Reads a model that a run tuned in full, after checking that it is the model's own; its weights are checked after.

    Args:
      files: where its files are on this machine.
      folder: of the model in the run, for messages.
      dtype: that it was written in.
      mesh: as in `load_model`.
      model: the name of the tuned model.

    Raises:
      Refusal: 3 if it is damaged or another model's; else as `load_model`.
    """
    about = exported_about(folder, model)
    check_files(folder, about)
    loaded = load_model(str(files), dtype, mesh)
    # The files of weights are not read a second time.
    if about.get(OWN_WEIGHTS, (own := weights_digest(loaded.state))) != own:
        raise damaged(folder, "holds other weights than were written")
    return loaded
