"""Tries the attention kernel of the platform on one device before a run rests on it.

A kernel depends on the driver, on the libraries and on the generation of the device, of which a compiler knows little.
A run that finds out in its last stage has lost hours; this finds out in seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mossa_jax.devices.mesh import single_device
from mossa_jax.llama.attention import Segments, attention, choose_body, unusable
from mossa_jax.llama.blockwise import Spans, blockwise
from mossa_jax.log import log
from mossa_jax.processes import agreement

# Two models with two rows each: 32 columns of shared keys, then sequences of their own, and padding.
_MODELS, _ROWS, _LENGTH, _PREFIX, _HEADS, _KV_HEADS = 2, 2, 256, 32, 4, 2
# Of the largest value; rounding to bfloat16 is 0.004, and a mask that is off by one column changes more than this.
_BOUND = 0.03


def check_kernel(mesh: jax.sharding.Mesh, dtype: DTypeLike, head_dim: int, cap: float = 0.0) -> None:
    """Tries the kernel that attention would take, and puts the XLA body in its place if it fails or is wrong.

    All processes of a run call this together. MOSSA_ATTENTION is taken at its word.

    Args:
      mesh: that the model runs on.
      dtype: of the base.
      head_dim: d, the width of a head.
      cap: of the model's scores, as in `attention`.
    """
    body = choose_body(mesh, dtype, head_dim, cap)
    if cap and body != choose_body(mesh, dtype, head_dim):
        log.info("attention: this model caps its scores, which the platform's kernel cannot; the XLA body is used")
    if body == "xla" or os.environ.get("MOSSA_ATTENTION"):
        return
    reason = _fault(body, jnp.dtype(dtype).name, head_dim, cap)
    # One process that took another body would compile another program than its peers.
    if any(agreement.everywhere(int(bool(reason)))):
        unusable.add(body)
        log.warning(
            "attention: %s does not work here (%s); the XLA body takes its place, slower and with more memory",
            body,
            reason or "on another process",
        )


@lru_cache
def _fault(body: str, dtype: str, head_dim: int, cap: float) -> str:
    """Returns what is wrong with a kernel; "" if its outputs and gradients are those of the XLA body."""
    mesh = single_device()
    rng = np.random.default_rng(0)
    leading = (_MODELS, _ROWS, _LENGTH)
    q, weights = (jnp.asarray(rng.normal(size=(*leading, _HEADS, head_dim)), dtype) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(*leading, _KV_HEADS, head_dim)), dtype) for _ in range(2))
    segments = np.sort(rng.integers(1, 5, leading), axis=-1)
    segments[..., :_PREFIX], segments[:, 0, -_PREFIX:] = -1, 0
    ids = jnp.asarray(segments, jnp.int32)

    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        return attention(q, k, v, Segments(ids, mesh, _PREFIX), cap=cap)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        return blockwise(q, k, v, ids, Spans(128, _LENGTH, _PREFIX, cap))

    counts = (ids != 0)[..., None, None]  # padding means nothing

    def results(attend: Callable[..., jax.Array]) -> list[np.ndarray]:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = jnp.where(counts, jax.vmap(attend, spmd_axis_name="adapter")(q, k, v, ids), 0)
            return jnp.sum((out * weights).astype(jnp.float32)), out

        run = jax.jit(partial(jax.grad(loss, argnums=(0, 1, 2), has_aux=True)))
        gradients, out = run(q, k, v)
        return [np.asarray(x, np.float64) for x in (out, *gradients)]

    try:
        actual = results(kernel)
    except Exception as error:  # the library raises errors of many types, at tracing, compilation or run time
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    for name, one, other in zip(("outputs", "q", "k", "v"), actual, results(plain), strict=True):
        far = float(np.abs(one - other).max() / np.abs(other).max())
        if not far < _BOUND:
            return f"{'its outputs' if name == 'outputs' else f'gradients by {name}'} are off by {far:.2g}"
    return ""
