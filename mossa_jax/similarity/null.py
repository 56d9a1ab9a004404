"""The permutation null of CKA: the rows of one side are re-paired at random, nothing is forwarded again."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Three bfloat16 passes on a TPU: errors of 1e-6 cannot move a p-value.
PRECISE = lax.Precision.HIGH


def draw_ranks(valid: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Random ranks of the valid rows, one independent permutation a line; padding does not change the draw.

    Returns:
        [count, n] int32; -1 in slots that are not valid.
    """
    ranks = np.full((count, valid.shape[0]), -1, np.int32)
    rows = int(valid.sum())
    if count:
        lines = np.tile(np.arange(rows, dtype=np.int32), (count, 1))
        ranks[:, valid] = np.random.default_rng(seed).permuted(lines, axis=1)
    return ranks


def permutations(ranks: jax.Array, kept: jax.Array) -> jax.Array:
    """Turns ranks into permutations of the kept slots; other slots stay among themselves.

    Args:
        ranks: [R, n] int32.
        kept: [n] bool.

    Returns:
        [R, n] int32: line p pairs slot i with slot `p[i]`.
    """
    if ranks.shape[0] == 0:
        return jnp.zeros(ranks.shape, jnp.int32)
    home = jnp.argsort(~kept, stable=True)
    drawn = jnp.argsort(jnp.where(kept, ranks, jnp.iinfo(jnp.int32).max), axis=1, stable=True)
    return jnp.zeros_like(drawn).at[:, home].set(drawn).astype(jnp.int32)


def permuted_products(
    x: jax.Array, r: jax.Array, permutations: jax.Array, pairs: Sequence[tuple[int, int]]
) -> jax.Array:
    """`<K_a, P K_b P^T> = |X_a^T P X_b|^2` and `r_a . P r_b` for each permutation and pair.

    Args:
        x: [M, n, D] float32 centred rows.
        r: [M, n] their squared norms.
        permutations: [R, n] int32.
        pairs: pairs (a, b) of models.

    Returns:
        [P, 2, R] float32.
    """
    if permutations.shape[0] == 0:
        return jnp.zeros((len(pairs), 2, 0), jnp.float32)

    def step(_: None, permutation: jax.Array) -> tuple[None, jax.Array]:
        values = []
        for a, b in pairs:
            product = jnp.einsum("id,ie->de", x[a], x[b][permutation], precision=PRECISE)
            values.append(jnp.stack([jnp.square(product).sum(0).sum(), r[a] @ r[b][permutation]]))
        return None, jnp.stack(values)

    return jnp.moveaxis(lax.scan(step, None, permutations)[1], 0, 2)
