"""Finds a model's files: a folder as it is, or a hub id's snapshot, checked before any weights are fetched.

How the hub is asked, and when the cache stands in for it, is in `files.hub`. Here it says which files of a repository
a model needs, and which repositories are refused.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.hub import Repository, download_snapshot, from_hub_or_cache, listing
from mossa_jax.foreign import read_object, user_path
from mossa_jax.llama.files.precedence import INDEX, PICKLES, unlisted, weight_files


class _Scope(enum.Enum):
    """How much of a model is wanted."""

    ALL = enum.auto()
    TEXTS = enum.auto()
    SETTINGS = enum.auto()


_CONFIG = ("config.json", "generation_config.json")
_TEXT = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)
_ADAPTER = "adapter_config.json"

# The same weights without a gate, by hub id.
_OPEN_COPIES = {
    **{
        f"meta-llama/Llama-2-{size}-hf": f"NousResearch/Llama-2-{size}-hf"
        for size in ("7b", "13b", "70b", "7b-chat", "13b-chat", "70b-chat")
    },
    **{
        f"meta-llama/Meta-Llama-3-{size}": f"NousResearch/Meta-Llama-3-{size}"
        for size in ("8B", "8B-Instruct", "70B", "70B-Instruct")
    },
    "meta-llama/Llama-3.1-8B": "NousResearch/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct": "NousResearch/Meta-Llama-3.1-8B-Instruct",
    **{
        f"meta-llama/Llama-3.2-{size}": f"unsloth/Llama-3.2-{size}"
        for size in ("1B", "1B-Instruct", "3B", "3B-Instruct")
    },
    "mistralai/Mistral-7B-v0.1": "unsloth/mistral-7b",
}
_OPEN_MODEL = "HuggingFaceTB/SmolLM2-135M"


def locate(name: str, revision: str = "", *, config_only: bool = False, text_only: bool = False) -> epath.Path:
    """Returns the folder of a model: the folder itself, or a hub id's snapshot in the cache, downloaded on first use.

    A hub id that could not be used is refused before any weights are downloaded. If the hub does not give it, a
    complete copy in the cache is used, with one warning line. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_CACHE` and
    `HF_HUB_OFFLINE` mean what they mean to huggingface_hub.

    Args:
      name: a Hugging Face model folder or a hub id, org/name.
      revision: branch, tag or commit of a hub id; default: its main branch.
      config_only: download config.json and generation_config.json alone; the checks are the same.
      text_only: download these and the tokenizer's files alone; the checks are the same.

    Raises:
      Refusal: 3 when there is no such folder or revision, the repository has no config.json or no safetensors, or the
        hub cannot be reached; 4 when the repository is gated, private or missing; 6 when the disk is full.
    """
    name = user_path(name, "base")
    folder = epath.Path(name)
    if folder.is_dir():
        return folder
    is_file = folder.exists()
    # A hub id has exactly one slash and does not look like a path; anything else was meant as a folder.
    if is_file or name.startswith(("/", ".")) or name.count("/") != 1:
        state = "is a file" if is_file else "does not exist"
        raise Refusal(BAD_INPUT, f"model folder {name!r} {state}; give a Hugging Face folder or a hub id org/name")
    scope = _Scope.SETTINGS if config_only else _Scope.TEXTS if text_only else _Scope.ALL
    repository = Repository(
        name,
        revision or None,
        "model",
        probe="config.json",
        instead=f"use {_OPEN_COPIES.get(name, _OPEN_MODEL)}, which is open to all, or a local folder",
    )

    def ask_hub() -> epath.Path:
        # A model's own files lie at the top; folders hold other formats of it, and further chat templates.
        files = [file for file in listing(repository).files if "/" not in file or file.endswith(".jinja")]
        _check_files(name, files)
        return _download(repository, files, scope)

    return from_hub_or_cache(repository, ask_hub, lambda: _complete_copy(repository, scope))


def _check_files(name: str, files: Sequence[str]) -> None:
    """Refuses a repository that is not a model in safetensors."""
    if _ADAPTER in files:
        # With a config.json beside it, transformers would load the model and put the adapter onto it.
        raise Refusal(
            BAD_INPUT,
            f"hub model {name} holds an adapter ({_ADAPTER}); give its base model, and the adapter's folder as a side "
            "of a comparison",
        )
    if "config.json" not in files:
        raise Refusal(BAD_INPUT, f"hub model {name} has no config.json; give a model in Hugging Face layout")
    if unlisted(files):
        return
    # The Trainer of transformers leaves `training_args.bin` beside any model; it is no weight.
    pickles = sorted(file for file in files if file.endswith(PICKLES) and file != "training_args.bin")
    if pickles:
        raise Refusal(
            BAD_INPUT,
            f"hub model {name} has pickled weights only ({pickles[0]}), which can run code when read; give a revision "
            "with .safetensors, or convert it (transformers: save_pretrained) and give that folder",
        )
    raise Refusal(BAD_INPUT, f"hub model {name} holds no model weights in .safetensors; give one that does")


def _weight_files(folder: epath.Path, files: Sequence[str]) -> list[str]:
    """Returns the files of weights that a model needs, by the small files of it in `folder`."""
    stated = read_object(folder / "config.json", "give another revision").get("transformers_weights")
    return weight_files(files, str(folder), lambda name: read_object(folder / name, "give another revision"), stated)


def _small_files(files: Sequence[str], scope: _Scope) -> list[str]:
    """Returns the files beside the weights that are wanted."""
    patterns = [*_CONFIG] if scope is _Scope.SETTINGS else [*_CONFIG, *_TEXT, INDEX]
    return [file for file in files if any(fnmatch(file, pattern) for pattern in patterns)]


def _download(repository: Repository, files: Sequence[str], scope: _Scope) -> epath.Path:
    """Fetches the wanted ones of a model's `files` into the cache."""
    # The index comes with the small files, and says which files of weights are needed.
    folder = epath.Path(download_snapshot(repository, _small_files(files, scope)))
    if scope is not _Scope.ALL:
        return folder
    weights = _weight_files(folder, files)
    missing = sorted(set(weights) - set(files))
    if missing:
        raise Refusal(
            BAD_INPUT,
            f"hub model {repository.name} lacks {', '.join(missing[:3])} of its {INDEX}; give another revision",
        )
    # From the same commit, should the branch have moved since.
    download_snapshot(replace(repository, revision=folder.name), weights)
    return folder


def _complete_copy(repository: Repository, scope: _Scope) -> epath.Path | None:
    """Returns the snapshot in the cache if it has all files that are wanted."""
    snapshot = repository.snapshot()
    # A download that was interrupted leaves a snapshot that lacks files.
    if snapshot is None or not (snapshot / "config.json").exists():
        return None
    folder = epath.Path(snapshot)
    if scope is not _Scope.ALL:
        return folder
    weights = _weight_files(folder, [path.name for path in folder.iterdir()])
    return folder if weights and all((folder / file).exists() for file in weights) else None
