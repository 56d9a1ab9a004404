"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`, in and out, strict keys."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.rundir import BAD_INPUT, Refusal, new_folder, write_bytes, write_json

_KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+_proj)\.lora_([AB])\.weight")
_PART = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}
_MUST_BE_UNSET = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "fan_in_fan_out",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "megatron_config",
)


def is_adapter(folder: epath.PathLike) -> bool:
    """Whether a folder holds a PEFT adapter (rather than a whole model)."""
    return (epath.Path(folder) / "adapter_config.json").exists()


def save_adapter(
    folder: epath.PathLike, adapter: dict[str, dict[str, np.ndarray]], base: str, about: dict[str, Any]
) -> None:
    """Writes one adapter (no leading axis) as PEFT reads it, float32; blocks with scale 0 are left out.

    Args:
      folder: replaced as a whole, never left half written.
      adapter: target -> {"a" [L, D_in, r], "b" [L, r, D_out], "scale" [L]}.
      base: `base_model_name_or_path`.
      about: written beside it as `mossa.json` (task, template, seed, ...).
    """
    tensors, layers = {}, set()
    for target, part in adapter.items():
        for layer, (a, b, scale) in enumerate(zip(part["a"], part["b"], part["scale"], strict=True)):
            if scale == 0:
                continue
            layers.add(layer)
            stem = f"base_model.model.model.layers.{layer}.{_PART[target]}.{target}"
            tensors[f"{stem}.lora_A.weight"] = np.ascontiguousarray(a.T.astype(np.float32))
            tensors[f"{stem}.lora_B.weight"] = np.ascontiguousarray(b.T.astype(np.float32))
    first = next(iter(adapter.values()))
    rank, depth = first["a"].shape[-1], first["a"].shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": float(first["scale"].max() * rank),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(adapter),
        "inference_mode": True,
        "layers_to_transform": sorted(layers) if len(layers) < depth else None,
        "layers_pattern": "layers" if len(layers) < depth else None,
    }
    with new_folder(folder) as new:
        write_json(new / "adapter_config.json", config)
        write_bytes(new / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
        write_json(new / "mossa.json", about)


def load_adapter(folder: epath.PathLike, arch: Architecture) -> dict[str, dict[str, np.ndarray]]:
    """Reads one adapter for a model of `arch`: target -> {"a", "b", "scale"}, NumPy float32.

    Raises:
      Refusal: 3 when it is no LoRA adapter, uses a variant that is not represented here, or its tensors do not
        fit the model; all misfits in one message.
    """
    folder = epath.Path(folder)
    if not is_adapter(folder):
        raise Refusal(BAD_INPUT, f"{folder} is no PEFT adapter folder (no adapter_config.json)")
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refusal(BAD_INPUT, f"{folder / 'adapter_config.json'} is not valid JSON ({error})") from None
    if config.get("peft_type") != "LORA":
        raise Refusal(BAD_INPUT, f"{folder}: peft_type {config.get('peft_type')!r} is not supported, only LORA is")
    for name in _MUST_BE_UNSET:
        if config.get(name):
            raise Refusal(BAD_INPUT, f"{folder}: {name}={config[name]!r} is not supported; plain LoRA is")
    if config.get("bias", "none") != "none":
        raise Refusal(BAD_INPUT, f"{folder}: bias={config['bias']!r} is not supported; train with bias='none'")
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise Refusal(BAD_INPUT, f"{folder} has no adapter_model.safetensors (pickled adapters are refused)")
    try:
        with safe_open(str(path), framework="numpy") as file:  # by slice: it knows bfloat16, whole tensors do not
            tensors = {key: file.get_slice(key)[...] for key in file.keys()}
    except SafetensorError as error:
        raise Refusal(BAD_INPUT, f"{path} is not a readable safetensors file ({error})") from None
    sizes = target_sizes(arch)
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (KeyError, TypeError, ValueError):
        raise Refusal(BAD_INPUT, f"{folder / 'adapter_config.json'} lacks a number for r or lora_alpha") from None
    adapter: dict[str, dict[str, np.ndarray]] = {}
    problems, seen = [], set()
    for key, tensor in sorted(tensors.items()):
        match = _KEY.fullmatch(key)
        if match is None or match[2] not in sizes or int(match[1]) >= arch.layers:
            problems.append(f"unexpected {key}")
            continue
        layer, target, side = int(match[1]), match[2], match[3]
        d_in, d_out = sizes[target]
        shape = (rank, d_in) if side == "A" else (d_out, rank)
        if tensor.shape != shape:
            problems.append(f"{key} has shape {tensor.shape}, not {shape}")
            continue
        part = adapter.setdefault(
            target,
            {
                "a": np.zeros((arch.layers, d_in, rank), np.float32),
                "b": np.zeros((arch.layers, rank, d_out), np.float32),
                "scale": np.zeros(arch.layers, np.float32),
            },
        )
        part["a" if side == "A" else "b"][layer] = tensor.astype(np.float32).T
        part["scale"][layer] = alpha / rank
        seen.add((layer, target, side))
    problems += _missing(config, arch, seen)
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise Refusal(BAD_INPUT, f"{folder} does not fit the base model: {shown}")
    return adapter


def _missing(config: dict[str, Any], arch: Architecture, seen: set[tuple[int, str, str]]) -> list[str]:
    """Tensors that the adapter's own config promises and its file lacks."""
    targets = config.get("target_modules")
    if not isinstance(targets, list):  # a pattern: every tensor must at least have its partner
        promised = {(layer, target) for layer, target, _ in seen}
    else:
        layers = config.get("layers_to_transform")
        layers = range(arch.layers) if layers is None else [layers] if isinstance(layers, int) else layers
        promised = set()
        for name in targets:
            one = re.search(r"layers\.(\d+)\.", name)  # a target may name a single layer's module
            promised |= {(layer, name.rsplit(".", 1)[-1]) for layer in ([int(one[1])] if one else layers)}
    return [
        f"missing layers.{layer}.{target}.lora_{side}"
        for layer, target in sorted(promised)
        for side in "AB"
        if (layer, target, side) not in seen
    ]
