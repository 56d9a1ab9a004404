"""The forward pass of several models at once that keeps what similarity needs of each layer, and nothing else.

States go into their place inside the scan over layers, so no [B, S, D] state outlives its layer and nothing touches the
disk. There is no head and no logits. Work that would be done twice is not done:

- ids that all prompts begin with are worked through once a model, and their keys and values reused by every prompt;
- blocks below the first one that any adapter changes are worked through once for all models;
- of the last block only the prompts' last tokens are worked out, where nothing else is read of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import Adapters, HostAdapters, abstract_adapters, place_adapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.model import Llama, SharedPrefix, can_share_prefix, embed, merge, pin_rows, windowed_blocks
from mossa_jax.llama.placement import abstract_base
from mossa_jax.processes.watchdog import sign
from mossa_jax.tokens.packing import PromptRows, common_prefix, pack_prompts

POOLS = ("last", "mean")  # of rows that are kept; with `all` every token is a row, which are streamed
KEPT = ("adapter", None, "rows", "kept")  # logical axes of kept states [M, L + 2, n, D]
_PROMPTS_PER_ROW = 16  # of abstract rows: only the width of small index arrays
LEAD_STEP = 32  # shared ids are rounded up to this, so that tasks share their compiled programs
_REACHES = (64, 128, 256, 384, 512, 768)  # and their longest own prompts to one of these


@dataclass(frozen=True)
class KeptStates:
    """Pooled states of M models over the same prompts.

    Attributes:
      states: [M, L + 2, n, D] float32 on the mesh, rows spread over `fsdp` and columns over `tensor`; row i is
        prompt i.
      valid: [n] bool, False on the rows that only fill the array up.
      names: the L + 2 layer names.
    """

    states: jax.Array
    valid: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Pass:
    """What a compiled pass is made for.

    Attributes:
      arch: of the base.
      pool: one of `POOLS`, or `all`.
      prefix: columns for the ids that all prompts share, 0 for none.
      max_own: no prompt has more ids of its own; 0: not known.
      first: the first block that any adapter changes, at most the last one.
      mesh: of rows and weights.
    """

    arch: Architecture
    pool: str
    prefix: int
    max_own: int
    first: int
    mesh: jax.sharding.Mesh


def pooled(x: jax.Array, rows: dict[str, jax.Array], pool: str, prefix: tuple | None = None) -> jax.Array:
    """Pools states per prompt: [B, S, D] -> [B, P, D] float32.

    Args:
      x: of the prompts' own ids.
      rows: fields of `PromptRows`.
      pool: `last` or `mean`.
      prefix: for `mean`, the sum [D] of the states of the ids that all prompts share, and their number.
    """
    if pool == "last":
        return jnp.take_along_axis(x, rows["ends"][..., None], axis=1).astype(jnp.float32)
    prompts = jnp.arange(1, rows["ends"].shape[1] + 1)
    inside = (rows["segments"][:, None, :] == prompts[:, None]).astype(jnp.float32)
    sums = jnp.einsum("bps,bsd->bpd", inside, x.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    sums, count = (sums, 0) if prefix is None else (sums + prefix[0], prefix[1])
    return sums / jnp.maximum(inside.sum(-1, keepdims=True) + count, 1)


def run_models(
    made: Pass,
    model: Llama,
    adapters: Adapters,
    rows: dict[str, jax.Array],
    prefix: dict | None,
    put: Callable,
    state: Any,
) -> Any:
    """Runs M models over a batch and hands each layer's states to `put`; returns the last `state`.

    Args:
      made: what for.
      model: the merged base.
      adapters: stacked [M, L, ...] on the devices.
      rows: fields of `PromptRows`, without the shared ids.
      prefix: of the shared ids, what `lead_of` gives.
      put: (state, layer, x, whole) -> state: `layer` numbers the layer names, `x` is [M, B, S, D], or [1, B, S, D]
        where it is the same for all models; without `whole` [M, B, P, D], the prompts' last tokens alone.
      state: the first argument of the first `put`.
    """
    arch, first, segments = made.arch, made.first, rows["segments"]
    if made.prefix:
        shared = jnp.where(jnp.arange(made.prefix) < prefix["count"], -1, 0).astype(segments.dtype)
        segments = jnp.concatenate([jnp.broadcast_to(shared, (len(segments), made.prefix)), segments], axis=1)
    visible = Segments(segments, made.mesh, made.prefix, made.max_own)
    x, table = embed(model, arch, rows["tokens"], rows["positions"], visible)
    state = put(state, 0, x[None], True)
    near = windowed_blocks(arch)
    near = None if near is None else jnp.asarray(near)
    take = lambda tree, layer, axis=0: jax.tree.map(  # noqa: E731
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, axis, keepdims=False), tree
    )
    cache = None if not made.prefix else prefix["keys_values"]

    def block(x, lora, cache, layer, ends=None):
        windowed = None if near is None else near[layer]
        x, _ = take(model.blocks, layer)(x, lora, table, visible, windowed, past=cache, query_columns=ends)
        return pin_rows(x, visible)

    def alike(carry, layer):
        x, state = carry
        x = block(x, {}, None if cache is None else take(jax.tree.map(lambda leaf: leaf[0], cache), layer), layer)
        return (x, put(state, layer + 1, x[None], True)), None

    def apart(carry, layer, ends=None):
        x, state = carry
        each = jax.vmap(
            partial(block, layer=layer, ends=ends),
            in_axes=(0, 0, None if cache is None else 0),
            spmd_axis_name="adapter",
        )
        x = each(x, take(adapters, layer, 1), None if cache is None else take(cache, layer, 1))
        return (x, put(state, layer + 1, x, ends is None)), None

    models = len(next(iter(jax.tree.leaves(adapters))))
    (x, state), _ = jax.lax.scan(alike, (x, state), jnp.arange(first))
    x = jnp.broadcast_to(x, (models, *x.shape))
    (x, state), _ = jax.lax.scan(apart, (x, state), jnp.arange(first, arch.layers - 1))
    ends = rows["ends"] if made.pool == "last" else None
    (x, state), _ = apart((x, state), arch.layers - 1, ends)
    return put(state, arch.layers + 1, model.final_norm(x), ends is None)


@partial(jax.jit, static_argnames=("made",))
def lead_of(made: Pass, base, adapters: Adapters, tokens: jax.Array, count: jax.Array) -> dict[str, Any]:
    """What all prompts need of the ids that they share, from one pass over these.

    Args:
      made: what for.
      base: the base's state.
      adapters: stacked [M, L, ...] on the devices.
      tokens: [1, prefix] int32, filled up on the right.
      count: [] int32, how many of them count.

    Returns:
      keys_values: a `SharedPrefix` of [M, L, prefix, K, d]; sums: [M, L + 2, D] float32, of their states at each
        layer; count.
    """
    arch, model = made.arch, merge(made.arch, base)
    inside = jnp.arange(made.prefix) < count
    visible = Segments(inside[None].astype(jnp.int32), made.mesh)
    x, table = embed(model, arch, tokens, jnp.arange(made.prefix)[None], visible)
    total = lambda x: jnp.sum(jnp.where(inside[:, None], x[0].astype(jnp.float32), 0), axis=0)  # noqa: E731

    def one(adapter):
        def body(x, layer):
            block, lora, windowed = layer
            x, (k, v) = block(x, lora, table, visible, windowed)
            return x, (SharedPrefix(k[0], v[0]), total(x))

        last, (keys_values, sums) = jax.lax.scan(body, x, (model.blocks, adapter, windowed_blocks(arch)))
        return keys_values, jnp.concatenate([total(x)[None], sums, total(model.final_norm(last))[None]])

    keys_values, sums = jax.vmap(one, spmd_axis_name="adapter")(adapters)
    return {"keys_values": keys_values, "sums": sums, "count": count}


def rows_of(
    made: Pass, rows: dict[str, jax.Array], prefix: dict | None, layer, x: jax.Array, whole: bool
) -> tuple[jax.Array, jax.Array]:
    """What similarity takes as rows of a layer: [M or 1, R, D] float32, and which of them count, [R] bool.

    Arguments as those of `run_models` and of its `put`. A row is a prompt (R = B P) or, with pool `all`, a token.
    """
    if made.pool == "all":
        return x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1]), (rows["segments"] > 0).reshape(-1)
    if whole and made.pool == "mean" and made.prefix:
        sums = jax.lax.dynamic_index_in_dim(prefix["sums"], layer, 1, keepdims=False)[: len(x)]
        x = jax.vmap(lambda x, total: pooled(x, rows, made.pool, (total, prefix["count"])))(x, sums)
    elif whole:
        x = jax.vmap(lambda x: pooled(x, rows, made.pool))(x)
    return x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1]), (rows["ids"] >= 0).reshape(-1)


@partial(jax.jit, static_argnames=("made",), donate_argnames=("kept",))
def forward(made: Pass, base, adapters: Adapters, rows: dict[str, jax.Array], prefix, kept: jax.Array) -> jax.Array:
    """Runs all models over one batch of rows and puts their pooled states at the prompts' own rows of `kept`."""
    layout = _layout(made.mesh, kept.shape)
    ids = rows["ids"].reshape(-1)
    ids = jnp.where(ids < 0, kept.shape[2], ids)  # beyond the end: dropped

    def put(kept, layer, x, whole):
        x, _ = rows_of(made, rows, prefix, layer, x, whole)
        x = jnp.broadcast_to(x, (len(kept), *x.shape[1:]))
        # Layer by layer: one scatter over all of them takes the TPU compiler many minutes.
        return jax.lax.with_sharding_constraint(kept.at[:, layer, ids].set(x, mode="drop"), layout)

    return run_models(made, merge(made.arch, base), adapters, rows, prefix, put, kept)


