"""Run by test_meshes.py in a process of its own: cudnn's body on eight devices, against the XLA body on one.

Prints as JSON, for each mesh and number of rows, how far apart outputs and gradients are.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.config import Mesh
from mossa_jax.devices.mesh import make_mesh
from mossa_jax.llama.attention import Segments, attention
from mossa_jax.llama.cudnn import cudnn

PREFIX, LENGTH, MODELS = 20, 100, 4


def arrays(rows: int):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(MODELS, rows, LENGTH, 4, 16))
    k, v = rng.normal(size=(2, MODELS, rows, LENGTH, 2, 16))
    segments = np.sort(rng.integers(1, 5, (MODELS, rows, LENGTH)), axis=-1)
    segments[..., :PREFIX] = -1
    return [jnp.asarray(x, jnp.float32) for x in (q, k, v)] + [jnp.asarray(segments, jnp.int32)]


def results(body, q, k, v, segments):
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)
    run = jax.vmap(body, spmd_axis_name="adapter")
    loss = lambda q, k, v: jnp.sum(weights * run(q, k, v, segments))  # noqa: E731
    return [run(q, k, v, segments), *jax.grad(loss, argnums=(0, 1, 2))(q, k, v)]


far = {}
for sizes, rows in [((2, 2, 2), 4), ((1, 4, 2), 1), ((4, 1, 2), 3)]:
    mesh = make_mesh(Mesh(*sizes))
    given = arrays(rows)
    ours = jax.jit(lambda *x, mesh=mesh: results(lambda *y: cudnn(*y, mesh, 0, implementation="xla"), *x))(*given)
    alone = jax.jit(lambda *x: results(lambda q, k, v, s: attention(q, k, v, Segments(s, prefix_columns=PREFIX)), *x))
    far[f"{sizes} {rows}"] = [
        float(jnp.abs(one - other).max() / jnp.abs(other).max())
        for one, other in zip(jax.device_get(ours), jax.device_get(alone(*given)), strict=True)
    ]
print(json.dumps(far))
