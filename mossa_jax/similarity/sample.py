"""A few rows of kept states on the host, in fewer dimensions where states are wide.

A random orthonormal basis keeps squared distances up to a relative error of `sqrt(2 (D - P) / (D (P + 2)))`, whatever
the states: 3.8 % for P = 1,024 of D = 4,096, half of which in distances.

Shape letters: M models, K layers, n rows, s sampled rows, D width, P dimensions.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from mossa_jax.similarity import layerwise
from mossa_jax.similarity.checks import mesh_of
from mossa_jax.similarity.gram import EXACT


def sample_states(
    states: Float[Array, "M K n D"], rows: Int[np.ndarray, " s"], models: int, dimensions: int, seed: int
) -> Float[np.ndarray, "models K s P"]:
    """Brings some rows of the first models to the host, P = min(D, dimensions) values each.

    Args:
      states: [M, K, n, D] float32, possibly sharded on a mesh.
      rows: the rows to take; the same number at every call, so that there is one program.
      models: how many of the models.
      dimensions: the most values per row; wider states are projected on a basis drawn from `seed`, scaled so that
        distances keep their size.
      seed: of the basis; the same for all rows that are to be compared.

    Returns:
      float32; rows that are not finite stay so.
    """
    width = states.shape[-1]
    basis = random_basis(width, dimensions, seed) if dimensions < width else None
    return np.asarray(_take(states, np.asarray(rows, np.int32), basis, models=models, mesh=mesh_of(states)))


@functools.lru_cache(maxsize=2)
def random_basis(width: int, dimensions: int, seed: int) -> Float[np.ndarray, "D P"]:
    """Draws P orthonormal directions of D, scaled by `sqrt(D / P)`: float32."""
    directions, _ = np.linalg.qr(np.random.default_rng((seed, 63)).normal(size=(width, dimensions)))
    return (directions * np.sqrt(width / dimensions)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("models", "mesh"))
def _take(
    states: Float[Array, "M K n D"],
    rows: Int[Array, " s"],
    basis: Float[Array, "D P"] | None,
    *,
    models: int,
    mesh: Mesh | None,
) -> Float[Array, "models K s P"]:
    sample = jnp.take(states[:models], rows, axis=2).astype(jnp.float32)  # [models, K, s, D]
    if basis is not None:
        sample = jnp.einsum("mksd,dp->mksp", sample, basis, precision=EXACT)  # [models, K, s, P]
    return layerwise.replicate(sample, mesh)
