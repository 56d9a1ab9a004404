"""Hugging Face safetensors in and out.

One table maps their names to ours. Weights come in as sharded, stacked arrays: every device asks for its own slice
and only those bytes are read, so no process ever holds a whole 7B model on the host.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import jax
import numpy as np
from etils import epath
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mossa_jax import mesh as mesh_lib
from mossa_jax.llama.architecture import Architecture, to_config
from mossa_jax.llama.model import abstract_state
from mossa_jax.rundir import BAD_INPUT, Refusal, new_folder, write_bytes, write_json

_BLOCK = "model.layers.{layer}."


@dataclass(frozen=True)
class Source:
    """Where one of our leaves comes from: a name (with `{layer}` if stacked) and whether it is stored transposed."""

    name: str
    transposed: bool

    @property
    def stacked(self) -> bool:
        """One tensor a layer."""
        return "{layer}" in self.name


_TABLE = {
    "embedding": Source("model.embed_tokens.weight", False),
    "final_norm.weight": Source("model.norm.weight", False),
    "head": Source("lm_head.weight", False),
    "blocks.attention_norm.weight": Source(_BLOCK + "input_layernorm.weight", False),
    "blocks.feed_forward_norm.weight": Source(_BLOCK + "post_attention_layernorm.weight", False),
    **{
        f"blocks.attention.{name}.kernel": Source(f"{_BLOCK}self_attn.{name}.weight", True)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    },
    **{
        f"blocks.feed_forward.{name}.kernel": Source(f"{_BLOCK}mlp.{name}.weight", True)
        for name in ("gate_proj", "up_proj", "down_proj")
    },
}

# Buffers that older exports store although they follow from the config.
_IGNORED_ENDINGS = ("rotary_emb.inv_freq",)


def leaf_name(path: tuple) -> str:
    """Dotted name of a leaf of the model's state, e.g. "blocks.attention.q_proj.kernel"."""
    parts = (getattr(key, "key", getattr(key, "name", key)) for key in path)
    return ".".join(str(part) for part in parts if part != "value")


