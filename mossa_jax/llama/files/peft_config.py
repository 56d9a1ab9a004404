"""PEFT's `adapter_config.json`: the fields that say what an adapter computes, checked, and the shortest of our own."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.foreign import number, read_object, short, whole_number
from mossa_jax.llama.files.peft_modules import LayerTarget, LoraSize, module_name

# Fields that decide what the adapter computes, and that are supported here.
_READ = (
    "peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "trainable_token_indices", "ensure_weight_tying",
)  # fmt: skip
# Fields about training, provenance, or an option that is itself refused when it is on. PEFT ignores `fan_in_fan_out`
# where the base model's projections are plain matrices, as they all are.
_HARMLESS = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "fan_in_fan_out",
)  # fmt: skip
# PEFT ignores it with a warning, so it is not written back.
_IGNORED = ("runtime_config",)
# Fields of PEFT's first versions and of a library that writes its folders; PEFT ignores them, too.
_OF_OTHERS = ("merge_weights", "unsloth_fixed")
# The other initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) also change the base model's weights.
_INITS_THAT_KEEP_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# PEFT's own, for files that leave them out.
_DEFAULTS = {"r": 8, "lora_alpha": 8, "bias": "none"}
_BIASES = ("none", "all", "lora_only")
"""PEFT stores the biases that it trains beside the adapter, where `base_weights` finds them."""

_MOST_BYTES = 8 * 2**20
_HIGHEST_RANK = 2**20
_MOST_ENTRIES = 20_000
_HIGHEST_ID = 2**31 - 1
_WAY_OUT = "copy the adapter again"


def read_config(path: epath.Path) -> dict[str, Any]:
    """Reads the fields that this module knows; `rank_pattern` and `alpha_pattern` are always among them.

    Raises:
      Refusal: 3 when the file is no readable JSON object, the adapter is not LoRA, a field has the wrong type or is out
        of range, or any other field is set: it changes what is computed (DoRA, ...), or may do so (an unknown field).
    """
    config = read_object(path, _WAY_OUT, _MOST_BYTES)
    if config.get("peft_type") != "LORA":
        raise Refusal(BAD_INPUT, f"{path}: peft_type {short(config.get('peft_type'))} is not supported, only LORA is")
    for name, value in config.items():
        # An option that is off (false, null, empty) changes nothing, even one that is not known here.
        if value and name not in (*_READ, *_HARMLESS, *_IGNORED, *_OF_OTHERS):
            shown = f"{short(name).strip(chr(39))}={short(value)}"
            raise Refusal(BAD_INPUT, f"{path}: {shown} is not supported; train LoRA without it")
    init = config.get("init_lora_weights")
    if (init.lower() if isinstance(init, str) else init) not in _INITS_THAT_KEEP_THE_BASE:
        raise Refusal(
            BAD_INPUT,
            f"{path}: init_lora_weights={short(init)} also changes the base model, which is shared here; convert the "
            "adapter with peft's save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    known = _DEFAULTS | {name: value for name, value in config.items() if name in (*_READ, *_HARMLESS)}
    known |= {name: known.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    for name, check in _CHECKS.items():
        try:
            check(known.get(name), name)
        except ValueError as error:
            raise Refusal(BAD_INPUT, f"{path}: {error}; correct it") from None
    if isinstance(known.get("target_modules"), str) and known.get("layers_to_transform") is not None:
        raise Refusal(
            BAD_INPUT,
            f"{path}: layers_to_transform={short(known['layers_to_transform'])} is not null where target_modules is a "
            "regular expression (peft's rule); correct it",
        )
    return known


def plain_config(projections: dict[LayerTarget, LoraSize], depth: int) -> dict[str, Any]:
    """Returns the shortest fields by which PEFT adapts exactly `projections` (at least one) of `depth` layers."""
    # A plain config can say "these targets in these layers". Anything else needs every module by its full name.
    targets = sorted({target for target, _ in projections})
    layers = sorted({layer for _, layer in projections})
    # Whether every target is adapted in every one of the layers.
    is_grid = len(projections) == len(targets) * len(layers)
    some_layers = is_grid and len(layers) < depth
    rank, rank_pattern = _pattern({projection: size.rank for projection, size in projections.items()})
    alpha, alpha_pattern = _pattern({projection: _alpha(size) for projection, size in projections.items()})
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": targets if is_grid else [module_name(projection) for projection in projections],
        "layers_to_transform": layers if some_layers else None,
        "layers_pattern": "layers" if some_layers else None,
    }


def _check_rank(value: Any, name: str) -> None:
    whole_number(value, name, 1, _HIGHEST_RANK)


def _check_alpha(value: Any, name: str) -> None:
    number(value, name, -1e308, 1e308)


def _check_bias(value: Any, name: str) -> None:
    if value not in _BIASES:
        raise ValueError(f"{name}={short(value)} is not one of {', '.join(_BIASES)}")


def _each(check: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    """Returns a check of an object's values."""

    def check_all(value: Any, name: str) -> None:
        if not isinstance(value, dict) or len(value) > _MOST_ENTRIES:
            raise ValueError(f"{name}={short(value)} is not an object of at most {_MOST_ENTRIES:,} entries")
        for key, one in value.items():
            check(one, f"{name}[{short(key)}]")

    return check_all


