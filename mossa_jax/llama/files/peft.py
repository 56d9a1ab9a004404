"""Reads and writes PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`, with strict keys.

Shape letters: V vocabulary, D hidden, D_in and D_out input and output width of a projection, L layers, r LoRA rank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mossa_jax.errors import BAD_INPUT, NOT_FINITE, Refusal
from mossa_jax.files.paths import on_disk
from mossa_jax.files.write import new_folder, write_bytes, write_json, write_text
from mossa_jax.foreign import check_file, check_pointer
from mossa_jax.llama.adapters import Adapter, target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.about import write_about
from mossa_jax.llama.files.card import CARD, model_card
from mossa_jax.llama.files.peft_config import plain_config, read_config
from mossa_jax.llama.files.peft_modules import (
    BODY,
    EMBEDDING,
    HEAD,
    AdaptedModules,
    LayerTarget,
    LoraSize,
    adapted_modules,
    module_name,
)
from mossa_jax.llama.files.peft_tensors import STEM, TensorNames, find_body

_LAYER = re.compile(r"\.layers\.(\d+)\.")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAMED = 5  # adapters that a refusal names
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class BaseChanges:
    """What an adapter changes in its base beside the projections.

    Attributes:
      weights: name of the base's tensor -> name of the tensor in the adapter's file that takes its place.
      updates: "embed_tokens" or "lm_head" -> (a [r, V] and b [D, r], or a [r, D] and b [V, r], float32; the scale).
      rows: ids whose rows of the embedding are replaced, and the rows [k, D] float32; None for none.
      keeps_tied: whether a head that is the embedding would still be it.
    """

    weights: dict[str, str] = field(default_factory=dict)
    updates: dict[str, tuple[np.ndarray, np.ndarray, float]] = field(default_factory=dict)
    rows: tuple[list[int], np.ndarray] | None = None
    keeps_tied: bool = True

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.weights or self.updates or self.rows)


@dataclass(frozen=True)
class PeftAdapter:
    """One adapter as read, with everything that is needed to write the same folder again.

    Attributes:
      adapter: target -> {"a" [L, D_in, r], "b" [L, r, D_out], "scale" [L]}, float32. r is the target's largest rank;
        layers with a smaller one are padded with zeros, layers without an update are zero with scale 0.
      ranks: the rank as stored, for every projection with an update (even one of zeros).
      dtypes: tensor name -> the dtype as stored.
      config: the fields of `adapter_config.json` that say something about LoRA.
      base: what it changes in the base model itself.
    """

    adapter: Adapter
    ranks: dict[LayerTarget, int]
    dtypes: dict[str, np.dtype]
    config: dict[str, Any]
    base: BaseChanges


def is_adapter(folder: epath.PathLike) -> bool:
    """Whether a folder holds a PEFT adapter (rather than a whole model)."""
    return (epath.Path(folder) / CONFIG).exists()


def check_holds_none(folder: epath.PathLike) -> None:
    """Refuses a folder that is no model and no adapter but holds adapters, as PEFT saves several with names.

    Raises:
      Refusal: 3, naming them.
    """
    path = epath.Path(folder)
    if is_adapter(path) or (path / "config.json").exists() or not path.is_dir():
        return
    inside = sorted(each.name for each in path.iterdir() if is_adapter(each))
    if inside:
        names = ", ".join(inside[:_NAMED]) + (", ..." if len(inside) > _NAMED else "")
        raise Refusal(
            BAD_INPUT, f"{folder} holds adapters in folders of its own ({names}); give one, as {path / inside[0]}"
        )


def load_adapter(folder: epath.PathLike, arch: Architecture) -> Adapter:
    """Reads one adapter for a model of `arch`, as NumPy float32.

    Raises:
      Refusal: as in `read_adapter`; 3 when it also changes the base itself, for which `adapted.load_adapted` is made.
    """
    read = read_adapter(folder, arch)
    if read.base:
        names = ", ".join(
            [*read.base.weights, *read.base.updates, *(["rows of the embedding"] if read.base.rows else [])]
        )
        raise Refusal(
            BAD_INPUT,
            f"{folder} also changes the base model ({names}), which all adapters share here; tune an adapter of "
            "projections alone",
        )
    return read.adapter


def read_adapter(folder: epath.PathLike, arch: Architecture) -> PeftAdapter:
    """Reads one adapter for a model of `arch`, and how it was stored.

    Heads that are no part of the base model (of a classifier) are passed over: no layer's state depends on them.

    Raises:
      Refusal: 3 when it is not a LoRA adapter, uses a variant that is not supported here, or its tensors do not fit the
        model and the adapter's own config; all misfits are in one message. 5 when it holds NaN or infinity, or a scale
        that float32 does not.
    """
    folder = epath.Path(folder)
    if not is_adapter(folder):
        check_holds_none(folder)
        raise Refusal(BAD_INPUT, f"{folder} is not a PEFT adapter folder: it has no {CONFIG}")
    config_path, path = folder / CONFIG, folder / WEIGHTS
    config = read_config(config_path)
    if not path.exists():
        raise Refusal(
            BAD_INPUT,
            f"{folder} has no {WEIGHTS}; pickled adapters are refused: save it as safetensors",
        )
    check_file(path)
    try:
        # The library opens local files only, so a file in an object store is copied to this machine first.
        with on_disk(path) as local:
            with open(local, "rb") as file:
                check_pointer(path, file.read(100))
            with safe_open(str(local), framework="numpy") as file:
                # Slices can be read in bfloat16, whole tensors cannot.
                slices = {name: file.get_slice(name) for name in file.keys()}
                # Names, shapes and dtypes are in the header: everything is checked before any tensor is read.
                modules = adapted_modules(config, arch, config_path, find_body(slices))
                names = TensorNames(modules, config, arch, slices)
                problems = _misfits(slices, names)
                if problems:
                    raise Refusal(
                        BAD_INPUT, f"{folder} does not fit its config and the base model: {'; '.join(problems)}"
                    )
                tensors = {name: _finite(slices[name][...], name, path) for name in names.needed}
                for name in names.weights.values():
                    _finite(slices[name][...], name, path)
    except (SafetensorError, OSError) as error:
        raise Refusal(BAD_INPUT, f"{path} is not a readable safetensors file ({error})") from None
    _check_scales(modules, folder)
    projections = modules.projections
    adapter = _empty_adapter(projections, arch)
    for projection in projections:
        _copy_tensors(adapter, projection, tensors, names.body)
    return PeftAdapter(
        adapter,
        {projection: size.rank for projection, size in projections.items()},
        {name: tensor.dtype for name, tensor in tensors.items()},
        config,
        _base_changes(names, modules, tensors, arch),
    )


def _finite(tensor: np.ndarray, name: str, path: epath.Path) -> np.ndarray:
    """Returns a tensor; refuses, with code 5, one with NaN or infinity."""
    if not np.isfinite(tensor).all():
        layer = _LAYER.search(name)
        where = f" (layer {int(layer[1]) + 1})" if layer else ""
        raise Refusal(
            NOT_FINITE, f"{path}: {name}{where} holds NaN or infinity; give an adapter whose numbers are all finite"
        )
    return tensor


def _check_scales(modules: AdaptedModules, folder: epath.Path) -> None:
    """Refuses, with code 5, a scale that is beyond float32."""
    for name, size in [
        *((module_name(one), size) for one, size in modules.projections.items()),
        *modules.outside.items(),
    ]:
        if not abs(size.scale) <= np.finfo(np.float32).max:
            raise Refusal(
                NOT_FINITE,
                f"adapter {folder}: the scale of {name}, lora_alpha / r = {size.scale:g}, is beyond float32; correct "
                "lora_alpha",
            )


def _base_changes(
    names: TensorNames, modules: AdaptedModules, tensors: dict[str, np.ndarray], arch: Architecture
) -> BaseChanges:
    """Collects what an adapter changes in its base."""
    updates = {}
    for module, size in modules.outside.items():
        a, b = (tensors[name].astype(np.float32) for name in names.of_outside(module))
        # With a head that is the embedding, an update of the head is no part of the model that is loaded here.
        if module == EMBEDDING or not arch.tied_head:
            updates[module] = (a, b, size.scale)
    rows = None if names.rows is None else (names.row_ids, tensors[names.rows].astype(np.float32))
    keeps_tied = not modules.outside and not any(map(modules.is_saved, (BODY + EMBEDDING, HEAD)))
    return BaseChanges(names.weights, updates, rows, keeps_tied)


def save_adapter(
    folder: epath.PathLike,
    adapter: Adapter,
    base: str,
    about: dict[str, Any],
    *,
    as_read: PeftAdapter | None = None,
) -> None:
    """Writes one adapter in the form that PEFT reads.

    Without `as_read`, tensors are float32 with their padded ranks, and layers with scale 0 are left out. With `as_read`
    they have the ranks, dtypes and settings that the adapter was read with, so that PEFT's own folder is written again
    bit by bit.

    Args:
      folder: replaced as a whole, never left half written.
      adapter: target -> {"a" [L, D_in, r], "b" [L, r, D_out], "scale" [L]}.
      base: `base_model_name_or_path`.
      about: written beside it as `mossa.json` (task, template, seed, ...) with digests of the files, and in words as
        its card, `README.md`.
      as_read: what `read_adapter` returned for `adapter`.

    Raises:
      ValueError: there is nothing to write (every scale is 0), or `adapter` does not fit `as_read`: other targets,
        shapes or scales, or numbers that its ranks and dtypes would lose.
    """
    if as_read is None:
        projections = {
            LayerTarget(target, layer): LoraSize(update["a"].shape[-1], float(scale))
            for target, update in adapter.items()
            for layer, scale in enumerate(update["scale"])
            if scale != 0
        }
        if not projections:
            raise ValueError("an adapter that changes no layer (every scale is 0) cannot be written")
        # L, the length of every scale [L].
        depth = len(next(iter(adapter.values()))["scale"])
        config: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True}
        config |= {"lora_dropout": 0.0} | plain_config(projections, depth)
        tensors = _tensors(adapter, {projection: size.rank for projection, size in projections.items()}, {})
    else:
        config, tensors = as_read.config, _tensors(adapter, as_read.ranks, as_read.dtypes)
        _check_nothing_lost(adapter, tensors, as_read)
    with new_folder(folder) as new:
        write_json(new / CONFIG, config | {"base_model_name_or_path": base})
        write_bytes(new / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_text(new / CARD, model_card(about, base))
        write_about(new, about)


def _tensor_name(projection: LayerTarget, side: str, body: str = BODY) -> str:
    return f"{STEM}{module_name(projection, body)}.lora_{side}.weight"


def _misfits(slices: dict[str, Any], names: TensorNames) -> list[str]:
    """Lists what is wrong with the stored tensors; a problem that several layers share is listed once."""
    shapes = names.shapes
    problems = [f"missing {name}" for name in sorted(shapes.keys() - slices.keys())]
    problems += [f"unexpected {name}" for name in sorted(names.unexpected)]
    for name in sorted(shapes.keys() & slices.keys()):
        shape, dtype = tuple(slices[name].get_shape()), slices[name].get_dtype()
        if shape != shapes[name]:
            problems.append(f"{name} has shape {shape}, not {shapes[name]}")
        if dtype not in _DTYPES:
            problems.append(f"{name} has dtype {dtype}, not {', '.join(_DTYPES.values())}")
    # The same text with the layer number blanked out is the same problem.
    by_text: dict[str, list[str]] = {}
    for problem in problems:
        by_text.setdefault(_LAYER.sub(".layers.*.", problem, count=1), []).append(problem)
    return [
        group[0]
        if len(group) == 1
        else f"{text} for * = {', '.join(layer for p in group for layer in _LAYER.findall(p))}"
        for text, group in by_text.items()
    ]


def _empty_adapter(projections: dict[LayerTarget, LoraSize], arch: Architecture) -> Adapter:
    """Returns zeros of the adapter's shapes, with its scales."""
    adapter = {}
    for target, (d_in, d_out) in target_sizes(arch).items():
        sizes = {layer: size for (name, layer), size in projections.items() if name == target}
        if not sizes:
            continue
        rank = max(size.rank for size in sizes.values())
        adapter[target] = {
            # [L, D_in, r], [L, r, D_out] and [L], r the largest rank of any layer.
            "a": np.zeros((arch.layers, d_in, rank), np.float32),
            "b": np.zeros((arch.layers, rank, d_out), np.float32),
            "scale": np.array(
                [sizes[layer].scale if layer in sizes else 0 for layer in range(arch.layers)], np.float32
            ),
        }
    return adapter


