"""cuDNN's fused attention for NVIDIA GPUs: packed rows by a dense mask, stacked models, every device on its own heads.

`jax.nn.dot_product_attention` is the door to the kernel. Its batching rule gives cuDNN operands that cuDNN does not
take (JAX pull requests 34920 and 36702), so the axis of stacked models is merged here by hand, before the kernel sees
it: into the heads where all models have one mask, which cuDNN broadcasts over heads, and into the rows otherwise. Its
partitioning would gather heads that are merged so; under `shard_map` no device needs another's.

What cuDNN asks for (cudnn-frontend, `scaled_dot_product_flash_attention.h`): head width a multiple of 8, at most 128
(256 from Hopper on); query heads a multiple of key heads; a mask of (1 or B, 1 or H, S, T), and for gradients an even S
and T. A causal pattern beside a mask counts from the top left corner, which is right for S = T only; a window beside a
mask is not supported by all versions, so windows are part of the mask. The packed layout with offsets, which needs no
mask, has no public door.

Shape letters: B rows, S queries of a row, T keys of a row (the queries are the last S of T columns), H heads,
K key/value heads, d head width, M stacked models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.devices import mesh as mesh_lib

# Rows are padded to whole blocks of the kernel's matrix products.
_MULTIPLE = 64
# The segment of columns that only fill up a row: they see one another, and no token sees them.
_FILLING = -2

Implementation = Literal["cudnn", "xla"]
"""`cudnn`, or `xla` for the same call on a machine without one."""


def takes_heads(head_dim: int) -> bool:
    """Whether the kernel takes heads of this width, on every GPU that it runs on."""
    return head_dim % 8 == 0 and head_dim <= 128


def cudnn(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B T K d"],
    v: Float[Array, "B T K d"],
    segments: Int[Array, "B T"],
    mesh: jax.sharding.Mesh | None,
    window: int,
    implementation: Implementation = "cudnn",
) -> Float[Array, "B S H d"]:
    """Computes `attention.attention` for packed rows, and its gradients.

    Args:
      q: [B, S, H, d].
      k, v: [B, T, K, d]; K is a multiple of the mesh's tensor axis.
      segments: [B, T] as in `attention.Segments`; -1 marks keys that every sequence behind them sees.
      mesh: rows over `fsdp` if they divide, heads over `tensor`; None for one device.
      window: as in `attention.attention`.
      implementation: what computes it.

    Returns:
      [B, S, H, d] in the dtype of `v`.
    """
    body = partial(_attend_on_device, window=window, implementation=implementation)
    if mesh is None:
        return body(q, k, v, segments)
    by_head, by_row = ("rows", None, "heads", None), ("rows", None)
    placed = mesh_lib.specs(mesh, (q.shape, by_head), (k.shape, by_head), (v.shape, by_head), (segments.shape, by_row))
    run = jax.shard_map(body, mesh=mesh, in_specs=placed, out_specs=placed[0], check_vma=False)
    return run(q, k, v, segments)


def _attend_on_device(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B T K d"],
    v: Float[Array, "B T K d"],
    segments: Int[Array, "B T"],
    *,
    window: int,
    implementation: Implementation,
) -> Float[Array, "B S H d"]:
    """Runs the kernel over one device's rows and heads, with rows padded to a multiple of `_MULTIPLE`."""
    queries, columns = q.shape[1], k.shape[1]
    # Behind the queries and their keys, and in front of the keys that have no query, so that queries stay the last.
    behind, front = -queries % _MULTIPLE, -(columns - queries) % _MULTIPLE
    q = jnp.pad(q, ((0, 0), (0, behind), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (front, behind), (0, 0), (0, 0))) for x in (k, v))
    segments = jnp.pad(segments, ((0, 0), (front, behind)), constant_values=_FILLING)
    mask = _mask(segments, q.shape[1], window)[:, None]  # [B, 1, S, T], one for all heads
    # Blocks above the diagonal are not computed.
    kernel = _kernel(is_causal=q.shape[1] == k.shape[1], implementation=implementation)
    return kernel(q, k, v, mask)[:, :queries]


def _mask(segments: Int[Array, "B T"], queries: int, window: int) -> Bool[Array, "B S T"]:
    """Returns which keys each of the last `queries` columns sees: its own segment up to itself, and shared keys."""
    columns = segments.shape[1]
    distance = jnp.arange(columns - queries, columns)[:, None] - jnp.arange(columns)
    near = (distance >= 0) & (distance < window) if window else distance >= 0  # [S, T]
    own, keys = segments[:, columns - queries :, None], segments[:, None, :]  # [B, S, 1] and [B, 1, T]
    # Padding (0) does not see the shared keys.
    return near & ((own == keys) | ((keys == -1) & (own > 0)))


@lru_cache
def _kernel(is_causal: bool, implementation: Implementation) -> Callable[..., jax.Array]:
    """Returns `(q, k, v, mask [B, 1, S, T]) -> [B, S, H, d]` that may be stacked by `vmap` and differentiated.

    The backward pass runs the forward kernel once more: the library keeps what one pass hands to the other to itself.
    """

    def call(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=is_causal, implementation=implementation)

    @custom_vmap
    def forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return call(q, k, v, mask)

    @custom_vmap
    def backward(
        q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, gradient: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        return jax.vjp(lambda q, k, v: call(q, k, v, mask), q, k, v)[1](gradient)

    @forward.def_vmap
    def _(models: int, is_stacked: Sequence[bool], *arrays: jax.Array) -> tuple[jax.Array, bool]:
        return _merge_models(forward, models, is_stacked, arrays), True

    @backward.def_vmap
    def _(models: int, is_stacked: Sequence[bool], *arrays: jax.Array) -> tuple[Any, tuple[bool, bool, bool]]:
        return _merge_models(backward, models, is_stacked, arrays), (True, True, True)

    @jax.custom_vjp
    def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return forward(q, k, v, mask)

    def keep(*arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        return forward(*arrays), arrays

    def give_back(arrays: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
        return *backward(*arrays, gradient), None

    attend.defvjp(keep, give_back)
    return attend


def _merge_models(
    call: Callable[..., Any], models: int, is_stacked: Sequence[bool], arrays: Sequence[jax.Array]
) -> Any:
    """Runs `call(q, k, v, mask, ...)` once for all of M stacked models.

    Args:
      call: a function of arrays [B, S, H, d], but for the mask [B, 1, S, T].
      models: M.
      is_stacked: whether each of `arrays` has a leading axis M.
      arrays: the arguments of `call`; those without that axis are the same for all models.

    Returns:
      What `call` returns, each array with a leading axis M.
    """
    mask = arrays[3]
    stacked = [x if own else jnp.broadcast_to(x, (models, *x.shape)) for x, own in zip(arrays, is_stacked, strict=True)]
    if is_stacked[3]:
        # Models become rows: [M, B, ...] -> [M * B, ...] and back.
        results = call(*(x.reshape(-1, *x.shape[2:]) for x in stacked))
        return jax.tree.map(lambda x: x.reshape(models, -1, *x.shape[1:]), results)

    def as_heads(x: jax.Array) -> jax.Array:
        # [M, B, S, H, d] -> [B, S, M * H, d]. A model's query heads still meet its own key heads.
        return jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, x.shape[-1])

    def as_models(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(*x.shape[:2], models, -1, x.shape[-1]), 2, 0)

    # One mask for all: models become heads, and the mask is not copied.
    heads = [mask if index == 3 else as_heads(x) for index, x in enumerate(stacked)]
    return jax.tree.map(as_models, call(*heads))
