"""Loads weights from Hugging Face folders onto the mesh, and saves them.

One table maps their names to ours. Weights are loaded as sharded, stacked arrays: every device asks for its own slice,
and only those bytes are read, so that no process ever holds a whole 7B model beside its own share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.typing import DTypeLike

from mossa_jax.files.safetensors import StoredTensor
from mossa_jax.files.write import new_folder, write_bytes, write_json
from mossa_jax.llama.adapters import Adapter
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.checkpoint import Checkpoint
from mossa_jax.llama.files.tensors import TensorReader, TensorWriter
from mossa_jax.llama.model import abstract_state
from mossa_jax.llama.placement import check_mesh, leaf_name, shardings
from mossa_jax.processes.watchdog import sign

_BLOCK = "model.layers.{layer}."
_PROJECTIONS = {
    "attention": ("self_attn", ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")),
    "feed_forward": ("mlp", ("gate_proj", "up_proj", "gate_up_proj", "down_proj")),
}

# Our leaf -> Hugging Face's tensor. With `{layer}` there is one tensor per layer; ours stacks them on the first axis.
_TABLE = {
    "embedding": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head": "lm_head.weight",
    "blocks.attention.q_norm.weight": _BLOCK + "self_attn.q_norm.weight",
    "blocks.attention.k_norm.weight": _BLOCK + "self_attn.k_norm.weight",
    **{
        f"blocks.{ours}.{name}.{leaf}": f"{_BLOCK}{theirs}.{name}.{leaf}"
        for ours, (theirs, names) in _PROJECTIONS.items()
        for name in names
        for leaf in ("weight", "bias")
    },
}

# Where a block's norms stand (`Architecture.norms`) -> our norms -> Hugging Face's, which has one name for two places.
_NORMS = {
    "pre": {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"},
    "post": {
        "attention_post_norm": "post_attention_layernorm",
        "feed_forward_post_norm": "post_feedforward_layernorm",
    },
    "both": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_post_norm": "post_feedforward_layernorm",
    },
}

# Beginnings of the names of files that are copied beside saved weights.
_COPIED = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "generation_config")
_SHARD_BYTES = 2 * 2**30
# Bytes at whose multiples jax on CPU takes over memory without a copy.
_ALIGNMENT = 64
# Threads that read layers in parallel.
_READERS = 8


def _tensors(arch: Architecture, name: str) -> list[str]:
    """Returns the names of the stored tensors behind one of our leaves, in layer order."""
    norms = {f"blocks.{ours}.weight": f"{_BLOCK}{theirs}.weight" for ours, theirs in _NORMS[arch.norms].items()}
    stored = norms.get(name) or _TABLE[name]
    return [stored.format(layer=layer) for layer in range(arch.layers)] if _is_stacked(name) else [stored]


def _is_stacked(name: str) -> bool:
    """Whether one of our leaves has a layer axis, and is stored as one tensor per layer."""
    return name.startswith("blocks.")


def _aligned_empty(shape: list[int], dtype: DTypeLike) -> np.ndarray:
    """Returns an empty array, aligned so that jax on CPU can use its memory without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def stored_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor in a checkpoint of this architecture, by its stored name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree.leaves_with_path(abstract_state(arch, np.float32)):
        name = leaf_name(path)
        # [L, D_out, D_in] of ours is L tensors [D_out, D_in].
        shapes |= dict.fromkeys(_tensors(arch, name), leaf.shape[1:] if _is_stacked(name) else leaf.shape)
    return shapes


def open_checkpoint(folder: epath.PathLike, arch: Architecture) -> Checkpoint:
    """Finds and checks the tensors of a model, and reads none of them.

    Args:
      folder: Hugging Face layout, one safetensors file or several with an index.
      arch: from the folder's `config.json`.

    Raises:
      Refusal: 3 as in `Checkpoint`.
    """
    return Checkpoint(folder, stored_shapes(arch), arch.layers)


