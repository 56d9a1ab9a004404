"""Where a model's files lie: a folder as it is, or a hub id's snapshot, checked before a byte of weights is fetched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatch

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.hub import at, check_id, is_offline, refusal, why
from mossa_jax.log import log
from mossa_jax.processes.watchdog import unlimited

# How much of a model is wanted.
_ALL, _TEXTS, _SETTINGS = "all", "texts", "settings"

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_CONFIG = ("config.json", "generation_config.json")
_TEXT = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
)
# Safetensors that are no Hugging Face weights: the same weights in the authors' own layout, and adapters.
_OTHER_TENSORS = ("consolidated", "adapter_")
_PICKLES = (".bin", ".pt", ".pth")

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
    """The folder of a model: itself, or a hub id's snapshot in the cache, downloaded on first use.

    A hub id is refused before any weights are downloaded if they could not be used. Where the hub does not give it,
    a complete copy in the cache is used, with one warning line. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_CACHE` and
    `HF_HUB_OFFLINE` mean what they mean to huggingface_hub.

    Args:
      name: a Hugging Face model folder or a hub id, org/name.
      revision: branch, tag or commit of a hub id; default: its main branch.
      config_only: download config.json and generation_config.json alone; the checks are the same.
      text_only: download these and the tokenizer's files alone; the checks are the same.

    Raises:
      Refusal: 3 when there is no such folder or revision, the repository holds no config.json or no safetensors, or
        the hub cannot be reached; 4 when the repository is gated, private or missing; 6 when the disk is full.
    """
    folder = epath.Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    is_file = bool(name) and folder.exists()
    if is_file or name.startswith(("/", ".", "~")) or name.count("/") != 1:
        state = "is a file" if is_file else "does not exist"
        raise Refusal(BAD_INPUT, f"model folder {name!r} {state}; give a Hugging Face folder or a hub id org/name")
    return _snapshot(name, revision or None, _SETTINGS if config_only else _TEXTS if text_only else _ALL)


def _snapshot(name: str, revision: str | None, parts: str) -> epath.Path:
    from huggingface_hub import constants
    from huggingface_hub.errors import RevisionNotFoundError

    check_id(name)
    if is_offline():
        cached = _cached(name, revision, parts)
        if cached is None:
            raise Refusal(
                BAD_INPUT,
                f"HF_HUB_OFFLINE is set and {at(name, revision)} is not whole in the cache {constants.HF_HUB_CACHE}; "
                "unset it to download, or give a local folder",
            )
        return cached
    try:
        files = _readable_files(name, revision)
    except RevisionNotFoundError:
        raise Refusal(
            BAD_INPUT,
            f"hub model {name} has no revision {revision!r}; give a branch, tag or commit that "
            f"{constants.ENDPOINT}/{name} lists",
        ) from None
    except Exception as error:  # each transport, proxy and version of the library has errors of its own
        cached = _cached(name, revision, parts)
        if cached is None:
            raise _refusal(name, error) from None
        log.warning("%s cannot be had from the hub (%s); the copy in the cache is used: %s", name, why(error), cached)
        return cached
    _check_files(name, files)
    return _download(name, revision, files, parts)


def _readable_files(name: str, revision: str | None) -> list[str]:
    """Names of the top-level files of a repository that we may read; raises what the library raises if we may not."""
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url

    endpoint, timeout = constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi(endpoint=endpoint).model_info(name, revision=revision, timeout=timeout)
    files = [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]
    if "config.json" in files:
        # Anyone may list a gated repository; only a request for one of its files tells whether we may read it.
        url = hf_hub_url(name, "config.json", revision=info.sha or revision, endpoint=endpoint)
        get_hf_file_metadata(url, timeout=timeout)
    return files


def _check_files(name: str, files: Sequence[str]) -> None:
    if "config.json" not in files:
        raise Refusal(BAD_INPUT, f"hub model {name} has no config.json; give a model in Hugging Face layout")
    if _tensor_files(files):
        return
    pickles = sorted(file for file in files if file.endswith(_PICKLES) and file != "training_args.bin")
    if pickles:
        raise Refusal(
            BAD_INPUT,
            f"hub model {name} has pickled weights only ({pickles[0]}), which can run code when read; give a revision "
            "with .safetensors, or convert it (transformers: save_pretrained) and give that folder",
        )
    raise Refusal(BAD_INPUT, f"hub model {name} holds no model weights in .safetensors; give one that does")


def _tensor_files(files: Sequence[str]) -> list[str]:
    """The files of weights among names of files, each tensor once unless an index says more."""
    if _SINGLE in files:
        return [_SINGLE]
    return sorted(file for file in files if file.endswith(".safetensors") and not file.startswith(_OTHER_TENSORS))


def _weights(folder: epath.Path, files: Sequence[str]) -> list[str]:
    """The files of weights that a model needs, by its index in `folder` where it has one."""
    if _INDEX not in files:
        return _tensor_files(files)
    try:
        return sorted(set(json.loads((folder / _INDEX).read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(BAD_INPUT, f"{folder / _INDEX} is no index of tensors ({error}); give another revision") from None


def _small_files(parts: str) -> list[str]:
    return [*_CONFIG] if parts == _SETTINGS else [*_CONFIG, *_TEXT, _INDEX]


def _download(name: str, revision: str | None, files: Sequence[str], parts: str) -> epath.Path:
    wanted = [file for file in files if any(fnmatch(file, pattern) for pattern in _small_files(parts))]
    folder = _fetch(name, revision, wanted)
    if parts != _ALL:
        return folder
    weights = _weights(folder, files)
    lacking = sorted(set(weights) - set(files))
    if lacking:
        raise Refusal(
            BAD_INPUT, f"hub model {name} lacks {', '.join(lacking[:3])} of its {_INDEX}; give another revision"
        )
    _fetch(name, folder.name, weights)  # of the same commit, should the branch have moved since
    return folder


def _fetch(name: str, revision: str | None, files: list[str]) -> epath.Path:
    from huggingface_hub import constants, snapshot_download

    try:
        with unlimited():
            folder = epath.Path(
                snapshot_download(name, revision=revision, allow_patterns=files, endpoint=constants.ENDPOINT)
            )
    except Exception as error:
        raise _refusal(name, error) from None
    # Where the connection breaks, some versions of the library give back what there is.
    lacking = [file for file in files if not (folder / file).exists()]
    if lacking:
        raise Refusal(BAD_INPUT, f"the download of {name} ended without {lacking[0]}; run the same command again")
    return folder


def _cached(name: str, revision: str | None, parts: str) -> epath.Path | None:
    """The snapshot in the cache if nothing that we need is missing in it."""
    from huggingface_hub import snapshot_download

    try:
        folder = epath.Path(
            snapshot_download(
                name, revision=revision, local_files_only=True,
                allow_patterns=_small_files(parts), ignore_patterns=["*/*"],
            )
        )  # fmt: skip
    except OSError:
        return None
    if not (folder / "config.json").exists():
        return None
    if parts != _ALL:
        return folder
    weights = _weights(folder, [path.name for path in folder.iterdir()])
    return folder if weights and all((folder / file).exists() for file in weights) else None


def _refusal(name: str, error: Exception) -> Refusal:
    instead = f"use {_OPEN_COPIES.get(name, _OPEN_MODEL)}, which is open to all, or a local folder"
    return refusal("model", name, error, instead)
