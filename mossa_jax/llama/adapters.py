"""LoRA adapters as a pytree of their own, stacked over models: target -> {"a", "b", "scale"}.

`a` is [A, L, D_in, r], `b` is [A, L, r, D_out], `scale` is [A, L]; the base model never holds any of it. The update of
a projection is `scale * (x @ a) @ b` (Hu et al. 2021, arXiv 2106.09685; Hugging Face stores a and b transposed).

Shape letters: A adapters, L layers, D_in and D_out input and output width of a projection, r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.architecture import Architecture

Adapter = dict[str, dict[str, np.ndarray]]
"""One model's adapter on the host: target -> {"a" [L, D_in, r], "b" [L, r, D_out], "scale" [L]}; {} is the base."""

HostAdapters = dict[str, dict[str, np.ndarray]]
"""Several adapters on the host, stacked: the same with a leading axis [A, ...]."""

Adapters = dict[str, dict[str, jax.Array]]
"""Several adapters on the devices, stacked: the same with a leading axis [A, ...]."""

DeviceAdapter = dict[str, dict[str, jax.Array]]
"""One model's adapter on the devices: target -> {"a" [L, D_in, r], "b" [L, r, D_out], "scale" [L]}; {} is the base."""

BlockAdapter = dict[str, dict[str, jax.Array]]
"""One model's adapter for one block: target -> {"a" [D_in, r], "b" [r, D_out], "scale" []}."""

# Models over the adapter axis. Widths and ranks stay whole: an adapter is small, and `x @ a` would otherwise
# end in a sum over devices.
# Logical axes of the leaves of a stack.
AXES = {
    "a": ("adapter", "layers", None, "rank"),
    "b": ("adapter", "layers", "rank", None),
    "scale": ("adapter", "layers"),
}


def target_sizes(arch: Architecture) -> dict[str, tuple[int, int]]:
    """Returns target -> (D_in, D_out), the sizes of the projection that it updates."""
    heads, kv_heads = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    if arch.fused:
        return {
            "qkv_proj": (arch.hidden, heads + 2 * kv_heads),
            "o_proj": (heads, arch.hidden),
            "gate_up_proj": (arch.hidden, 2 * arch.feed_forward),
            "down_proj": (arch.feed_forward, arch.hidden),
        }
    return {
        "q_proj": (arch.hidden, heads),
        "k_proj": (arch.hidden, kv_heads),
        "v_proj": (arch.hidden, kv_heads),
        "o_proj": (heads, arch.hidden),
        "gate_proj": (arch.hidden, arch.feed_forward),
        "up_proj": (arch.hidden, arch.feed_forward),
        "down_proj": (arch.feed_forward, arch.hidden),
    }


def check_targets(arch: Architecture, targets: Sequence[str]) -> None:
    """Refuses targets that the model does not have.

    Raises:
      Refusal: 2, naming them, and those that it has.
    """
    names = [*target_sizes(arch)]
    if missing := [target for target in targets if target not in names]:
        raise Refusal(
            BAD_CONFIG,
            f"config.tuning.targets={','.join(targets)}: a {arch.family} model has no {', '.join(missing)}; choose of "
            f"{', '.join(names)}",
        )


def initial_adapter(
    arch: Architecture, targets: Sequence[str], rank: int, alpha: float, first_layer: int, seed: Sequence[int]
) -> Adapter:
    """Draws one untrained adapter: `a` Kaiming-uniform as in PEFT, `b` zero.

    It is drawn on the host from `seed` alone, so that a model's start does not depend on its neighbours or the mesh.
    Blocks below `first_layer` get scale 0, which keeps them exactly at the base model: their gradient is zero too.

    Args:
      arch: the base model's.
      targets: the projections to update.
      rank: r.
      alpha: the scale is alpha / rank.
      first_layer: the first block that is trained.
      seed: numbers that identify the model.

    Returns:
      NumPy float32, without the leading axis.

    References:
      Hu et al. 2021, section 4.1; He et al. 2015, "Delving deep into rectifiers", arXiv 1502.01852, for the bound.
    """
    # NumPy and not `jax.random`: the same numbers for any platform and any number of devices.
    rng = np.random.default_rng(list(seed))
    adapter = {}
    scale = np.full(arch.layers, alpha / rank, np.float32)
    scale[:first_layer] = 0.0
    for target in targets:
        d_in, d_out = target_sizes(arch)[target]
        # kaiming_uniform(a=sqrt(5)) over fan-in.
        bound = d_in**-0.5
        a = rng.uniform(-bound, bound, (arch.layers, d_in, rank)).astype(np.float32)  # [L, D_in, r]
        # Drawn for all layers first, so that the later layers do not depend on `first_layer`.
        a[:first_layer] = 0.0
        # With b zero the model starts as the base itself (Hu et al., section 4.1).
        b = np.zeros((arch.layers, rank, d_out), np.float32)  # [L, r, D_out]
        adapter[target] = {"a": a, "b": b, "scale": scale}
    return adapter


