"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`, in and out, strict keys."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.paths import on_disk
from mossa_jax.files.write import ABOUT, new_folder, write_bytes, write_json
from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.peft_config import Block, Size, adapted_blocks, module_name, plain_config, read_config

Parts = dict[str, dict[str, np.ndarray]]

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class PeftAdapter:
    """One adapter as read, with all that is needed to write the same folder again.

    Attributes:
      parts: target -> {"a" [L, D_in, r], "b" [L, r, D_out], "scale" [L]}, float32. `r` is the target's largest rank;
        blocks of a smaller one are padded with zeros, blocks without an update are zero with scale 0.
      ranks: (target, layer) -> the rank as stored, for every block with an update (even one of zeros).
      dtypes: tensor name -> the dtype as stored.
      config: the fields of `adapter_config.json` that say something about plain LoRA.
    """

    parts: Parts
    ranks: dict[Block, int]
    dtypes: dict[str, np.dtype]
    config: dict[str, Any]


def is_adapter(folder: epath.PathLike) -> bool:
    """Whether a folder holds a PEFT adapter (rather than a whole model)."""
    return (epath.Path(folder) / "adapter_config.json").exists()


def load_adapter(folder: epath.PathLike, arch: Architecture) -> Parts:
    """`read_adapter`'s `parts`: target -> {"a" [L, D_in, r], "b" [L, r, D_out], "scale" [L]}, NumPy float32."""
    return read_adapter(folder, arch).parts