def load_weights(
    folder: epath.PathLike | Checkpoint, arch: Architecture, mesh: jax.sharding.Mesh, dtype: DTypeLike
) -> nnx.State:
    """Reads a checkpoint into the model's state on `mesh`.

    A head that is not stored, of a model that gives states alone, is all zeros.

    Args:
      folder: the folder, or its checkpoint if it is open already.
      arch: from the folder's `config.json`.
      mesh: the devices, over which the arrays are spread by the table in `devices.mesh`.
      dtype: float32, bfloat16 or (with 64-bit jax) float64.

    Raises:
      Refusal: 2 for a mesh that does not fit; 3 as in `open_checkpoint`.
    """
    checkpoint = folder if isinstance(folder, Checkpoint) else open_checkpoint(folder, arch)
    check_mesh(arch, mesh, str(checkpoint.folder))
    leaves, structure = jax.tree.flatten_with_path(abstract_state(arch, dtype))
    targets = jax.tree.leaves(shardings(arch, mesh))
    # The largest first: host memory then peaks while little else is loaded.
    order = sorted(range(len(leaves)), key=lambda i: -leaves[i][1].size)
    with ThreadPoolExecutor(_READERS) as readers:
        loaded = {
            i: _load_leaf(checkpoint, arch, leaf_name(leaves[i][0]), leaves[i][1], targets[i], readers) for i in order
        }
    return jax.tree.unflatten(structure, [loaded[i] for i in range(len(leaves))])


def replace_weights(
    state: nnx.State,
    folder: epath.PathLike,
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    tensors: Mapping[str, StoredTensor],
) -> nnx.State:
    """Reads some tensors of a checkpoint from other places, and returns the state with them.

    Args:
      state: of the whole checkpoint; it stays as it is, and arrays without a change are shared.
      folder, arch, mesh: as in `load_weights`.
      tensors: stored name of a tensor -> the place to read it from, of the same shape.

    Raises:
      Refusal: 3 when the checkpoint cannot be read any more.
    """
    checkpoint = open_checkpoint(folder, arch)
    checkpoint.tensors |= tensors
    places = shardings(arch, mesh)
    with ThreadPoolExecutor(_READERS) as readers:

        def replaced(path: tuple, leaf: jax.Array, target: jax.sharding.NamedSharding) -> jax.Array:
            name = leaf_name(path)
            if tensors.keys().isdisjoint(_tensors(arch, name)):
                return leaf
            shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            return _load_leaf(checkpoint, arch, name, shape, target, readers)

        return jax.tree.map_with_path(replaced, state, places)


def first_not_finite(state: nnx.State, arch: Architecture) -> str | None:
    """Returns the stored name of the first tensor of a model that holds NaN or infinity, or None.

    Every weight is looked at, so this is for messages about what has gone wrong already.
    """
    for path, leaf in jax.tree.leaves_with_path(state):
        tensors = _tensors(arch, leaf_name(path))
        # A flag per stored tensor leaves the devices.
        flags = jnp.isfinite(leaf).reshape(len(tensors), -1).all(1)
        if not flags.all():
            return tensors[int(jnp.argmin(flags))]
    return None


