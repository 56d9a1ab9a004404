"""LoRA adapters as a pytree of their own, stacked over models: target -> {"a", "b", "scale"}.

`a` [A, L, D_in, r], `b` [A, L, r, D_out], `scale` [A, L]; the base model never holds any of it. The update of a
projection is `scale * (x @ a) @ b` (Hu et al. 2021, with a and b transposed as stored by Hugging Face).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.architecture import Architecture

Adapter = dict[str, dict[str, np.ndarray]]
"""One model's adapter on the host: target -> {"a" [L, D_in, r], "b" [L, r, D_out], "scale" [L]}; {} is the base."""

HostAdapters = dict[str, dict[str, np.ndarray]]
"""Several adapters on the host, stacked: the same with a leading axis [A, ...]."""

Adapters = dict[str, dict[str, jax.Array]]
"""Several adapters on the devices, stacked [A, ...]."""

AXES = {
    "a": ("adapter", "layers", None, "rank"),
    "b": ("adapter", "layers", "rank", None),
    "scale": ("adapter", "layers"),
}


def target_sizes(arch: Architecture) -> dict[str, tuple[int, int]]:
    """Target -> (D_in, D_out) of the projection that it updates."""
    heads, kv_heads = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    return {
        "q_proj": (arch.hidden, heads),
        "k_proj": (arch.hidden, kv_heads),
        "v_proj": (arch.hidden, kv_heads),
        "o_proj": (heads, arch.hidden),
        "gate_proj": (arch.hidden, arch.feed_forward),
        "up_proj": (arch.hidden, arch.feed_forward),
        "down_proj": (arch.feed_forward, arch.hidden),
    }


def initial_adapter(
    arch: Architecture, targets: Sequence[str], rank: int, alpha: float, first_layer: int, seed: Sequence[int]
) -> Adapter:
    """One untrained adapter (no leading axis), NumPy float32: `a` Kaiming-uniform as in PEFT, `b` zero.

    Made on the host from `seed` alone, so that a model's start does not depend on its neighbours or the mesh.
    Blocks below `first_layer` get scale 0, which keeps them at the base model exactly: their gradient is zero too.
    """
    rng = np.random.default_rng(list(seed))
    adapter = {}
    scale = np.full(arch.layers, alpha / rank, np.float32)
    scale[:first_layer] = 0.0
    for target in targets:
        d_in, d_out = target_sizes(arch)[target]
        bound = d_in**-0.5  # kaiming_uniform(a=sqrt(5)) over fan-in
        a = rng.uniform(-bound, bound, (arch.layers, d_in, rank)).astype(np.float32)
        a[:first_layer] = 0.0
        adapter[target] = {"a": a, "b": np.zeros((arch.layers, rank, d_out), np.float32), "scale": scale}
    return adapter


def stack(arch: Architecture, adapters: Sequence[Adapter]) -> HostAdapters:
    """Stacks adapters (without leading axis) of any targets and ranks; {} is the base model itself.

    Ranks are padded with zeros and absent targets are zero, which changes no value.
    """
    targets = [target for target in target_sizes(arch) if any(target in adapter for adapter in adapters)]
    stacked = {}
    for target in targets:
        d_in, d_out = target_sizes(arch)[target]
        rank = max(adapter[target]["a"].shape[-1] for adapter in adapters if target in adapter)
        a = np.zeros((len(adapters), arch.layers, d_in, rank), np.float32)
        b = np.zeros((len(adapters), arch.layers, rank, d_out), np.float32)
        scale = np.zeros((len(adapters), arch.layers), np.float32)
        for index, adapter in enumerate(adapters):
            if target in adapter:
                part = adapter[target]
                own = part["a"].shape[-1]
                a[index, ..., :own], b[index, :, :own], scale[index] = part["a"], part["b"], part["scale"]
        stacked[target] = {"a": a, "b": b, "scale": scale}
    return stacked


def unstack(adapters: Adapters, index: int) -> Adapter:
    """One model's adapter out of a stack, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[index]), adapters)


def place_adapters(mesh: jax.sharding.Mesh, adapters: HostAdapters) -> Adapters:
    """Stacked adapters [A, ...] of the host on a mesh, whole on every device but for the adapter axis."""
    return {
        target: {name: mesh_lib.place(mesh, leaf, AXES[name]) for name, leaf in part.items()}
        for target, part in adapters.items()
    }


def trainable(adapters: Adapters) -> Adapters:
    """The part that is learned: `a` and `b`."""
    return {target: {name: part[name] for name in ("a", "b")} for target, part in adapters.items()}


def scales(adapters: Adapters) -> dict[str, jax.Array]:
    """The part that is not: target -> scale."""
    return {target: part["scale"] for target, part in adapters.items()}


def join(parts: Adapters, scale: dict[str, jax.Array]) -> Adapters:
    """Inverse of `trainable` and `scales`."""
    return {target: {**part, "scale": scale[target]} for target, part in parts.items()}


def is_finite(adapter: Adapter | Adapters) -> bool:
    """Whether every number of the adapter is finite."""
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(adapter))


def zero_adapter(arch: Architecture) -> Adapter:
    """An adapter that changes nothing, of the smallest size: it stands for the base model where all are base."""
    d_in, d_out = target_sizes(arch)["q_proj"]
    shapes = {"a": (arch.layers, d_in, 1), "b": (arch.layers, 1, d_out), "scale": (arch.layers,)}
    return {"q_proj": {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}}


def abstract_adapters(
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    models: int,
    rank: int,
    targets: Sequence[str],
    parts: Sequence[str] = tuple(AXES),
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """What `place_adapters` makes of `models` adapters, or the named parts of it, as shapes, dtypes and shardings."""
    stacked = {}
    for target in targets:
        d_in, d_out = target_sizes(arch)[target]
        shapes = {"a": (d_in, rank), "b": (rank, d_out), "scale": ()}
        stacked[target] = {
            part: mesh_lib.abstract(mesh, (models, arch.layers, *shapes[part]), AXES[part], jnp.float32)
            for part in parts
        }
    return stacked
