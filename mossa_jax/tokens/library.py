"""The tokenizer of `transformers` in a model folder: read without running code, and the ids that it puts in front."""

from __future__ import annotations

import importlib.util
from typing import Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.foreign import check_file, check_pointer, read_object, short
from mossa_jax.log import log, without_advice

_SETTINGS = "tokenizer_config.json"
_FAST = "tokenizer.json"
_SENTENCEPIECE = "tokenizer.model"
_FILES = (
    _FAST, _SETTINGS, _SENTENCEPIECE, "config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tekken.json", "chat_template.jinja",
)  # fmt: skip
_TEMPLATES = "additional_chat_templates"
_START = 64


def has_tokenizer(folder: epath.PathLike) -> bool:
    """Whether a folder holds a tokenizer's files."""
    return any((epath.Path(folder) / name).exists() for name in (_FAST, _SENTENCEPIECE, "vocab.json", "tekken.json"))


def read_library(folder: epath.PathLike) -> Any:
    """Reads the tokenizer of a model folder, as `AutoTokenizer.from_pretrained` does; code in the folder never runs.

    Raises:
      Refusal: 3 if a file is none, is a Git LFS pointer or cannot be used, or if a package is missing.
    """
    path = epath.Path(folder)
    for name in _FILES:
        _check(path / name)
    if (path / _TEMPLATES).is_dir():
        for file in (path / _TEMPLATES).iterdir():
            _check(file)
    settings = _settings(path)
    if "auto_map" in settings:
        log.warning("%s: its tokenizer comes with code of its own (auto_map), which is never run", folder)
    with without_advice():
        from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    # transformers raises many kinds of errors for one cause, no usable tokenizer files; a panic of the library below
    # it is no Exception.
    except BaseException as error:
        raise _unusable(path, settings, error) from None


def leading_ids(library: Any, folder: epath.PathLike, stated: int | None) -> list[int]:
    """Returns the ids that stand in front of every text.

    They are those that the tokenizer itself puts there. If it puts none, that is what it means where it says so
    (`add_bos_token` is false) or where it works on bytes (GPT-2, Qwen, SmolLM, OLMo): such models were trained without
    one. Tokenizers of the kind of SentencePiece (Llama) belong to models that were trained with BOS, and some
    converters lose that; they get the model's.

    Args:
      library: from `read_library`.
      folder: it was read from.
      stated: the BOS id of the model's config.json; None if it names none.

    Raises:
      Refusal: 3 if the tokenizer puts more than one id in front.
    """
    bare = library("a", add_special_tokens=False).input_ids
    whole = library("a").input_ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    leading, trailing = whole[:start], whole[start + len(bare) :]
    if trailing:
        log.warning(
            "%s: its tokenizer ends texts with %s; prompts here end with their own last token, since an answer follows",
            folder,
            short(library.convert_ids_to_tokens(trailing)),
        )
    if len(leading) > 1:
        raise Refusal(
            BAD_INPUT,
            f"{folder}: its tokenizer puts {short(library.convert_ids_to_tokens(leading))} in front of a text; only "
            "one token, BOS, is supported there",
        )
    if leading or library.bos_token_id is None:
        return leading
    backend = getattr(library, "backend_tokenizer", None)
    is_of_bytes = backend is None or "ByteLevel" in repr(backend.pre_tokenizer)
    if is_of_bytes or _settings(epath.Path(folder)).get("add_bos_token") is False:
        return []
    return [library.bos_token_id if stated is None else stated]


def _settings(folder: epath.Path) -> dict[str, Any]:
    path = folder / _SETTINGS
    return read_object(path) if path.exists() else {}


def _check(path: epath.Path) -> None:
    """Refuses what is there in place of a file."""
    if path.exists():
        check_file(path, "copy the model again")
        with path.open("rb") as file:
            check_pointer(path, file.read(_START))


def _unusable(folder: epath.Path, settings: dict[str, Any], error: BaseException) -> Refusal:
    """Returns the refusal of a folder whose tokenizer cannot be read, with the reason that its files show."""
    if "auto_map" in settings and "trust_remote_code" in str(error):
        reason, way_out = "it needs code of the model's own (auto_map), which is never run", "convert it"
    elif (folder / _SENTENCEPIECE).exists() and not (folder / _FAST).exists():
        packages = [name for name in ("sentencepiece", "tiktoken") if importlib.util.find_spec(name) is None]
        needed = f", which needs the package {' or '.join(packages)}" if packages else ""
        reason = f"{_SENTENCEPIECE} alone{needed}"
        way_out = (f"install it (pip install {packages[0]} protobuf), or " if packages else "") + f"add its {_FAST}"
    else:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason, way_out = short(lines[0] if lines else type(error).__name__, 200), f"add its {_FAST}"
    return Refusal(BAD_INPUT, f"{folder} has no usable tokenizer ({reason}); {way_out}")
