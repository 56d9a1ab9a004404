"""Which of a model's files hold its weights: the order of transformers, for folders and for hub repositories.

A single `model.safetensors` comes before an index, whatever lies beside it: a model that was saved again over an older
one leaves the old index and its shards behind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.foreign import short

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl")

# Safetensors that are not Hugging Face weights: the same weights in the authors' own layout, and adapters.
_OTHER_TENSORS = ("consolidated", "adapter_")


def weight_files(
    files: Collection[str], where: str, read: Callable[[str], dict[str, Any]], stated: object = None
) -> list[str]:
    """Returns the names of the files that hold a model's weights.

    Args:
      files: names of all files of the folder or repository.
      where: the folder or repository, for refusals.
      read: reads an index, given its name.
      stated: the value of `transformers_weights` in config.json, which comes before all others; None if it has none.

    Returns:
      The one file that config.json states, else the single file, else those of the index, else all safetensors that
      are neither an adapter nor in the layout of the model's authors. Empty if there is none.

    Raises:
      Refusal: 3 for an index that is none, and for a name that leads out of the folder.
    """
    if stated is not None:
        name = _inside(stated, f"{where}: transformers_weights of config.json")
        return _indexed(read(name), f"{where}/{name}") if name.endswith(".index.json") else [name]
    if SINGLE in files:
        return [SINGLE]
    if INDEX in files:
        return _indexed(read(INDEX), f"{where}/{INDEX}")
    return unlisted(files)


def unlisted(files: Collection[str]) -> list[str]:
    """Returns the safetensors among `files` that hold weights where neither a single file nor an index says which."""
    return sorted(name for name in files if name.endswith(".safetensors") and not name.startswith(_OTHER_TENSORS))


def _indexed(index: dict[str, Any], where: str) -> list[str]:
    """Returns the files that an index names."""
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise Refusal(BAD_INPUT, f"{where} is no index of tensors: weight_map={short(names)}; copy the model again")
    # A file's name may be of any type, so it is checked before it is hashed.
    return sorted({_inside(name, where) for name in names.values()})


def _inside(name: object, where: str) -> str:
    """Returns the name of a file if it lies in the folder and is in safetensors."""
    if not isinstance(name, str) or not name:
        raise Refusal(BAD_INPUT, f"{where} names {short(name)}, which is no file; copy the model again")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in name:
        raise Refusal(
            BAD_INPUT, f"{where} names {short(name)}, which is not in the model's folder; copy the model again"
        )
    if not name.endswith((".safetensors", ".safetensors.index.json")):
        raise Refusal(
            BAD_INPUT,
            f"{where} names {short(name)}, which is no safetensors file; convert the model (transformers: "
            "save_pretrained)",
        )
    return name
