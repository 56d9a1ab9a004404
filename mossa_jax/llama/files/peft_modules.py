"""Which modules of a base model an adapter is for, with which rank and scale, by PEFT's own rules.

PEFT compares names of modules with what `adapter_config.json` says. They begin with "model." in a model with a head,
and not so in the bare model, for which adapters can be made, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.foreign import short
from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.name_patterns import Budget, NamePattern, PatternError

BODY = "model."
"""What names begin with in a model with a head."""
EMBEDDING, HEAD = "embed_tokens", "lm_head"

_PARENTS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "down_proj"), "mlp"),
}
# PEFT's own targets for a family, where a config names none: the same for all that it knows of ours.
_DEFAULT_TARGETS = ["q_proj", "v_proj"]
_FAMILIES_WITH_DEFAULT = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


class LayerTarget(NamedTuple):
    """One projection of one layer, e.g. "q_proj" of layer 3."""

    target: str
    layer: int


class LoraSize(NamedTuple):
    """One module's rank, and the factor of its update."""

    rank: int
    scale: float


@dataclass(frozen=True)
class AdaptedModules:
    """What a config adapts.

    Attributes:
      projections: those with an update, ordered by target and layer.
      outside: the same of the embedding and the head, where they have one.
      saved: names of modules that are stored whole; a module whose name ends in one of them is meant.
    """

    projections: dict[LayerTarget, LoraSize]
    outside: dict[str, LoraSize]
    saved: tuple[str, ...]

    def is_saved(self, module: str) -> bool:
        """Whether a module, or one that holds it, is stored whole."""
        return any(each.endswith(self.saved) for each in _with_parents(module)) if self.saved else False


def module_name(projection: LayerTarget, body: str = BODY) -> str:
    """Returns a projection's name inside the base model, which all patterns are matched against."""
    target, layer = projection
    return f"{body}layers.{layer}.{_PARENTS[target]}.{target}"


def adapted_modules(config: dict[str, Any], arch: Architecture, path: object, body: str = BODY) -> AdaptedModules:
    """Returns the modules that PEFT adapts under `config` in a model of `arch`.

    Args:
      config: from `peft_config.read_config`.
      arch: the base model's.
      path: of the config, for refusals.
      body: what the names of modules of the base begin with.

    Raises:
      Refusal: 3 when a pattern cannot be matched, or nothing is adapted.
    """
    names = {
        LayerTarget(target, layer): module_name(LayerTarget(target, layer), body)
        for target in target_sizes(arch)
        for layer in range(arch.layers)
    }
    outside = {EMBEDDING: body + EMBEDDING} | ({HEAD: HEAD} if body else {})
    saved = tuple(config.get("modules_to_save") or ())
    try:
        rules = _Rules(config, arch, path, len(names) + len(outside))
        modules = AdaptedModules(
            {one: rules.size(name) for one, name in names.items() if rules.is_adapted(name, one.layer)},
            {one: rules.size(name) for one, name in outside.items() if rules.is_adapted(name, None)},
            saved,
        )
    except PatternError as error:
        raise Refusal(BAD_INPUT, f"{path} has {error}") from None
    if not modules.projections and not modules.outside:
        raise Refusal(
            BAD_INPUT,
            f"{path}: target_modules={short(config.get('target_modules'))} with its layers and exceptions matches no "
            f"projection of the base model; they are {', '.join(target_sizes(arch))} in layers 0-{arch.layers - 1}",
        )
    if modules.outside and arch.tied_head and config.get("ensure_weight_tying"):
        raise Refusal(
            BAD_INPUT,
            f"{path}: ensure_weight_tying=True is not supported where {' and '.join(modules.outside)} has an update, "
            "and the base's head is its embedding; train without it",
        )
    both = next((name for name in map(module_name, modules.projections) if modules.is_saved(name)), None)
    if both:
        raise Refusal(BAD_INPUT, f"{path}: {both} is in target_modules and in modules_to_save; take it out of one")
    return modules