class Checkpoint:
    """The tensors of a folder of safetensors, by name, each read on demand."""

    def __init__(self, folder: epath.PathLike):
        """Finds the files.

        Raises:
          Refusal: 3 when the folder is missing, has pickled weights only, or lacks a file of its index.
        """
        self.folder = epath.Path(folder)
        if not self.folder.is_dir():
            raise Refusal(BAD_INPUT, f"model folder {self.folder} does not exist; give a folder or a hub id")
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
                raise Refusal(BAD_INPUT, f"{index} is no index of tensors ({error}); copy the model again") from None
        else:
            names = sorted(path.name for path in self.folder.glob("*.safetensors"))
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing:
            raise Refusal(BAD_INPUT, f"{self.folder} lacks {', '.join(missing)} of its index; copy the whole model")
        if not names:
            pickled = sorted(path.name for path in self.folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
            if pickled:
                raise Refusal(
                    BAD_INPUT,
                    f"{self.folder / pickled[0]} is a pickle, which can run code when read; convert the model to "
                    "safetensors (transformers: save_pretrained)",
                )
            raise Refusal(BAD_INPUT, f"{self.folder} holds no .safetensors file")
        self._open: dict[str, safe_open] = {}
        self._files: dict[str, str] = {}
        for name in names:
            try:
                self._open[name] = safe_open(str(self.folder / name), framework="numpy")
            except (SafetensorError, OSError) as error:
                raise Refusal(BAD_INPUT, f"{self.folder / name} is not a readable safetensors file ({error})") from None
            self._files |= {tensor: name for tensor in self._open[name].keys()}

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape as stored."""
        return tuple(self._open[self._files[name]].get_slice(name).get_shape())

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A part of a tensor; only its bytes are read."""
        return self._open[self._files[name]].get_slice(name)[index or ...]


def _wanted(arch: Architecture, source: Source, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Stored name -> stored shape of the tensors behind one leaf of `shape`."""
    stored = shape[1:] if source.stacked else shape
    stored = stored[::-1] if source.transposed else stored
    layers = range(arch.layers) if source.stacked else (0,)
    return {source.name.format(layer=layer): stored for layer in layers}


def load_weights(folder: epath.PathLike, arch: Architecture, mesh: jax.sharding.Mesh, dtype) -> nnx.State:
    """Reads a checkpoint folder into the model's state on `mesh`.

    Args:
      folder: Hugging Face layout, one safetensors file or several with an index.
      arch: from the folder's `config.json`.
      mesh: where the arrays go, by the table in `mossa_jax.mesh`.
      dtype: float32 or bfloat16.

    Raises:
      Refusal: 3, with all missing, unexpected and misshapen tensors in one message.
    """
    checkpoint = Checkpoint(folder)
    abstract = abstract_state(arch, dtype)
    leaves = {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(abstract)}
    wanted: dict[str, tuple[int, ...]] = {}
    for name, leaf in leaves.items():
        wanted |= _wanted(arch, _TABLE[name], leaf.shape)
    present = {name for name in checkpoint.names() if not name.endswith(_IGNORED_ENDINGS)}
    if arch.tied_head:
        present.discard("lm_head.weight")
    problems = [f"missing {name}" for name in sorted(set(wanted) - present)]
    problems += [f"unexpected {name}" for name in sorted(present - set(wanted))]
    problems += [
        f"{name} has shape {checkpoint.shape(name)}, not {shape}"
        for name, shape in sorted(wanted.items())
        if name in present and checkpoint.shape(name) != shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise Refusal(BAD_INPUT, f"{folder} does not fit its config.json: {shown}")
    names = axis_names(arch)

    def load(path, leaf):
        name = leaf_name(path)
        source = _TABLE[name]

        def part(index: tuple[slice, ...]) -> np.ndarray:
            inner = index[1:] if source.stacked else index
            inner = inner[::-1] if source.transposed else inner
            layers = range(arch.layers)[index[0]] if source.stacked else (0,)
            tensors = [checkpoint.read(source.name.format(layer=layer), inner) for layer in layers]
            tensors = [tensor.T if source.transposed else tensor for tensor in tensors]
            return (np.stack(tensors) if source.stacked else tensors[0]).astype(leaf.dtype)

        target = mesh_lib.sharding(mesh, leaf.shape, names[name])
        return jax.make_array_from_callback(leaf.shape, target, part)

    return jax.tree.map_with_path(load, abstract)


def axis_names(arch: Architecture) -> dict[str, tuple[str | None, ...]]:
    """Leaf name -> logical axis names, as the modules declare them."""
    variables = abstract_state(arch, np.float32).flat_state()
    return {".".join(map(str, path)): variable.get_metadata("logical") for path, variable in variables}


def save_weights(folder: epath.PathLike, arch: Architecture, state: nnx.State, tokenizer: epath.PathLike) -> None:
    """Writes the model as a Hugging Face folder, the tokenizer's files copied from another folder.

    Single process only: it gathers the weights on the host.
    """
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        source, array = _TABLE[leaf_name(path)], np.asarray(leaf)
        for layer in range(arch.layers) if source.stacked else (0,):
            tensor = array[layer] if source.stacked else array
            name = source.name.format(layer=layer)
            tensors[name] = np.ascontiguousarray(tensor.T if source.transposed else tensor)
    with new_folder(folder) as new:
        write_json(new / "config.json", to_config(arch, str(next(iter(tensors.values())).dtype)))
        write_bytes(new / "model.safetensors", save(tensors, metadata={"format": "pt"}))
        for file in epath.Path(tokenizer).glob("*.json"):
            if file.name.startswith(("tokenizer", "special_tokens")):
                write_bytes(new / file.name, file.read_bytes())
