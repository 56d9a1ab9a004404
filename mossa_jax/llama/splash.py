"""Splash attention (Pallas) for TPU: packed rows by segment ids, grouped heads, sliding windows, no mask in memory."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library
from jax.sharding import PartitionSpec as P

_LANES = 128
_BLOCKS = (512, 256, _LANES)


def splash(q, k, v, segments, mesh: jax.sharding.Mesh, window: int, interpret: bool = False) -> jax.Array:
    """As `attention.attention` for packed rows.

    Args:
      q, k, v, segments, window: as there; K a multiple of the mesh's tensor axis.
      mesh: rows over `fsdp`, heads over `tensor`; every device runs the kernel on its own part.
      interpret: run the kernel's body in plain JAX, on any platform, for tests.
    """
    heads = P("fsdp", None, "tensor", None)
    body = partial(_one_device, window=window, interpret=interpret)
    return jax.shard_map(
        body, mesh=mesh, in_specs=(heads, heads, heads, P("fsdp", None)), out_specs=heads, check_vma=False
    )(q, k, v, segments)


def _one_device(q, k, v, segments, *, window: int, interpret: bool):
    """The kernel over one device's rows and heads; rows are padded to whole lanes (with segment 0)."""
    length = q.shape[1]
    padded = -(-length // _LANES) * _LANES
    extra = ((0, 0), (0, padded - length))
    segments = jnp.pad(segments, extra)
    # The kernel wants heads before positions and does not scale the scores.
    q, k, v = (jnp.pad(x, (*extra, (0, 0), (0, 0))).swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    kernel = _kernel(q.shape[1], padded, window, interpret)
    out = jax.vmap(kernel)(q, k, v, library.SegmentIds(q=segments, kv=segments))
    return out.swapaxes(1, 2)[:, :length].astype(v.dtype)


def _kernel(heads: int, length: int, window: int, interpret: bool):
    shape = (length, length)
    mask = library.LocalMask(shape, (window - 1, 0), 0) if window else library.CausalMask(shape)
    block = next(size for size in _BLOCKS if length % size == 0)
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
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