def read_adapter(folder: epath.PathLike, arch: Architecture) -> PeftAdapter:
    """Reads one adapter for a model of `arch`.

    Raises:
      Refusal: 3 when it is no LoRA adapter, uses a variant that is not represented here, or its tensors do not
        fit the model and the adapter's own config; all misfits in one message.
    """
    folder = epath.Path(folder)
    if not is_adapter(folder):
        raise Refusal(BAD_INPUT, f"{folder} is no PEFT adapter folder (no adapter_config.json)")
    config = read_config(folder / "adapter_config.json")
    blocks = adapted_blocks(config, arch, folder / "adapter_config.json")
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise Refusal(BAD_INPUT, f"{folder} has no adapter_model.safetensors (pickled adapters are refused)")
    try:
        with (
            on_disk(path) as here,
            safe_open(str(here), framework="numpy") as file,
        ):  # by slice: it knows bfloat16, whole tensors do not
            slices = {name: file.get_slice(name) for name in file.keys()}
            problems = _misfits(slices, _shapes(blocks, arch))
            if problems:
                raise Refusal(BAD_INPUT, f"{folder} does not fit its config and the base model: {'; '.join(problems)}")
            tensors = {name: one[...] for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise Refusal(BAD_INPUT, f"{path} is not a readable safetensors file ({error})") from None
    parts = _empty_parts(blocks, arch)
    for block in blocks:
        _put(parts, block, tensors)
    return PeftAdapter(
        parts,
        {block: size.rank for block, size in blocks.items()},
        {name: tensor.dtype for name, tensor in tensors.items()},
        config,
    )


def save_adapter(
    folder: epath.PathLike,
    adapter: Parts,
    base: str,
    about: dict[str, Any],
    *,
    as_read: PeftAdapter | None = None,
) -> None:
    """Writes one adapter (no leading axis) as PEFT reads it.

    By itself: float32, blocks with scale 0 left out, ranks as padded. With `as_read`: the ranks, dtypes and
    settings that it was read with, so that PEFT's own folder comes out with the same tensors bit by bit.

    Args:
      folder: replaced as a whole, never left half written.
      adapter: target -> {"a" [L, D_in, r], "b" [L, r, D_out], "scale" [L]}.
      base: `base_model_name_or_path`.
      about: written beside it as `mossa.json` (task, template, seed, ...).
      as_read: what `read_adapter` gave for `adapter`.

    Raises:
      ValueError: nothing to write (every scale is 0), or `adapter` does not fit what `as_read` says: other targets,
        shapes or scales, or numbers that its ranks and dtypes would lose.
    """
    if as_read is None:
        blocks = {
            (target, layer): Size(part["a"].shape[-1], float(scale))
            for target, part in adapter.items()
            for layer, scale in enumerate(part["scale"])
            if scale != 0
        }
        if not blocks:
            raise ValueError("an adapter without a block of its own (every scale is 0) cannot be written")
        depth = len(next(iter(adapter.values()))["scale"])
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True}
        config |= {"lora_dropout": 0.0} | plain_config(blocks, depth)
        tensors = _tensors(adapter, {block: size.rank for block, size in blocks.items()}, {})
    else:
        config, tensors = as_read.config, _tensors(adapter, as_read.ranks, as_read.dtypes)
        _check_nothing_lost(adapter, tensors, as_read)
    with new_folder(folder) as new:
        write_json(new / "adapter_config.json", config | {"base_model_name_or_path": base})
        write_bytes(new / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
        write_json(new / ABOUT, about)


def read_about(folder: epath.PathLike) -> dict[str, Any]:
    """What `save_adapter` was told `about` an adapter; empty for folders that others wrote."""
    path = epath.Path(folder) / ABOUT
    return json.loads(path.read_text()) if path.exists() else {}


def _tensor_name(block: Block, side: str) -> str:
    return f"base_model.model.{module_name(block)}.lora_{side}.weight"


def _shapes(blocks: dict[Block, Size], arch: Architecture) -> dict[str, tuple[int, int]]:
    """Tensor name -> shape of everything that the config promises."""
    shapes = {}
    for (target, layer), size in blocks.items():
        d_in, d_out = target_sizes(arch)[target]
        shapes[_tensor_name((target, layer), "A")] = (size.rank, d_in)
        shapes[_tensor_name((target, layer), "B")] = (d_out, size.rank)
    return shapes


def _misfits(slices: dict[str, Any], shapes: dict[str, tuple[int, int]]) -> list[str]:
    """What is wrong with the stored tensors, in words; the same thing in several layers is said once."""
    problems = [f"missing {name}" for name in sorted(shapes.keys() - slices.keys())]
    problems += [f"unexpected {name}" for name in sorted(slices.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & slices.keys()):
        shape, dtype = tuple(slices[name].get_shape()), slices[name].get_dtype()
        if shape != shapes[name]:
            problems.append(f"{name} has shape {shape}, not {shapes[name]}")
        if dtype not in _DTYPES:
            problems.append(f"{name} has dtype {dtype}, not {', '.join(_DTYPES.values())}")
    alike: dict[str, list[str]] = {}
    for problem in problems:
        alike.setdefault(re.sub(r"\.layers\.\d+\.", ".layers.*.", problem, count=1), []).append(problem)
    return [
        group[0] if len(group) == 1 else f"{text} for * = {', '.join(map(_layer_number, group))}"
        for text, group in alike.items()
    ]


def _layer_number(problem: str) -> str:
    return re.search(r"\.layers\.(\d+)\.", problem)[1]


def _empty_parts(blocks: dict[Block, Size], arch: Architecture) -> Parts:
    parts = {}
    for target, (d_in, d_out) in target_sizes(arch).items():
        sizes = {layer: size for (name, layer), size in blocks.items() if name == target}
        if not sizes:
            continue
        rank = max(size.rank for size in sizes.values())
        parts[target] = {
            "a": np.zeros((arch.layers, d_in, rank), np.float32),
            "b": np.zeros((arch.layers, rank, d_out), np.float32),
            "scale": np.array(
                [sizes[layer].scale if layer in sizes else 0 for layer in range(arch.layers)], np.float32
            ),
        }
    return parts


def _put(parts: Parts, block: Block, tensors: dict[str, np.ndarray]) -> None:
    """Copies one block's tensors to their place in `parts`."""
    target, layer = block
    a, b = (tensors[_tensor_name(block, side)].astype(np.float32).T for side in "AB")
    parts[target]["a"][layer, :, : a.shape[1]] = a
    parts[target]["b"][layer, : b.shape[0]] = b


def _tensors(parts: Parts, ranks: dict[Block, int], dtypes: dict[str, np.dtype]) -> dict[str, np.ndarray]:
    """The tensors of the blocks in `ranks`, as stored; float32 where `dtypes` names no other."""
    tensors = {}
    for (target, layer), rank in ranks.items():
        if target not in parts:
            raise ValueError(f"the adapter lacks {target}, which it was read with")
        matrices = {"A": parts[target]["a"][layer, :, :rank], "B": parts[target]["b"][layer, :rank]}
        for side, matrix in matrices.items():
            name = _tensor_name((target, layer), side)
            with np.errstate(over="ignore"):  # what overflows is found as lost
                tensors[name] = np.ascontiguousarray(np.asarray(matrix).T.astype(dtypes.get(name, np.float32)))
    return tensors


def _check_nothing_lost(parts: Parts, tensors: dict[str, np.ndarray], as_read: PeftAdapter) -> None:
    kept = {
        target: {"a": np.zeros_like(part["a"]), "b": np.zeros_like(part["b"]), "scale": part["scale"]}
        for target, part in as_read.parts.items()
    }
    for block in as_read.ranks:
        _put(kept, block, tensors)
    for target, part in parts.items():
        for name, array in part.items():
            if target not in kept or not np.array_equal(kept[target][name], array, equal_nan=True):
                raise ValueError(f"{name} of {target} is not as read and would lose numbers; save it without as_read")
