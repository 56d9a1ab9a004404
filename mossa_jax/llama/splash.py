"""Splash attention (Pallas) for TPU: packed rows by segment ids, grouped heads, sliding windows, no mask in memory.

The kernel knows no key that several segments see. Rows with a shared prefix therefore take two kernels, one over the
row's own keys and one over the prefix, and their outputs are merged by the logarithms of their normalisers. The library
does not differentiate these, so gradients of such rows come from `blockwise`.

Shape letters: B rows, S queries of a row, T keys of a row (the queries are the last S of T columns), H heads,
K key/value heads, d head width, P prefix columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library
from jaxtyping import Array, Float, Int

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama import blockwise
from mossa_jax.llama.blockwise import Spans

# Rows are padded to a multiple of the lanes of the TPU's vector unit.
_LANES = 128
# Queries and keys per block: the largest that divides a row.
_BLOCKS = (512, 256, _LANES)
# Segments of the prefix's keys: those that queries see, and those that fill up its columns. Padding's queries see none.
_SEEN, _HIDDEN, _PADDING = 1, 2, 3


def splash(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B T K d"],
    v: Float[Array, "B T K d"],
    segments: Int[Array, "B T"],
    mesh: jax.sharding.Mesh | None,
    spans: Spans,
    interpret: bool = False,
) -> Float[Array, "B S H d"]:
    """Computes `attention.attention` for packed rows.

    Args:
      q: [B, S, H, d].
      k, v: [B, T, K, d]; K is a multiple of the mesh's tensor axis.
      segments: [B, T] as in `attention.Segments`.
      mesh: rows over `fsdp` if they divide, heads over `tensor`; every device runs the kernel on its own part. None for
        one device.
      spans: the columns of the shared prefix, how far back a query sees, and the cap of scores.
      interpret: run the kernel's body in plain JAX, on any platform, for tests.

    Returns:
      [B, S, H, d] in the dtype of `v`.
    """
    body: Callable[..., jax.Array]
    if spans.prefix_columns:
        body = partial(_attend_with_prefix, spans, interpret)
    else:
        body = partial(_attend_on_device, spans, interpret)
    if mesh is None:
        return body(q, k, v, segments)
    by_head, by_row = ("rows", None, "heads", None), ("rows", None)
    placed = mesh_lib.specs(mesh, (q.shape, by_head), (k.shape, by_head), (v.shape, by_head), (segments.shape, by_row))
    # A Pallas kernel is opaque to the partitioner, which would gather its arguments. Under `shard_map` each device runs
    # it on its own rows and heads, and no device needs another's.
    return jax.shard_map(body, mesh=mesh, in_specs=placed, out_specs=placed[0], check_vma=False)(q, k, v, segments)


def _attend_on_device(
    spans: Spans, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> Float[Array, "B S H d"]:
    """Runs the kernel over one device's rows and heads."""
    length = q.shape[1]
    # A window as long as the row hides nothing.
    window = spans.window if spans.window < length else 0
    padded = mesh_lib.round_up(length, _LANES)
    kernel = _kernel(_causal_mask(padded, window), q.shape[2], interpret, spans.cap)
    ids = _pad(segments, padded)
    # The kernel takes one row, so rows are its batch axis.
    out = jax.vmap(kernel)(*_heads_first(q, k, v, padded, padded), library.SegmentIds(q=ids, kv=ids))
    return out.swapaxes(1, 2)[:, :length].astype(v.dtype)  # [B, H, padded, d] -> [B, S, H, d]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_with_prefix(
    spans: Spans, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> Float[Array, "B S H d"]:
    """Runs one kernel over the rows' own keys and one over the prefix, and merges what they say."""
    return _merge(spans, interpret, q, k, v, segments)[0]