def _check_names(value: Any, name: str) -> None:
    is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if value is not None and not is_list and not isinstance(value, str):
        raise ValueError(f"{name}={short(value)} is not a list of names or a regular expression")


def _check_list(value: Any, name: str) -> None:
    if isinstance(value, str):
        raise ValueError(f"{name}={short(value)} is not a list of names")
    _check_names(value, name)


def _check_layers(value: Any, name: str) -> None:
    layers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(layer) is int for layer in layers):
        raise ValueError(f"{name}={short(value)} is not a list of layer numbers")


def _check_tokens(value: Any, name: str) -> None:
    """Checks `trainable_token_indices`: a list of ids, or such lists by the name of the embedding."""
    if isinstance(value, dict):
        if len(value) > 1 or not all(f".model.{key}".endswith(".embed_tokens") for key in value):
            raise ValueError(f"{name}={short(value)} is not supported for others than embed_tokens")
        value = next(iter(value.values())) if value else None
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{name}={short(value)} is not a list of ids")
    for one in value or ():
        whole_number(one, name, 0, _HIGHEST_ID)


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "r": _check_rank,
    "rank_pattern": _each(_check_rank),
    "lora_alpha": _check_alpha,
    "alpha_pattern": _each(_check_alpha),
    "bias": _check_bias,
    "target_modules": _check_names,
    "exclude_modules": _check_names,
    "layers_to_transform": _check_layers,
    "layers_pattern": _check_names,
    "modules_to_save": _check_list,
    "trainable_token_indices": _check_tokens,
}


def _alpha(size: LoraSize) -> float:
    """Returns the roundest alpha that results in this float32 scale."""
    alpha = size.scale * size.rank
    # The scale is float32: 1.6 / 16 comes back as 0.10000000149. The roundest alpha of the same float32 scale is 1.6.
    candidates = (float(round(alpha)), round(alpha, 4), alpha)
    return next(number for number in candidates if np.float32(number / size.rank) == np.float32(size.scale))


def _pattern(values: dict[LayerTarget, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the commonest value, and a pattern for the others; no projection matches two of its keys."""
    default = collections.Counter(values.values()).most_common(1)[0][0]
    # Target -> the values that it has in different layers.
    by_target: dict[str, set] = collections.defaultdict(set)
    for (target, _), value in values.items():
        by_target[target].add(value)
    pattern = {}
    for projection, value in values.items():
        if value != default:
            # One key per target where all layers agree; else one per module, which matches no other.
            is_uniform = len(by_target[projection.target]) == 1
            pattern[projection.target if is_uniform else module_name(projection)] = value
    return default, pattern
