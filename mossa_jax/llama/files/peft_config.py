"""PEFT's `adapter_config.json`: which projections it adapts, with which rank and scale, by PEFT's own rules."""

from __future__ import annotations

import collections
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import numpy as np
from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture

# Fields that decide what the adapter computes, and that are supported here.
_READ = (
    "peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
)  # fmt: skip
# Fields about training, provenance, or an option that is itself refused when it is on.
_HARMLESS = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "ensure_weight_tying",
)  # fmt: skip
# PEFT ignores it with a warning, so it is not written back.
_IGNORED = ("runtime_config",)
# The other initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) also change the base model's weights.
_INITS_THAT_KEEP_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_OUTSIDE = ("model.embed_tokens", "lm_head")
_PARENTS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "down_proj"), "mlp"),
}


class LayerTarget(NamedTuple):
    """One projection of one layer, e.g. "q_proj" of layer 3."""

    target: str
    layer: int


class LoraSize(NamedTuple):
    """One projection's rank, and the factor of its update."""

    rank: int
    scale: float


def module_name(projection: LayerTarget) -> str:
    """Returns a projection's name inside the base model, which all patterns are matched against."""
    target, layer = projection
    return f"model.layers.{layer}.{_PARENTS[target]}.{target}"


def read_config(path: epath.Path) -> dict[str, Any]:
    """Reads the fields that this module knows; `rank_pattern` and `alpha_pattern` are always among them.

    Raises:
      Refusal: 3 when the file is not a JSON object, the adapter is not LoRA, or any other field is set: it changes what
        is computed (DoRA, biases, ...), or may do so (an unknown field).
    """
    try:
        # Python's parser would take NaN and Infinity, which are not JSON.
        config = json.loads(path.read_text(), parse_constant=_not_json)
    except ValueError as error:
        raise Refusal(BAD_INPUT, f"{path} is not valid JSON ({error}); copy the adapter again") from None
    if not isinstance(config, dict):
        raise Refusal(BAD_INPUT, f"{path} is not a JSON object; copy the adapter again")
    if config.get("peft_type") != "LORA":
        raise Refusal(BAD_INPUT, f"{path}: peft_type {config.get('peft_type')!r} is not supported, only LORA is")
    for name, value in config.items():
        # An option that is off (false, null, empty) changes nothing, even one that is not known here.
        if value and name not in (*_READ, *_HARMLESS, *_IGNORED):
            raise Refusal(BAD_INPUT, f"{path}: {name}={_short(value)} is not supported; train LoRA without it")
    if config.get("bias", "none") != "none":
        raise Refusal(BAD_INPUT, f"{path}: bias={_short(config['bias'])} is not supported; train with bias='none'")
    init = config.get("init_lora_weights")
    if (init.lower() if isinstance(init, str) else init) not in _INITS_THAT_KEEP_THE_BASE:
        raise Refusal(
            BAD_INPUT,
            f"{path}: init_lora_weights={_short(init)} also changes the base model, which is shared here; convert the "
            "adapter with peft's save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    known = {name: value for name, value in config.items() if name in (*_READ, *_HARMLESS)}
    return known | {name: known.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}


def adapted_projections(config: dict[str, Any], arch: Architecture, path: epath.Path) -> dict[LayerTarget, LoraSize]:
    """Returns the projections that PEFT adapts under `config` in a model of `arch`, ordered by target and layer.

    Raises:
      Refusal: 3 when a field has the wrong type, no projection is adapted, or something other than a projection is.
    """
    _check_types(config, path)
    projections = {}
    try:
        for name in _OUTSIDE:
            if _is_adapted(config, name):
                raise Refusal(BAD_INPUT, f"{path}: target_modules takes in {name}; only the seven projections are")
        for projection in (LayerTarget(target, layer) for target in target_sizes(arch) for layer in range(arch.layers)):
            name = module_name(projection)
            if _is_adapted(config, name):
                # The scale is alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA (Kalajdzievski
                # 2023, arXiv 2312.03732).
                rank = _first_match(config["rank_pattern"], name, config["r"])
                alpha = _first_match(config["alpha_pattern"], name, config["lora_alpha"])
                projections[projection] = LoraSize(
                    rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
                )
    except re.error as error:
        raise Refusal(BAD_INPUT, f"{path} has {error.pattern!r}, no valid regular expression ({error})") from None
    if not projections:
        raise Refusal(
            BAD_INPUT,
            f"{path}: target_modules={_short(config['target_modules'])} with its layers and exceptions matches no "
            f"projection of the base model; they are {', '.join(target_sizes(arch))} in layers 0-{arch.layers - 1}",
        )
    return projections


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


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _short(value: Any) -> str:
    """Returns the value as text for a message, of at most 120 characters."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _check_types(config: dict[str, Any], path: epath.Path) -> None:
    """Refuses a field of the wrong type."""

    def is_rank(value: Any) -> bool:
        # `type` and not `isinstance`: true and false are ints in Python.
        return type(value) is int and value > 0

    def is_number(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value)

    def is_all(check: Callable[[Any], bool], values: Any) -> bool:
        return isinstance(values, dict) and all(map(check, values.values()))

    def is_names(value: Any) -> bool:
        return isinstance(value, (str, list))

    def is_layers(value: Any) -> bool:
        return value is None or all(type(layer) is int for layer in (value if isinstance(value, list) else [value]))

    by_pattern = isinstance(config.get("target_modules"), str)
    expected: dict[str, tuple[Callable[[Any], bool], str]] = {
        "r": (is_rank, "a whole number above 0"),
        "rank_pattern": (lambda value: is_all(is_rank, value), "an object of whole numbers above 0"),
        "lora_alpha": (is_number, "a number"),
        "alpha_pattern": (lambda value: is_all(is_number, value), "an object of numbers"),
        "target_modules": (is_names, "a list of names or a regular expression"),
        "exclude_modules": (lambda value: not value or is_names(value), "a list of names or a regular expression"),
        "layers_to_transform": (
            lambda value: is_layers(value) and not (by_pattern and value is not None),
            "null where target_modules is a regular expression (peft's rule)" if by_pattern else "layer numbers",
        ),
        "layers_pattern": (lambda value: not value or is_names(value), "a name or a list of names"),
    }
    for name, (check, description) in expected.items():
        if not check(config.get(name)):
            raise Refusal(BAD_INPUT, f"{path}: {name}={_short(config.get(name))} is not {description}; correct it")


def _is_named(names: Iterable[str], module: str) -> bool:
    """Whether a module's full name ends in one of `names`."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_adapted(config: dict[str, Any], module: str) -> bool:
    """Whether a module is adapted: `check_target_module_exists` of peft, for a Llama model."""
    targets, excluded = config["target_modules"], config.get("exclude_modules") or []
    if re.fullmatch(excluded, module) if isinstance(excluded, str) else _is_named(excluded, module):
        return False
    if isinstance(targets, str):
        return module not in _OUTSIDE if targets.lower() == "all-linear" else bool(re.fullmatch(targets, module))
    # A full name counts whatever the layers say.
    if module in targets:
        return True
    if not _is_named(targets, module):
        return False
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    # Without a pattern any name in front of the layer's number will do.
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    matches = (
        re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", module)
        for pattern in ([patterns] if isinstance(patterns, str) else patterns)
    )
    match = next(filter(None, matches), None)
    return match is not None and int(match["idx"]) in (layers if isinstance(layers, list) else [layers])


def _first_match(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """Returns the value of the first key, in file order, that matches the end of a name (peft's `get_pattern_key`)."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


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