def _load_leaf(
    checkpoint: TensorReader,
    arch: Architecture,
    name: str,
    leaf: jax.ShapeDtypeStruct,
    target: jax.sharding.NamedSharding,
    readers: ThreadPoolExecutor,
) -> jax.Array:
    """Reads this process's slices of one leaf.

    Args:
      checkpoint: the files.
      arch: the model's.
      name: of the leaf.
      leaf: shape and dtype.
      target: its sharding.
      readers: threads that read in parallel.
    """
    tensors, slices = _tensors(arch, name), dict[tuple, np.ndarray]()

    def read_slice(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None, "a NamedSharding gives every device a slice"
        # (start, stop, step) per axis, with the None of a slice filled in.
        key = tuple(piece.indices(size) for piece, size in zip(index, leaf.shape, strict=True))
        # Devices that hold copies share one read.
        if key not in slices:
            out = _aligned_empty([len(range(*piece)) for piece in key], leaf.dtype)
            if _is_stacked(name):
                # One layer of the leaf: `index[1:]` is the slice within a layer.
                def read_layer(row: np.ndarray, layer: int) -> None:
                    checkpoint.read_into(row, tensors[layer], index[1:])

                # Many reads at once keep fast disks busy.
                list(readers.map(read_layer, out, range(*key[0])))
            elif tensors[0] not in checkpoint.tensors:
                out[...] = 0
            else:
                checkpoint.read_into(out, tensors[0], index)
            slices[key] = out
            sign()
        return slices[key]

    # On CPU jax takes over the aligned memory; elsewhere it is copied to the device.
    shards = [
        jax.device_put(read_slice(index), device, may_alias=True)
        for device, index in target.addressable_devices_indices_map(leaf.shape).items()
    ]
    # Waits until the copies are done, so that this leaf's host memory is free before the next leaf is read.
    return jax.block_until_ready(jax.make_array_from_single_device_arrays(leaf.shape, target, shards))


def save_weights(
    folder: epath.PathLike,
    arch: Architecture,
    state: nnx.State,
    config: Mapping[str, Any],
    tokenizer: epath.PathLike,
    adapter: Adapter | None = None,
    *,
    writer: bool = True,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes the model as a Hugging Face folder.

    Args:
      folder: replaced as a whole, never left half written.
      arch: the model's.
      state: its weights, on any mesh; they are copied to the host one layer at a time.
      config: the `config.json` to write; the number type is filled in.
      tokenizer: folder whose tokenizer and generation files are copied.
      adapter: if given, one adapter without leading axis, merged into the weights in float32 or wider.
      writer: whether this process writes; with several processes all of them call this and one writes.
      shard_bytes: largest size of a file.
    """
    leaves = [(leaf_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(state)]
    if not writer:
        # Takes part in gathering every layer and drops it at once.
        for name, tensor in _on_host(arch, leaves):
            del name, tensor
        return
    dtype = str(leaves[0][1].dtype)
    with new_folder(folder) as new:
        files = TensorWriter(new, shard_bytes)
        for name, tensor in _on_host(arch, leaves):
            files.add(name, _merged(tensor, name, adapter or {}))
        files.close()
        written = {k: v for k, v in config.items() if k not in ("torch_dtype", "dtype")}
        write_json(new / "config.json", written | {"torch_dtype": dtype})
        for file in epath.Path(tokenizer).glob("*"):
            if file.name.startswith(_COPIED) and file.suffix in (".json", ".model", ".txt", ".jinja"):
                write_bytes(new / file.name, file.read_bytes())


def _on_host(arch: Architecture, leaves: list[tuple[str, jax.Array]]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (stored name, tensor), gathered from all devices one layer at a time."""
    for name, leaf in leaves:
        for number, stored in enumerate(_tensors(arch, name)):
            tensor = _layer(leaf, number) if _is_stacked(name) else leaf
            if len(tensor.sharding.device_set) > 1:
                assert isinstance(tensor.sharding, jax.sharding.NamedSharding), "weights are placed by name"
                # One layer, whole on every device: a collective, which all processes enter in the same order.
                whole = jax.sharding.NamedSharding(tensor.sharding.mesh, jax.sharding.PartitionSpec())
                tensor = jax.jit(lambda x: x, out_shardings=whole)(tensor)
            yield stored, np.asarray(tensor.addressable_data(0))


@jax.jit
def _layer(leaf: jax.Array, number: int) -> jax.Array:
    # Jitted with the number as an argument: one program per leaf and not one per layer.
    return jnp.take(leaf, number, axis=0)


def _merged(tensor: np.ndarray, name: str, adapter: Adapter) -> np.ndarray:
    """Adds the adapter's update, if it has one, to a stored matrix [D_out, D_in]: W + scale (a b)^T."""
    # model.layers.<layer>.<part>.<target>.weight; norms and biases have no update.
    words = name.split(".")
    if words[-1] != "weight" or len(words) < 4 or words[-2] not in adapter:
        return tensor
    lora, layer = adapter[words[-2]], int(words[2])
    # [D_in, r] x [r, D_out], transposed to the stored [D_out, D_in].
    update = lora["scale"][layer] * (lora["a"][layer] @ lora["b"][layer]).T
    return (tensor.astype(np.promote_types(tensor.dtype, np.float32)) + update).astype(tensor.dtype)