class _Rules:
    """A config's patterns, read once for all names."""

    def __init__(self, config: dict[str, Any], arch: Architecture, path: object, names: int):
        budget = Budget(names)
        targets, excluded = config.get("target_modules"), config.get("exclude_modules") or []
        if targets is None:
            if arch.family not in _FAMILIES_WITH_DEFAULT:
                raise Refusal(
                    BAD_INPUT,
                    f"{path}: target_modules=None, for which peft has no default in a {arch.family}; name the modules",
                )
            targets = _DEFAULT_TARGETS
        self._is_every = isinstance(targets, str) and targets.lower() == "all-linear"
        self._targets = NamePattern(targets, budget) if isinstance(targets, str) else frozenset(targets)
        self._excluded = NamePattern(excluded, budget) if isinstance(excluded, str) else frozenset(excluded)
        # Names of modules that are stored whole are patterns here, and ends of names in `AdaptedModules`: peft's ways.
        self._saved = [
            NamePattern(one, budget, r"(^|.*\.)", r"($|\..*)") for one in config.get("modules_to_save") or []
        ]
        layers = config.get("layers_to_transform")
        self._layers = None if layers is None or layers == [] else {*(layers if isinstance(layers, list) else [layers])}
        stated = config.get("layers_pattern") or []
        self._numbers = [
            NamePattern(one, budget, r"(?:^|.*?\.)", r"\.\d+\.")
            for one in ([stated] if isinstance(stated, str) else stated)
        ] or [NamePattern(r".*?\.[^.]*\.\d+\.", budget)]
        self._rank, self._alpha = config["r"], config["lora_alpha"]
        self._ranks, self._alphas = (
            [(NamePattern(key, budget, r"(.*\.)?(", ")$"), value) for key, value in config[name].items()]
            for name in ("rank_pattern", "alpha_pattern")
        )
        self._is_stabilised = bool(config.get("use_rslora"))

    def is_adapted(self, module: str, layer: int | None) -> bool:
        """Whether a module is adapted: `check_target_module_exists` of peft."""
        if isinstance(self._excluded, NamePattern):
            if self._excluded.matches(module):
                return False
        elif _is_named(self._excluded, module):
            return False
        if any(one.matches(module, is_whole=False) for one in self._saved):
            return False
        if self._is_every:
            return layer is not None
        if isinstance(self._targets, NamePattern):
            return self._targets.matches(module)
        # A full name counts whatever the layers say.
        if module in self._targets:
            return True
        if not _is_named(self._targets, module):
            return False
        # A module has one number in its name, that of its layer.
        return self._layers is None or (
            layer in self._layers and any(one.matches(module, is_whole=False) for one in self._numbers)
        )

    def size(self, module: str) -> LoraSize:
        """Returns an adapted module's rank, and its scale: alpha / r.

        With rank-stabilised LoRA (Kalajdzievski 2023, arXiv 2312.03732) it is alpha / sqrt(r).
        """
        rank = _first_match(self._ranks, module, self._rank)
        alpha = _first_match(self._alphas, module, self._alpha)
        return LoraSize(int(rank), float(alpha) / (math.sqrt(rank) if self._is_stabilised else rank))


def _first_match(patterns: list[tuple[NamePattern, Any]], module: str, default: Any) -> Any:
    """Returns the value of the first pattern, in file order, that matches a name (peft's `get_pattern_key`)."""
    return next((value for pattern, value in patterns if pattern.matches(module)), default)


def _is_named(names: frozenset[str], module: str) -> bool:
    """Whether a module's full name is one of `names`, or ends in a dot and one of them."""
    words = module.split(".")
    return any(".".join(words[start:]) in names for start in range(len(words)))


def _with_parents(module: str) -> Iterator[str]:
    """Yields a module's name and the names of all modules that hold it."""
    words = module.split(".")
    return (".".join(words[:end]) for end in range(len(words), 0, -1))
