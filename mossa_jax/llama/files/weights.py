"""Weights between Hugging Face folders and the mesh.

One table maps their names to ours. Weights come in as sharded, stacked arrays: every device asks for its own slice
and only those bytes are read, so no process ever holds a whole 7B model beside its own share.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.write import new_folder, write_bytes, write_json
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.tensors import Checkpoint, Writer
from mossa_jax.llama.model import abstract_state
from mossa_jax.llama.placement import check_mesh, leaf_name, shardings
from mossa_jax.processes.watchdog import sign

_BLOCK = "model.layers.{layer}."
_PARTS = {
    "attention": ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
    "feed_forward": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}

# Our leaf -> their tensor; with `{layer}` it is one tensor a layer, stacked here on the first axis.
_TABLE = {
    "embedding": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head": "lm_head.weight",
    "blocks.attention_norm.weight": _BLOCK + "input_layernorm.weight",
    "blocks.feed_forward_norm.weight": _BLOCK + "post_attention_layernorm.weight",
    "blocks.attention.q_norm.weight": _BLOCK + "self_attn.q_norm.weight",
    "blocks.attention.k_norm.weight": _BLOCK + "self_attn.k_norm.weight",
    **{
        f"blocks.{ours}.{name}.{kind}": f"{_BLOCK}{theirs}.{name}.{kind}"
        for ours, (theirs, names) in _PARTS.items()
        for name in names
        for kind in ("weight", "bias")
    },
}

# Buffers that older exports store although they follow from the config.
_IGNORED_ENDINGS = ("rotary_emb.inv_freq",)

_COPIED = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "generation_config")
_SHARD_BYTES = 2 * 2**30
_ALIGNMENT = 64
_READERS = 8


def _tensors(arch: Architecture, name: str) -> list[str]:
    """Names of the stored tensors behind one of our leaves, in layer order."""
    stored = _TABLE[name]
    return [stored.format(layer=layer) for layer in range(arch.layers)] if "{layer}" in stored else [stored]


def _aligned(shape: list[int], dtype) -> np.ndarray:
    """An empty array that jax on CPU takes over as it is, without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def stored_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a checkpoint of this architecture holds."""
    found: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree.leaves_with_path(abstract_state(arch, np.float32)):
        name = leaf_name(path)
        found |= dict.fromkeys(_tensors(arch, name), leaf.shape[1:] if "{layer}" in _TABLE[name] else leaf.shape)
    return found


def load_weights(folder: epath.PathLike, arch: Architecture, mesh: jax.sharding.Mesh, dtype) -> nnx.State:
    """Reads a checkpoint folder into the model's state on `mesh`.

    Args:
      folder: Hugging Face layout, one safetensors file or several with an index.
      arch: from the folder's `config.json`.
      mesh: where the arrays go, by the table in `devices.mesh`.
      dtype: float32, bfloat16 or (with 64-bit jax) float64.

    Raises:
      Refusal: 3, with all missing, unexpected and misshapen tensors in one message; 2 for a mesh that does not fit.
    """
    checkpoint = Checkpoint(folder)
    check_mesh(arch, mesh, str(folder))
    leaves, structure = jax.tree.flatten_with_path(abstract_state(arch, dtype))
    _check_tensors(checkpoint, arch, str(folder))
    where = jax.tree.leaves(shardings(arch, mesh))

    def load(name: str, leaf, target) -> jax.Array:
        tensors, parts = _tensors(arch, name), {}
        stacked = "{layer}" in _TABLE[name]

        def part(index: tuple[slice, ...]) -> np.ndarray:
            key = tuple(piece.indices(size) for piece, size in zip(index, leaf.shape, strict=True))
            if key not in parts:  # devices that hold copies share one read
                out = _aligned([len(range(*piece)) for piece in key], leaf.dtype)
                if stacked:
                    read = lambda row, layer: checkpoint.read_into(row, tensors[layer], index[1:])  # noqa: E731
                    list(readers.map(read, out, range(*key[0])))  # many at once keep fast disks busy
                else:
                    checkpoint.read_into(out, tensors[0], index)
                parts[key] = out
                sign()
            return parts[key]

        shards = [
            jax.device_put(part(index), device, may_alias=True)
            for device, index in target.addressable_devices_indices_map(leaf.shape).items()
        ]
        return jax.block_until_ready(jax.make_array_from_single_device_arrays(leaf.shape, target, shards))

    # The largest first: host memory then peaks while little else is there.
    order = sorted(range(len(leaves)), key=lambda i: -leaves[i][1].size)
    with ThreadPoolExecutor(_READERS) as readers:
        loaded = {i: load(leaf_name(leaves[i][0]), leaves[i][1], where[i]) for i in order}
    return jax.tree.unflatten(structure, [loaded[i] for i in range(len(leaves))])


def _check_tensors(checkpoint: Checkpoint, arch: Architecture, folder: str) -> None:
    """Refuses a checkpoint that is not exactly the model of its config.json."""
    wanted = stored_shapes(arch)
    present = {name for name in checkpoint.tensors if not name.endswith(_IGNORED_ENDINGS)}
    if arch.tied_head:
        present.discard("lm_head.weight")
    problems = [f"missing {name}" for name in sorted(set(wanted) - present)]
    problems += [f"unexpected {name}" for name in sorted(present - set(wanted))]
    problems += [
        f"{name} has shape {checkpoint.tensors[name].shape}, not {shape}"
        for name, shape in sorted(wanted.items())
        if name in present and checkpoint.tensors[name].shape != shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise Refusal(BAD_INPUT, f"{folder} does not fit its config.json: {shown}")


def save_weights(
    folder: epath.PathLike,
    arch: Architecture,
    state: nnx.State,
    config: Mapping[str, Any],
    tokenizer: epath.PathLike,
    adapter: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    *,
    writer: bool = True,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes the model as a Hugging Face folder.

    Args:
      folder: replaced as a whole, never left half written.
      arch: the model's.
      state: its weights, on any mesh; one layer at a time comes to the host.
      config: the `config.json` to write; the number type is filled in.
      tokenizer: folder whose tokenizer and generation files are copied.
      adapter: merged into the weights (in float32 or wider) if given: target -> {"a", "b", "scale"}, no leading axis.
      writer: whether this process writes; with several processes all of them call this and one writes.
      shard_bytes: largest size of a file.
    """
    leaves = [(leaf_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(state)]
    if not writer:
        for name, tensor in _on_host(arch, leaves):
            del name, tensor
        return
    dtype = str(leaves[0][1].dtype)
    with new_folder(folder) as new:
        files = Writer(new, shard_bytes)
        for name, tensor in _on_host(arch, leaves):
            files.add(name, _merged(tensor, name, adapter or {}))
        files.close()
        written = {k: v for k, v in config.items() if k not in ("torch_dtype", "dtype")}
        write_json(new / "config.json", written | {"torch_dtype": dtype})
        for file in epath.Path(tokenizer).glob("*"):
            if file.name.startswith(_COPIED) and file.suffix in (".json", ".model", ".txt", ".jinja"):
                write_bytes(new / file.name, file.read_bytes())


def _on_host(arch: Architecture, leaves: list):
    """Yields (stored name, tensor), gathered from all devices one layer at a time."""
    for name, leaf in leaves:
        layers = _tensors(arch, name)
        stacked = "{layer}" in _TABLE[name]
        for number, stored in enumerate(layers):
            part = _layer(leaf, number) if stacked else leaf
            if len(part.sharding.device_set) > 1:
                part = jax.jit(lambda x: x, out_shardings=mesh_lib.replicated(part.sharding.mesh))(part)
            yield stored, np.asarray(part.addressable_data(0))


@jax.jit
def _layer(leaf: jax.Array, number: int) -> jax.Array:
    return jnp.take(leaf, number, axis=0)


def _merged(tensor: np.ndarray, name: str, adapter: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """A stored matrix with the adapter's update added: W + scale (a b)^T."""
    parts = name.split(".")
    if parts[-1] != "weight" or len(parts) < 4 or parts[-2] not in adapter:
        return tensor
    part, layer = adapter[parts[-2]], int(parts[2])
    update = part["scale"][layer] * (part["a"][layer] @ part["b"][layer]).T
    return (tensor.astype(np.promote_types(tensor.dtype, np.float32)) + update).astype(tensor.dtype)
