"""PEFT's `adapter_config.json`: which projections it adapts, with which rank and scale, by PEFT's own rules."""

from __future__ import annotations

import collections
import json
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture

# Fields that decide what the adapter computes and that are followed here.
_READ = (
    "peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
)  # fmt: skip
# Fields that are about training, provenance, or an option that is itself refused when it is on.
_HARMLESS = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "ensure_weight_tying",
)  # fmt: skip
_IGNORED = ("runtime_config",)  # PEFT ignores it with a warning, so it is not written back
# The other initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) also change the base model's weights.
_INITS_THAT_KEEP_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_OUTSIDE = ("model.embed_tokens", "lm_head")
_PART = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}

Block = tuple[str, int]  # target, layer


class Size(NamedTuple):
    """What the config gives one projection: its rank and the factor of its update."""

    rank: int
    scale: float


def module_name(block: Block) -> str:
    """A projection's name inside the base model, which all patterns are matched against."""
    target, layer = block
    return f"model.layers.{layer}.{_PART[target]}.{target}"


def read_config(path: epath.Path) -> dict[str, Any]:
    """Reads the fields that this module knows; `rank_pattern` and `alpha_pattern` are always there.

    Raises:
      Refusal: 3 when it is no JSON object, no LoRA, or any other field is set: such a field changes what is
        computed (DoRA, biases, ...) or may do so (one that is not known here).
    """
    try:
        config = json.loads(path.read_text(), parse_constant=_not_json)
    except ValueError as error:
        raise Refusal(BAD_INPUT, f"{path} is not valid JSON ({error}); copy the adapter again") from None
    if not isinstance(config, dict):
        raise Refusal(BAD_INPUT, f"{path} is no JSON object; copy the adapter again")
    if config.get("peft_type") != "LORA":
        raise Refusal(BAD_INPUT, f"{path}: peft_type {config.get('peft_type')!r} is not supported, only LORA is")
    for name, value in config.items():
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


def adapted_blocks(config: dict[str, Any], arch: Architecture, path: epath.Path) -> dict[Block, Size]:
    """The projections that PEFT adapts under `config` in a model of `arch`, in the order of targets and layers.

    Raises:
      Refusal: 3 when a field has a wrong type, no projection is adapted, or something beside them is.
    """
    _check_types(config, path)
    blocks = {}
    try:
        for name in _OUTSIDE:
            if _is_adapted(config, name):
                raise Refusal(BAD_INPUT, f"{path}: target_modules takes in {name}; only the seven projections are")
        for block in ((target, layer) for target in target_sizes(arch) for layer in range(arch.layers)):
            name = module_name(block)
            if _is_adapted(config, name):
                rank = _first_match(config["rank_pattern"], name, config["r"])
                alpha = _first_match(config["alpha_pattern"], name, config["lora_alpha"])
                blocks[block] = Size(rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    except re.error as error:
        raise Refusal(BAD_INPUT, f"{path} has {error.pattern!r}, no valid regular expression ({error})") from None
    if not blocks:
        raise Refusal(
            BAD_INPUT,
            f"{path}: target_modules={_short(config['target_modules'])} with its layers and exceptions matches no "
            f"projection of the base model; they are {', '.join(_PART)} in layers 0-{arch.layers - 1}",
        )
    return blocks


def plain_config(blocks: dict[Block, Size], depth: int) -> dict[str, Any]:
    """The shortest fields by which PEFT finds exactly `blocks` (at least one) in a model of `depth` layers."""
    targets = sorted({target for target, _ in blocks})
    layers = sorted({layer for _, layer in blocks})
    grid = len(blocks) == len(targets) * len(layers)
    some_layers = grid and len(layers) < depth
    rank, rank_pattern = _pattern({block: size.rank for block, size in blocks.items()})
    alpha, alpha_pattern = _pattern({block: _alpha(size) for block, size in blocks.items()})
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": targets if grid else [module_name(block) for block in blocks],
        "layers_to_transform": layers if some_layers else None,
        "layers_pattern": "layers" if some_layers else None,
    }


def _not_json(constant: str):
    raise ValueError(f"{constant} is no JSON number")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _check_types(config: dict[str, Any], path: epath.Path) -> None:
    def is_rank(value):
        return type(value) is int and value > 0

    def is_number(value):
        return type(value) in (int, float) and math.isfinite(value)

    def is_all(check, values):
        return isinstance(values, dict) and all(map(check, values.values()))

    def is_names(value):
        return isinstance(value, (str, list))

    def is_layers(value):
        return value is None or all(type(layer) is int for layer in (value if isinstance(value, list) else [value]))

    by_pattern = isinstance(config.get("target_modules"), str)
    wanted = {
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
    for name, (check, kind) in wanted.items():
        if not check(config.get(name)):
            raise Refusal(BAD_INPUT, f"{path}: {name}={_short(config.get(name))} is not {kind}; mend the adapter")


def _named(names: Iterable[str], module: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_adapted(config: dict[str, Any], module: str) -> bool:
    """`check_target_module_exists` of peft, for a Llama model."""
    targets, excluded = config["target_modules"], config.get("exclude_modules") or []
    if re.fullmatch(excluded, module) if isinstance(excluded, str) else _named(excluded, module):
        return False
    if isinstance(targets, str):
        return module not in _OUTSIDE if targets.lower() == "all-linear" else bool(re.fullmatch(targets, module))
    if module in targets:  # a full name holds whatever the layers say
        return True
    if not _named(targets, module):
        return False
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    found = (
        re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", module)
        for pattern in ([patterns] if isinstance(patterns, str) else patterns)
    )
    match = next(filter(None, found), None)
    return match is not None and int(match["idx"]) in (layers if isinstance(layers, list) else [layers])


def _first_match(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """`get_pattern_key` of peft: the first key, in the file's order, that matches the end of the name."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _alpha(size: Size) -> float:
    """The roundest alpha that gives this float32 scale."""
    alpha = size.scale * size.rank
    return next(
        number for number in (float(round(alpha)), round(alpha, 4), alpha)
        if np.float32(number / size.rank) == np.float32(size.scale)
    )  # fmt: skip


def _pattern(values: dict[Block, Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest value, and keys for the others that never match the same projection twice."""
    default = collections.Counter(values.values()).most_common(1)[0][0]
    by_target: dict[str, set] = collections.defaultdict(set)
    for (target, _), value in values.items():
        by_target[target].add(value)
    pattern = {}
    for block, value in values.items():
        if value != default:
            pattern[block[0] if len(by_target[block[0]]) == 1 else module_name(block)] = value
    return default, pattern
