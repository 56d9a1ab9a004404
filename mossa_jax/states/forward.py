"""The forward pass of several models at once that hands on what similarity needs of each layer, and nothing else.

States are consumed inside the scan over layers, so no [B, S, D] state outlives its layer and nothing touches the disk.
There is no language-model head and there are no logits. Work that would be done twice is done once:

- ids that all prompts begin with are run once per model, and every prompt reuses their keys and values;
- blocks below the first one that any adapter changes are run once for all models;
- the last block is run for the prompts' last tokens alone if nothing else is read from it.

Shape letters: M models, L layers, B packed rows, S positions, P prompts per row, D hidden, K key/value heads, d head
width, R = B P (or B S) rows of a similarity, T columns of the shared prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import Adapters, abstract_adapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.layers import SharedPrefix
from mossa_jax.llama.model import Llama, embed, merge, pin_rows, windowed_blocks
from mossa_jax.llama.placement import abstract_base

POOLS = ("last", "mean")
"""Poolings whose rows can be kept. A third one, `all`, makes every token a row; these are streamed."""

# Prompts per row of an abstract batch: it decides nothing but the width of two small index arrays.
_ABSTRACT_PROMPTS_PER_ROW = 16

State = TypeVar("State")
Layer = int | Int[Array, ""]
"""Index of a layer name: 0 is the embedding, l the output of block l, L + 1 the final norm."""

Consume = Callable[[State, Layer, Float[Array, " ..."], bool], State]
"""(state, layer, x, every_position) -> state: takes the states of one layer.