def _copy_tensors(adapter: Adapter, projection: LayerTarget, tensors: dict[str, np.ndarray], body: str = BODY) -> None:
    """Copies one projection's tensors into `adapter`."""
    target, layer = projection
    # [D_in, r] and [r, D_out]
    a, b = (tensors[_tensor_name(projection, side, body)].astype(np.float32).T for side in "AB")
    # A smaller rank fills the first columns of a and the first rows of b.
    adapter[target]["a"][layer, :, : a.shape[1]] = a
    adapter[target]["b"][layer, : b.shape[0]] = b


def _tensors(adapter: Adapter, ranks: dict[LayerTarget, int], dtypes: dict[str, np.dtype]) -> dict[str, np.ndarray]:
    """Returns the tensors of the projections in `ranks` as PEFT stores them, in float32 unless `dtypes` says more."""
    tensors = {}
    for projection, rank in ranks.items():
        target, layer = projection
        if target not in adapter:
            raise ValueError(f"the adapter lacks {target}, which it was read with")
        # [D_in, r] and [r, D_out], without the padding of the rank.
        matrices = {"A": adapter[target]["a"][layer, :, :rank], "B": adapter[target]["b"][layer, :rank]}
        for side, matrix in matrices.items():
            name = _tensor_name(projection, side)
            # Numbers that overflow are noticed later, as lost.
            with np.errstate(over="ignore"):
                tensors[name] = np.ascontiguousarray(np.asarray(matrix).T.astype(dtypes.get(name, np.float32)))
    return tensors


def _check_nothing_lost(adapter: Adapter, tensors: dict[str, np.ndarray], as_read: PeftAdapter) -> None:
    """Raises a ValueError where reading `tensors` again would not give `adapter`."""
    # Zeros, filled by the same copy as on reading: what does not come back would be lost.
    restored = {
        target: {"a": np.zeros_like(update["a"]), "b": np.zeros_like(update["b"]), "scale": update["scale"]}
        for target, update in as_read.adapter.items()
    }
    for projection in as_read.ranks:
        _copy_tensors(restored, projection, tensors)
    for target, update in adapter.items():
        for name, array in update.items():
            if target not in restored or not np.array_equal(restored[target][name], array, equal_nan=True):
                raise ValueError(f"{name} of {target} is not as read and would lose numbers; save it without as_read")