def stack(arch: Architecture, adapters: Sequence[Adapter]) -> HostAdapters:
    """Stacks adapters of any targets and ranks; {} is the base model itself.

    Smaller ranks are padded with zeros and absent targets are zero, which changes no value.

    Args:
      arch: the base model's.
      adapters: A of them, on the host.

    Returns:
      target -> {"a" [A, L, D_in, r], "b" [A, L, r, D_out], "scale" [A, L]}, float32, for each target that any of the
      adapters has; r is the largest rank of that target.
    """
    targets = [target for target in target_sizes(arch) if any(target in adapter for adapter in adapters)]
    stacked = {}
    for target in targets:
        d_in, d_out = target_sizes(arch)[target]
        # Columns of zeros in a meet rows of zeros in b.
        rank = max(adapter[target]["a"].shape[-1] for adapter in adapters if target in adapter)
        a = np.zeros((len(adapters), arch.layers, d_in, rank), np.float32)  # [A, L, D_in, r]
        b = np.zeros((len(adapters), arch.layers, rank, d_out), np.float32)  # [A, L, r, D_out]
        scale = np.zeros((len(adapters), arch.layers), np.float32)  # [A, L]
        for index, adapter in enumerate(adapters):
            if target in adapter:
                update = adapter[target]
                own = update["a"].shape[-1]
                a[index, ..., :own], b[index, :, :own], scale[index] = update["a"], update["b"], update["scale"]
        stacked[target] = {"a": a, "b": b, "scale": scale}
    return stacked


def unstack(adapters: Adapters, index: int) -> Adapter:
    """Copies the adapter of model `index` out of a stack [A, ...] to the host, without the leading axis."""
    # Sliced on the devices first, so that only one model's numbers travel.
    return jax.tree.map(lambda leaf: np.asarray(leaf[index]), adapters)


def place_adapters(mesh: jax.sharding.Mesh, adapters: HostAdapters) -> Adapters:
    """Places stacked adapters [A, ...] on a mesh: spread over the adapter axis, whole on every device otherwise."""
    return {
        target: {name: mesh_lib.place(mesh, leaf, AXES[name]) for name, leaf in update.items()}
        for target, update in adapters.items()
    }


def matrices(adapters: Adapters) -> Adapters:
    """Returns what is trained: target -> {"a", "b"}."""
    return {target: {name: update[name] for name in ("a", "b")} for target, update in adapters.items()}


def scales(adapters: Adapters) -> dict[str, jax.Array]:
    """Returns what is not trained: target -> scale."""
    return {target: update["scale"] for target, update in adapters.items()}


def with_scales(matrices: Adapters, scales: dict[str, jax.Array]) -> Adapters:
    """Puts an adapter together again: the inverse of `matrices` and `scales`."""
    return {target: {**update, "scale": scales[target]} for target, update in matrices.items()}


def is_finite(adapter: Adapter | Adapters) -> bool:
    """Whether every number of the adapter is finite."""
    # One number per leaf comes back from the devices.
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(adapter))


def zero_adapter(arch: Architecture) -> Adapter:
    """Returns the smallest adapter that changes nothing, for runs in which every model is the base itself."""
    # One target of rank 1, all zeros, scale included: [L, D_in, 1], [L, 1, D_out], [L].
    target, (d_in, d_out) = next(iter(target_sizes(arch).items()))
    shapes = {"a": (arch.layers, d_in, 1), "b": (arch.layers, 1, d_out), "scale": (arch.layers,)}
    return {target: {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}}


def abstract_adapters(
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    models: int,
    rank: int,
    targets: Sequence[str],
    leaves: Sequence[str] = tuple(AXES),
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Describes what `place_adapters` would return, as shapes, dtypes and shardings.

    Args:
      arch: the base model's.
      mesh: the devices; they need not exist.
      models: A.
      rank, targets: of the adapters.
      leaves: the names of the leaves to describe.
    """
    stacked = {}
    for target in targets:
        d_in, d_out = target_sizes(arch)[target]
        # Float32 whatever the base's dtype: [A, L, D_in, r], [A, L, r, D_out] and [A, L].
        shapes: dict[str, tuple[int, ...]] = {"a": (d_in, rank), "b": (rank, d_out), "scale": ()}
        stacked[target] = {
            name: mesh_lib.abstract(mesh, (models, arch.layers, *shapes[name]), AXES[name], jnp.float32)
            for name in leaves
        }
    return stacked
