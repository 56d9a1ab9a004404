"""Merges a LoRA adapter into its base model, and writes the result as a Hugging Face folder."""

from __future__ import annotations

import os

import jax
from etils import epath

from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.foreign import user_path
from mossa_jax.llama.architecture import read_architecture, read_config
from mossa_jax.llama.files.about import check_files, read_about
from mossa_jax.llama.files.adapted import load_adapted
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.files.peft import read_adapter
from mossa_jax.llama.files.weights import save_weights
from mossa_jax.outputs import check_output


def export_merged(
    base: str | Model, adapter: str | None, folder: str, *, dtype: str = "float32", revision: str = ""
) -> None:
    """Writes a model with a LoRA adapter merged into its weights as a Hugging Face folder.

    Matrices W [D_out, D_in] become W + scale (a b)^T, added in float32 and rounded once to the model's number type. All
    other tensors stay as they are. Names, config.json and tokenizer files are the base model's. Large models are
    written as several files with an index.

    Args:
      base: the base model: folder, hub id, or a loaded `Model`.
      adapter: a PEFT adapter folder for it; None writes the base alone.
      folder: the folder to write; new or empty, and never left half written.
      dtype, revision: as in `load_model`, where `base` is not loaded yet.

    Raises:
      Refusal: 2 when `folder` is in use already, or as in `load_model`; 3 when the model is missing or the adapter does
        not fit it; 4 when access is denied; 5 when the adapter is not finite; 6 when the disk is full.
    """
    place = user_path(folder, "folder")
    check_output(place, "folder", "folder")
    path = epath.Path(place).resolve()
    _check_free(path)
    adapter = None if adapter is None else user_path(adapter, "adapter")
    # Everything that can be refused is refused before any weights are read.
    if isinstance(base, Model):
        architecture = base.architecture
    else:
        architecture = read_architecture(locate(base, revision, config_only=True))
    if adapter is not None:
        check_files(adapter, read_about(adapter))
        read_adapter(adapter, architecture)
    model, update = base if isinstance(base, Model) else load_model(base, dtype, revision=revision), None
    model.check_head()
    if adapter is not None:
        model, update, keeps_tied = load_adapted(model, adapter)
        if architecture.tied_head and not keeps_tied:
            raise Refusal(
                BAD_INPUT,
                f"{adapter} changes the head or the embedding of {model.name} alone, which are one matrix there; untie "
                "them in the base first (transformers: tie_word_embeddings=False)",
            )
    # All processes gather the weights; one writes them.
    config, is_writer = read_config(model.folder), jax.process_index() == 0
    save_weights(path, architecture, model.state, config, model.folder, update, writer=is_writer)


def _check_free(folder: epath.Path) -> None:
    """Refuses a folder that holds something, or cannot be replaced by a new one."""
    if folder.is_dir() and any(folder.iterdir()):
        raise Refusal(BAD_CONFIG, f"output folder {folder} is not empty; name a new folder, or empty this one first")
    # The new folder is written beside it and renamed, and a mount point cannot be renamed over.
    if os.path.ismount(folder):
        raise Refusal(BAD_CONFIG, f"output folder {folder} is a mount point; name a new folder in it")