def _merge(
    spans: Spans, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> tuple[Float[Array, "B S H d"], Float[Array, "B S H"]]:
    """Returns the output, and the logarithm of each query's normaliser."""
    queries, columns, prefix = q.shape[1], k.shape[1], spans.prefix_columns
    own, before = slice(columns - queries, None), slice(0, prefix)
    padded, padded_prefix = mesh_lib.round_up(queries, _LANES), mesh_lib.round_up(prefix, _LANES)
    # Whatever stands before the first query is prefix, or fills it up: no query's own key.
    window = spans.window if spans.window < queries else 0
    own_ids = _pad(segments[:, own], padded)  # [B, padded]
    own_kernel = _kernel(_causal_mask(padded, window), q.shape[2], interpret, spans.cap, save_residuals=True)
    own_out, (own_log,) = jax.vmap(own_kernel)(
        *_heads_first(q, k[:, own], v[:, own], padded, padded), library.SegmentIds(q=own_ids, kv=own_ids)
    )
    # Whether a query sees the prefix: the prefix's own queries see it through the other kernel, padding never.
    sees = own_ids > 0  # [B, padded]
    query_ids = jnp.where(sees, _SEEN, _PADDING)
    key_ids = _pad(jnp.where(segments[:, before] == -1, _SEEN, _HIDDEN), padded_prefix, _HIDDEN)
    whole = library.FullMask((padded, padded_prefix))
    prefix_kernel = _kernel(whole, q.shape[2], interpret, spans.cap, save_residuals=True)
    prefix_out, (prefix_log,) = jax.vmap(prefix_kernel)(
        *_heads_first(q, k[:, before], v[:, before], padded, padded_prefix),
        library.SegmentIds(q=query_ids, kv=key_ids),
    )
    # [B, H, padded]. Where a query sees no key of the prefix, what the kernel says of it has no meaning.
    any_key = jnp.any(key_ids == _SEEN, axis=1)[:, None]
    prefix_log = jnp.where((sees & any_key)[:, None], prefix_log, -jnp.inf)
    log_normaliser = jnp.logaddexp(own_log, prefix_log)
    own_share, prefix_share = (jnp.exp(part - log_normaliser)[..., None] for part in (own_log, prefix_log))
    merged = own_share * own_out + jnp.where(prefix_share > 0, prefix_share * prefix_out, 0)  # [B, H, padded, d]
    return merged.swapaxes(1, 2)[:, :queries].astype(v.dtype), log_normaliser.swapaxes(1, 2)[:, :queries]


def _keep(
    spans: Spans, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> tuple[jax.Array, blockwise.Residuals]:
    out, log_normaliser = _merge(spans, interpret, q, k, v, segments)
    return out, (q, k, v, segments, out, log_normaliser)


def _give_back(
    spans: Spans, interpret: bool, kept: blockwise.Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    return blockwise.gradients(spans, kept, gradient)


_attend_with_prefix.defvjp(_keep, _give_back)


def _pad(x: Int[Array, "B n"], length: int, value: int = 0) -> Int[Array, "B length"]:
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1])), constant_values=value)


def _heads_first(
    q: jax.Array, k: jax.Array, v: jax.Array, queries: int, keys: int
) -> tuple[Float[Array, "B H queries d"], Float[Array, "B K keys d"], Float[Array, "B K keys d"]]:
    """Returns what the kernel takes: heads before positions, whole lanes of positions, and scaled queries."""

    def lay_out(x: jax.Array, length: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

    return lay_out(q * q.shape[-1] ** -0.5, queries), lay_out(k, keys), lay_out(v, keys)


def _causal_mask(length: int, window: int) -> Any:
    """Returns a causal mask that is computed inside the kernel, block by block, with a window if that is not 0."""
    shape = (length, length)
    # A query sees `window - 1` keys before itself and none behind.
    return library.LocalMask(shape, (window - 1, 0), 0) if window else library.CausalMask(shape)


def _kernel(mask: Any, heads: int, interpret: bool, cap: float, save_residuals: bool = False) -> Callable[..., Any]:
    """Builds the kernel for one row, [H, queries, d] -> [H, queries, d], which also returns residuals if asked to."""
    queries, keys = (next(size for size in _BLOCKS if length % size == 0) for length in mask.shape)
    # The same sizes for the forward pass and both passes backward (dkv and dq).
    sizes = library.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    return library.make_splash_mha(
        mask=library.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        # The kernel already runs on one device's part.
        head_shards=1,
        q_seq_shards=1,
        save_residuals=save_residuals,
        attn_logits_soft_cap=cap or None,
        interpret=interpret,
    )