def _layout(mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
    return mesh_lib.sharding(mesh, shape, KEPT)


class Prompts:
    """Packed prompts of several models on a mesh, ready to run.

    Attributes:
      made: what the pass over them is made for.
      arguments: (base, adapters) on the devices.
      prefix: of the ids that all prompts share; None where there are none.
      count: of prompts.
      models: M.
    """

    def __init__(
        self,
        arch: Architecture,
        base: Any,
        adapters: HostAdapters,
        prompts: Sequence[Sequence[int]],
        mesh: jax.sharding.Mesh,
        *,
        pool: str,
        row_length: int,
        batch_rows: int,
        long_row_length: int = 0,
        share_prefix: bool = True,
    ):
        """Arguments as of `keep_states`."""
        self.count, self.models = len(prompts), len(next(iter(jax.tree.leaves(adapters))))
        self._mesh, self._batch_rows, self._row_length = mesh, batch_rows, row_length
        # Of `all` tokens the shared ones are rows too, once a prompt.
        shared = common_prefix(prompts) if share_prefix and pool != "all" and can_share_prefix(arch) else 0
        self._rows = pack_prompts(prompts, row_length, long_row_length, shared)
        longest = max(len(ids) for ids in prompts) - shared
        max_own = max_own_of(longest)
        prefix = mesh_lib.round_up(shared, LEAD_STEP)
        self.made = Pass(arch, pool, prefix, max_own, _first_changed(arch, adapters), mesh)
        self.arguments = base, place_adapters(mesh, adapters)
        self.prefix = None
        if shared:
            tokens = np.zeros((1, prefix), np.int32)
            tokens[0, :shared] = prompts[0][:shared]
            tokens, count = mesh_lib.place(mesh, tokens, (None, None)), mesh_lib.place(mesh, np.int32(shared), ())
            self.prefix = lead_of(self.made, *self.arguments, tokens, count)

    def batches(self):
        """Batches of packed rows on the mesh: fields of `PromptRows`."""
        for rows in self._rows:
            width = _power_of_two(rows.ids.shape[1])
            # About as many positions in a batch, whatever the length of its rows.
            share = max(self._batch_rows * self._row_length // rows.tokens.shape[1], 1)
            size = mesh_lib.round_up(_even(len(rows), share), self._mesh.shape["fsdp"])
            for batch in rows.batches(size):
                sign()
                yield {
                    field.name: mesh_lib.place(self._mesh, _widened(batch, field.name, width), ("rows", None))
                    for field in fields(batch)
                }


def keep_states(
    arch: Architecture,
    base: Any,
    adapters: HostAdapters,
    prompts: Sequence[Sequence[int]],
    mesh: jax.sharding.Mesh,
    *,
    pool: str,
    row_length: int,
    batch_rows: int,
    long_row_length: int = 0,
    share_prefix: bool = True,
) -> KeptStates:
    """States of all models over all prompts.

    Args:
      arch: the base model's.
      base: its state on `mesh`.
      adapters: stacked [M, ...] on the host; a zero adapter is the base model itself.
      prompts: token ids, BOS included.
      mesh: with an adapter axis of one: the models of a task are few, rows are many.
      pool: `last` or `mean`.
      row_length: positions of a packed row; ids that all prompts share take none.
      batch_rows: packed rows a forward pass.
      long_row_length: positions of the rows for prompts that are longer; 0: there are none.
      share_prefix: work through ids that all prompts begin with once, where that is worth it.
    """
    packed = Prompts(
        arch, base, adapters, prompts, mesh, pool=pool, row_length=row_length, batch_rows=batch_rows,
        long_row_length=long_row_length, share_prefix=share_prefix,
    )  # fmt: skip
    slots = kept_rows(packed.count, mesh.shape["fsdp"])
    shape = (packed.models, arch.layers + 2, slots, arch.hidden)
    kept = jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=_layout(mesh, shape))()
    for rows in packed.batches():
        kept = forward(packed.made, *packed.arguments, rows, packed.prefix, kept)
    return KeptStates(kept, np.arange(slots) < packed.count, arch.state_names())


def _first_changed(arch: Architecture, adapters: HostAdapters) -> int:
    """The first block in which some adapter does anything; the last one if there is none."""
    changed = np.zeros(arch.layers, bool)
    for part in adapters.values():
        acting = [np.abs(part[side]).max(axis=(2, 3)) > 0 for side in ("a", "b")] + [part["scale"] != 0]  # each [M, L]
        changed |= np.logical_and.reduce(acting).any(axis=0)
    return int(changed.argmax()) if changed.any() else arch.layers - 1


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _even(rows: int, most: int) -> int:
    """Rows of a batch, at most so many: as few batches as can be, evened out so that the last one is nearly full.

    In steps of an eighth, so that tasks of similar size share their compiled programs.
    """
    size = min(most, _power_of_two(rows))
    return min(mesh_lib.round_up(-(-rows // -(-rows // size)), max(size // 8, 1)), most)


def max_own_of(longest: int) -> int:
    """`Pass.max_own` for prompts of at most so many own ids."""
    return next((size for size in _REACHES if size >= longest), 0)


def kept_rows(prompts: int, devices: int) -> int:
    """Rows kept for so many prompts: rounded up, so that tasks of similar size share their compiled programs."""
    step = 128 if prompts <= 1024 else 1024
    return mesh_lib.round_up(mesh_lib.round_up(prompts, step), devices)


def _widened(batch: PromptRows, name: str, width: int) -> np.ndarray:
    """A field of a batch, with room for `width` prompts in a row."""
    part = getattr(batch, name)
    if name not in ("ends", "ids"):
        return part
    return np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1 if name == "ids" else 0)


def abstract_arguments(
    made: Pass, *, dtype: DTypeLike, models: int, rank: int, targets: Sequence[str], rows: int, row_length: int
) -> tuple:
    """The arguments (base, adapters, rows, prefix) of `forward` behind `made`, as shapes, dtypes and shardings.

    Args:
      made: what the pass is made for.
      dtype: of the base.
      models, rank, targets: adapters that run at once.
      rows, row_length: B and S, packed rows in a batch (a multiple of the fsdp axis), and their positions.
    """
    arch, mesh = made.arch, made.mesh
    widths = dict.fromkeys(("tokens", "positions", "segments"), row_length)
    widths |= dict.fromkeys(("ends", "ids"), _PROMPTS_PER_ROW)
    batch = {name: mesh_lib.abstract(mesh, (rows, width), ("rows", None), jnp.int32) for name, width in widths.items()}
    base, adapters = abstract_base(arch, mesh, dtype), abstract_adapters(arch, mesh, models, rank, targets)
    return base, adapters, batch, abstract_prefix(made, dtype, models) if made.prefix else None


def abstract_prefix(made: Pass, dtype: DTypeLike, models: int) -> dict[str, Any]:
    """What `lead_of` returns, as shapes, dtypes and shardings."""
    arch, mesh = made.arch, made.mesh
    shape = (models, arch.layers, made.prefix, arch.kv_heads, arch.head_dim)
    keys = mesh_lib.abstract(mesh, shape, (None, None, None, "kv_heads", None), dtype)
    sums = mesh_lib.abstract(mesh, (models, arch.layers + 2, arch.hidden), (None, None, None), jnp.float32)
    return {"keys_values": SharedPrefix(keys, keys), "sums": sums, "count": mesh_lib.abstract(mesh, (), (), jnp.int32)}


def abstract_kept(arch: Architecture, mesh: jax.sharding.Mesh, models: int, prompts: int) -> jax.ShapeDtypeStruct:
    """The states that `keep_states` keeps of so many prompts, as shape, dtype and sharding."""
    shape = (models, arch.layers + 2, kept_rows(prompts, mesh.shape["fsdp"]), arch.hidden)
    return mesh_lib.abstract(mesh, shape, KEPT, jnp.float32)