`x` is [M, B, S, D], or [1, B, S, D] where it is the same for all models; without `every_position` it is [M, B, P, D],
the prompts' last tokens alone.
"""


@dataclass(frozen=True)
class PassSpec:
    """Everything besides the shapes of arguments that a compiled pass depends on: its static argument.

    Attributes:
      arch: the base model's architecture.
      pool: one of `POOLS`, or `all`.
      prefix_length: T, columns for the ids that all prompts share; 0 if they share none.
      max_own: no prompt has more ids of its own than this; 0 if that is not known.
      first_changed: the first block that any adapter changes, at most L - 1.
      mesh: the mesh of rows and weights.
    """

    arch: Architecture
    pool: str
    prefix_length: int
    max_own: int
    first_changed: int
    mesh: jax.sharding.Mesh


class RowBatch(NamedTuple):
    """One batch of packed prompts on the devices, rows over `fsdp`: the fields of `tokens.rows.PromptRows`.

    Attributes:
      tokens: [B, S] int32.
      segments: [B, S] int32, 1, 2, ... per prompt, 0 on padding.
      positions: [B, S] int32, restarting in every segment, behind the shared prefix.
      ends: [B, P] int32, the column of each prompt's last token.
      ids: [B, P] int32, the prompt's index; -1 where there is none.
    """

    tokens: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    ends: Int[Array, "B P"]
    ids: Int[Array, "B P"]


class PrefixStates(NamedTuple):
    """Keys, values and sums of states of the ids that all prompts begin with: all that a prompt needs of them.

    Attributes:
      keys_values: keys and values, [M, L, T, K, d] each, in the base's dtype.
      sums: [M, L + 2, D] float32, the sum of their states at each layer.
      length: [] int32, how many of the T columns hold an id.
    """

    keys_values: SharedPrefix
    sums: Float[Array, "M L+2 D"]
    length: Int[Array, ""]


def pool_prompts(
    x: Float[Array, "B S D"],
    batch: RowBatch,
    pool: str,
    prefix: tuple[Float[Array, " D"], Int[Array, ""]] | None = None,
) -> Float[Array, "B P D"]:
    """Pools the states of each prompt.

    Args:
      x: [B, S, D], the states of the prompts' own ids.
      batch: the rows that hold the prompts.
      pool: `last` or `mean`.
      prefix: for `mean`, the sum [D] of the states of the shared ids, and how many these are.

    Returns:
      [B, P, D] float32.
    """
    if pool == "last":
        # The last token is always one of the prompt's own, so the shared ids play no part here: [B, S, D] -> [B, P, D].
        return jnp.take_along_axis(x, batch.ends[..., None], axis=1).astype(jnp.float32)
    # A mean over tokens is a product with a matrix of zeros and ones. It stays inside its row, and so on the device
    # that holds the row, while a sum by index would be a scatter. The k-th prompt of a row is its segment k.
    prompts = jnp.arange(1, batch.ends.shape[1] + 1)
    # [B, P, S]: 1 where a position belongs to a prompt.
    inside = (batch.segments[:, None, :] == prompts[:, None]).astype(jnp.float32)
    # [B, P, D]. Highest precision: by default a TPU would round the float32 states to bfloat16 before it multiplies.
    sums = jnp.einsum("bps,bsd->bpd", inside, x.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    # The states of the shared ids are the same in all prompts, so their sum [D] is added once to each of them.
    sums, count = (sums, 0) if prefix is None else (sums + prefix[0], prefix[1])
    # A slot without a prompt is divided by one, not by zero; its id is -1 and it is dropped.
    return sums / jnp.maximum(inside.sum(-1, keepdims=True) + count, 1)


def _at(tree: Any, index: Layer, axis: int = 0) -> Any:
    """Returns the slice at `index` of one axis of every leaf, without that axis."""
    # The index may be traced: in a scan over layers it is the number of the turn.
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, axis, keepdims=False), tree)


def run_models(
    spec: PassSpec,
    model: Llama,
    adapters: Adapters,
    batch: RowBatch,
    prefix: PrefixStates | None,
    consume: Consume[State],
    state: State,
) -> State:
    """Runs M models over a batch and hands the states of each layer to `consume`.

    Args:
      spec: the static part of the pass.
      model: the merged base.
      adapters: stacked [M, L, ...] on the devices.
      batch: the packed prompts, without the ids that they share.
      prefix: from `read_prefix`; None if `spec.prefix_length` is 0.
      consume: called once per layer name, in order.
      state: the first argument of its first call.

    Returns:
      The state that the last call returned.
    """
    arch, segments = spec.arch, batch.segments
    if prefix is not None:
        # Keys of the prefix stand at the head of each row, segment -1: every prompt of the row sees them.
        shared = jnp.where(jnp.arange(spec.prefix_length) < prefix.length, -1, 0).astype(segments.dtype)
        # [B, T + S]
        segments = jnp.concatenate([jnp.broadcast_to(shared, (len(segments), spec.prefix_length)), segments], axis=1)
    visible = Segments(segments, spec.mesh, spec.prefix_length, spec.max_own)
    x, table = embed(model, arch, batch.tokens, batch.positions, visible)  # [B, S, D]
    # The embedding is the same for all models: [1, B, S, D].
    state = consume(state, 0, x[None], True)
    windows = windowed_blocks(arch)
    windowed = None if windows is None else jnp.asarray(windows)  # [L] bool
    cache = None if prefix is None else prefix.keys_values  # two of [M, L, T, K, d]

    # One block of one model. Its weights are taken by index out of the stack [L, ...]. Two stacks, one for each scan
    # below, would be copies of the weights.
    def block(x: jax.Array, lora: Any, cache: Any, layer: Layer, ends: jax.Array | None = None) -> jax.Array:
        window = None if windowed is None else windowed[layer]
        x, _ = _at(model.blocks, layer)(x, lora, table, visible, window, past=cache, query_columns=ends)
        return pin_rows(x, visible)

    # Below the first adapter all models have the same states [B, S, D], and model 0's keys of the prefix serve all.
    def shared_block(carry: tuple[jax.Array, State], layer: jax.Array) -> tuple[tuple[jax.Array, State], None]:
        x, state = carry
        x = block(x, {}, None if cache is None else _at(jax.tree.map(lambda leaf: leaf[0], cache), layer), layer)
        return (x, consume(state, layer + 1, x[None], True)), None

    # From there on each model has its own [M, B, S, D].
    def own_block(
        carry: tuple[jax.Array, State], layer: Layer, ends: jax.Array | None = None
    ) -> tuple[tuple[jax.Array, State], None]:
        x, state = carry
        # The base has no model axis, so its products run over the rows of all models at once. `spmd_axis_name` puts the
        # models of the shardings that `pin_rows` asks for on the adapter axis.
        each = jax.vmap(
            partial(block, layer=layer, ends=ends),
            in_axes=(0, 0, None if cache is None else 0),
            spmd_axis_name="adapter",
        )
        x = each(x, _at(adapters, layer, 1), None if cache is None else _at(cache, layer, 1))
        return (x, consume(state, layer + 1, x, ends is None)), None

    # Scans rather than unrolled loops: one block is compiled for all layers, and a layer's states are freed in the next
    # turn. The state of `consume` is a carry, so that XLA updates it in place.
    models = len(next(iter(jax.tree.leaves(adapters))))
    (x, state), _ = jax.lax.scan(shared_block, (x, state), jnp.arange(spec.first_changed))
    x = jnp.broadcast_to(x, (models, *x.shape))
    (x, state), _ = jax.lax.scan(own_block, (x, state), jnp.arange(spec.first_changed, arch.layers - 1))
    # The last block stands outside the scan: pooled by `last`, it has queries at the prompts' ends only, [M, B, P, D].
    ends = batch.ends if spec.pool == "last" else None
    (x, state), _ = own_block((x, state), arch.layers - 1, ends)
    # [M, B, S, D], or [M, B, P, D] with the last tokens alone.
    return consume(state, arch.layers + 1, model.final_norm(x), ends is None)


@partial(jax.jit, static_argnames=("arch", "mesh"))
def read_prefix(
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    base: nnx.State,
    adapters: Adapters,
    tokens: Int[Array, "1 T"],
    length: Int[Array, ""],
) -> PrefixStates:
    """Runs M models over the ids that all prompts begin with, once.

    Args:
      arch: the base model's architecture.
      mesh: the mesh of the weights.
      base: the base's state.
      adapters: stacked [M, L, ...] on the devices.
      tokens: [1, T] int32, padded on the right.
      length: [] int32, how many of them are ids.

    Returns:
      Keys and values [M, L, T, K, d] in the base's dtype, and sums of states [M, L + 2, D] float32.
    """
    model, columns = merge(arch, base), jnp.arange(tokens.shape[1])
    # The prefix is padded to T columns and its length is an array, so that prefixes of different
    # lengths share a program.
    inside = columns < length  # [T]
    # One row, one segment; padding on the right is segment 0 and is seen by no id.
    visible = Segments(inside[None].astype(jnp.int32), mesh)
    x, table = embed(model, arch, tokens, columns[None], visible)  # [1, T, D]

    # In float32, as in `pool_prompts`, whose sums these are added to.
    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(inside[:, None], x[0].astype(jnp.float32), 0), axis=0)  # [D]

    def one_model(adapter: Any) -> tuple[SharedPrefix, jax.Array]:
        def body(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
            block, lora, windowed = layer
            x, (keys, values) = block(x, lora, table, visible, windowed)
            # Without the axis of rows, of which there is one: [T, K, d] twice, and [D]. The scan
            # stacks them over layers.
            return x, (SharedPrefix(keys[0], values[0]), total(x))

        last, (keys_values, sums) = jax.lax.scan(body, x, (model.blocks, adapter, windowed_blocks(arch)))
        # [L + 2, D]
        return keys_values, jnp.concatenate([total(x)[None], sums, total(model.final_norm(last))[None]])

    # Two of [M, L, T, K, d], and [M, L + 2, D].
    keys_values, sums = jax.vmap(one_model, spmd_axis_name="adapter")(adapters)
    return PrefixStates(keys_values, sums, length)


def similarity_rows(
    spec: PassSpec,
    batch: RowBatch,
    prefix: PrefixStates | None,
    layer: Layer,
    x: Float[Array, " ..."],
    every_position: bool,
) -> tuple[Float[Array, "M R D"], Bool[Array, " R"]]:
    """Turns the states of one layer into the rows that similarity compares.

    A row is a prompt (R = B P) or, with pool `all`, a token (R = B S).

    Args:
      spec: the static part of the pass.
      batch: as in `run_models`.
      prefix: as in `run_models`.
      layer: index of the layer name, as `Consume` receives it.
      x: [M or 1, B, S, D]; [M, B, P, D] without `every_position`.
      every_position: whether `x` has all S positions, or the prompts' last tokens alone.

    Returns:
      [M or 1, R, D] float32, and [R] bool: which of them hold a prompt or a token.
    """
    if spec.pool == "all":
        # Every token is a row: [M or 1, B, S, D] -> [M or 1, B * S, D].
        return x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1]), (batch.segments > 0).reshape(-1)
    if every_position and spec.pool == "mean" and prefix is not None:
        # Below the first adapter there is one set of states for all models, and model 0's sum goes with it.
        sums = jax.lax.dynamic_index_in_dim(prefix.sums, layer, 1, keepdims=False)[: len(x)]  # [M or 1, D]
        x = jax.vmap(lambda x, total: pool_prompts(x, batch, spec.pool, (total, prefix.length)))(x, sums)
    elif every_position:
        x = jax.vmap(lambda x: pool_prompts(x, batch, spec.pool))(x)
    # [M or 1, B, P, D] -> [M or 1, B * P, D]. By now `x` is pooled; with the last tokens alone it came so.
    return x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1]), (batch.ids >= 0).reshape(-1)


def abstract_arguments(
    spec: PassSpec, *, dtype: DTypeLike, models: int, rank: int, targets: Sequence[str], rows: int, row_length: int
) -> tuple[nnx.State, Any, RowBatch, PrefixStates | None]:
    """Describes the arguments (base, adapters, batch, prefix) of a pass by shapes, dtypes and shardings.

    Args:
      spec: the static part of the pass.
      dtype: the base's.
      models: M, adapters that run at once.
      rank: r of the adapters.
      targets: projections that the adapters update.
      rows: B, a multiple of the `fsdp` axis.
      row_length: S.
    """
    arch, mesh = spec.arch, spec.mesh

    def indices(width: int) -> jax.ShapeDtypeStruct:
        return mesh_lib.abstract(mesh, (rows, width), ("rows", None), jnp.int32)

    positions, prompts = indices(row_length), indices(_ABSTRACT_PROMPTS_PER_ROW)
    batch = RowBatch._make([positions, positions, positions, prompts, prompts])
    base, adapters = abstract_base(arch, mesh, dtype), abstract_adapters(arch, mesh, models, rank, targets)
    return base, adapters, batch, abstract_prefix(spec, dtype, models) if spec.prefix_length else None


def abstract_prefix(spec: PassSpec, dtype: DTypeLike, models: int) -> PrefixStates:
    """Describes the result of `read_prefix` for M = `models` by shapes, dtypes and shardings."""
    arch, mesh = spec.arch, spec.mesh
    shape = (models, arch.layers, spec.prefix_length, arch.kv_heads, arch.head_dim)
    # No axis of rows: every device of `fsdp` needs all of it. Heads are spread over `tensor`, as the
    # projections that compute them are.
    keys = mesh_lib.abstract(mesh, shape, (None, None, None, "kv_heads", None), dtype)
    sums = mesh_lib.abstract(mesh, (models, arch.layers + 2, arch.hidden), (None, None, None), jnp.float32)
    return PrefixStates._make([SharedPrefix._make([keys, keys]), sums, mesh_lib.abstract(mesh, (), (), jnp.int32)])
