"""A model's `generation_config.json`: which ids end its answers, and what else transformers would do to them."""

from __future__ import annotations

from typing import Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.foreign import read_object, short, whole_number

_FILE = "generation_config.json"
_LARGEST_ID = 2**31 - 1

# Settings that change what transformers writes even without sampling, and the values that change nothing.
_CHANGES: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0),
    "guidance_scale": (None, 1),
    "dola_layers": (None,),
    "stop_strings": (None, []),
    "bad_words_ids": (None, []),
    "sequence_bias": (None, {}, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "forced_decoder_ids": (None, []),
    "exponential_decay_length_penalty": (None,),
    "watermarking_config": (None,),
}


def read_stop_ids(folder: epath.PathLike) -> tuple[int, ...] | None:
    """Returns the ids that end an answer, as `generation_config.json` names them.

    transformers takes them from there alone where the file exists, and from config.json elsewhere. A file that names
    none leaves those of config.json in force here: an answer has to end.

    Args:
      folder: of the model.

    Returns:
      The ids, in order; None if there is no such file, or it names none.

    Raises:
      Refusal: 3 for a file that cannot be read, and for what is no id.
    """
    path = epath.Path(folder) / _FILE
    if not path.exists():
        return None
    value = read_object(path, "mend or remove it").get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    try:
        # The same id twice would be another program for the same answers.
        stops = tuple(dict.fromkeys(whole_number(each, "eos_token_id", 0, _LARGEST_ID) for each in ids))
    except ValueError as error:
        raise Refusal(BAD_INPUT, f"{path}: {error}; mend or remove it") from None
    return stops or None


def unused_settings(folder: epath.PathLike) -> list[str]:
    """Returns the settings of `generation_config.json` under which transformers would not write the likeliest tokens.

    Answers here are the likeliest tokens in any case. Settings of sampling are not among them: nothing is sampled.

    Returns:
      Such as "repetition_penalty=1.1".

    Raises:
      Refusal: 3 for a file that cannot be read.
    """
    path = epath.Path(folder) / _FILE
    if not path.exists():
        return []
    settings = read_object(path, "mend or remove it")
    return [
        f"{name}={short(settings[name], 40)}"
        for name, neutral in _CHANGES.items()
        if name in settings and settings[name] not in neutral
    ]
