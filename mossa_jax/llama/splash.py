"""Splash attention (Pallas) for TPU: packed rows by segment ids, grouped heads, sliding windows, no mask in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

# Rows are padded to a multiple of the lanes of the TPU's vector unit.
_LANES = 128
# Queries and keys per block: the largest that divides a row.
_BLOCKS = (512, 256, _LANES)


def splash(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    segments: Int[Array, "B S"],
    mesh: jax.sharding.Mesh,
    window: int,
    interpret: bool = False,
) -> Float[Array, "B S H d"]:
    """Computes `attention.attention` for packed rows.

    Args:
      q: [B, S, H, d].
      k, v: [B, S, K, d]; K is a multiple of the mesh's tensor axis.
      segments: [B, S] as in `attention.Segments`.
      mesh: rows over `fsdp`, heads over `tensor`; every device runs the kernel on its own part.
      window: as in `attention.attention`.
      interpret: run the kernel's body in plain JAX, on any platform, for tests.

    Returns:
      [B, S, H, d] in the dtype of `v`.
    """
    heads = P("fsdp", None, "tensor", None)
    # A Pallas kernel is opaque to the partitioner, which would gather its arguments. Under `shard_map` each device runs
    # it on its own rows and heads, and no device needs another's.
    body = partial(_attend_on_device, window=window, interpret=interpret)
    return jax.shard_map(
        body, mesh=mesh, in_specs=(heads, heads, heads, P("fsdp", None)), out_specs=heads, check_vma=False
    )(q, k, v, segments)


def _attend_on_device(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    segments: Int[Array, "B S"],
    *,
    window: int,
    interpret: bool,
) -> Float[Array, "B S H d"]:
    """Runs the kernel over one device's rows and heads; rows are padded to whole lanes, with segment 0."""
    length = q.shape[1]
    padded = -(-length // _LANES) * _LANES
    extra = ((0, 0), (0, padded - length))
    segments = jnp.pad(segments, extra)  # [B, padded]
    # The kernel takes heads before positions, [B, H, padded, d], and does not scale the scores.
    q, k, v = (jnp.pad(x, (*extra, (0, 0), (0, 0))).swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    kernel = _kernel(q.shape[1], padded, window, interpret)
    # The kernel takes one row, so rows are its batch axis.
    out = jax.vmap(kernel)(q, k, v, library.SegmentIds(q=segments, kv=segments))  # [B, H, padded, d]
    return out.swapaxes(1, 2)[:, :length].astype(v.dtype)


def _kernel(heads: int, length: int, window: int, interpret: bool) -> Callable[..., jax.Array]:
    """Builds the kernel for one row: [heads, length, d] -> [heads, length, d], causal and with a window if not 0."""
    shape = (length, length)
    # Causal masks that are computed inside the kernel, block by block. A query sees `window - 1` keys before
    # itself and none behind.
    mask = library.LocalMask(shape, (window - 1, 0), 0) if window else library.CausalMask(shape)
    block = next(size for size in _BLOCKS if length % size == 0)
    # One size for the forward pass and both passes backward (dkv and dq).
    sizes = library.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return library.make_splash_mha(
        mask=library.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        # The kernel already runs on one device's part.
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
