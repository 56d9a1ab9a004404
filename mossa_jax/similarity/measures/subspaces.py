"""Factorisations of centred rows of one layer, for Procrustes, SVCCA, spectra and the removal of components.

All of them reduce the problem to m = min(n, D) first. QR, SVD and eigenvalues are those of the platform in float32,
and products inside them have full precision too.

Each factorisation takes one matrix. jaxlib 0.10 shares a batch of them out over the threads that run all CPU devices of
a process, and waits in one of these: with several devices, every thread may wait for another one.

Shape letters: M models, n rows, D width, m = min(n, D), P pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mossa_jax.similarity.gram import EXACT


def _at_full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Traces a function under full matmul precision."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        # QR and SVD take no precision of their own, and their inner products would be rounded on a TPU or GPU.
        with jax.default_matmul_precision("highest"):
            return function(*args)

    return run


@_at_full_precision
def cross_singular_values(x: Float[Array, "M n D"], pairs: Sequence[tuple[int, int]]) -> Float[Array, "P m"]:
    """Computes the singular values of `X_a^T X_b` for pairs of centred states.

    With fewer rows than columns, `X^T = Q R` and the values are those of the [n, n] matrix `R_a R_b^T`.

    Returns:
      [P, m] float32.
    """
    # X_a^T X_b = Q_a (R_a R_b^T) Q_b^T with orthonormal Q, so the small matrix has the same non-zero singular values.
    if x.shape[1] < x.shape[2]:
        side = jax.lax.map(lambda rows: jnp.linalg.qr(rows.T, mode="r").T, x)  # [M, n, n]
    else:
        side = x  # [M, n, D]
    # [m, m] for each pair
    products = [jnp.einsum("ni,nj->ij", side[a], side[b], precision=EXACT) for a, b in pairs]
    return jnp.stack([jnp.linalg.svd(p, compute_uv=False) for p in products])


def _left_singular(rows: Float[Array, "n D"]) -> tuple[Float[Array, "n m"], Float[Array, " m"]]:
    """Returns the left singular vectors and the singular values of rows, largest first.

    They are not computed from eigenvectors of the covariance. It squares the ratio of the components, so that one a
    thousandth of the largest would be lost in rounding.
    """
    if rows.shape[0] < rows.shape[1]:
        # Wide rows: X^T = Q R, so X = R^T Q^T, and R^T [n, n] has the left singular vectors of X.
        u, s, _ = jnp.linalg.svd(jnp.linalg.qr(rows.T, mode="r").T, full_matrices=False)
        return u, s
    # Tall rows: X = Q R, and the left singular vectors of R [D, D] are turned back by Q [n, D].
    q, r = jnp.linalg.qr(rows)
    u, s, _ = jnp.linalg.svd(r, full_matrices=False)
    return jnp.einsum("ni,ij->nj", q, u, precision=EXACT), s


class Canonical(NamedTuple):
    """Canonical correlations of pairs of states.

    Attributes:
      correlations: [P, m] float32, largest first, zeros after the last.
      components: [M] int32, how many principal components of each state were kept.
    """

    correlations: Float[Array, "P m"]
    components: Int[Array, " M"]


@_at_full_precision
def canonical_correlations(
    x: Float[Array, "M n D"], pairs: Sequence[tuple[int, int]], share: float, most: Int[Array, ""]
) -> Canonical:
    """Computes canonical correlations between the principal components that hold `share` of each state's variance.

    They are the singular values of `U_a^T U_b`, where U are the left singular vectors that are kept.

    Args:
      x: [M, n, D] float32 centred states.
      pairs: (a, b) indices of models.
      share: of the variance, below 1.
      most: [] int32, the most components of a state that are kept.

    References:
      Raghu et al. 2017, "SVCCA".
    """

    def scores(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        u, s = _left_singular(rows)
        # [m], the variance up to each component; `kept` includes the one that reaches the share.
        held = jnp.cumsum(jnp.square(s))
        kept = jnp.minimum((held < share * held[-1]).sum() + 1, jnp.minimum(most, s.shape[0]))
        # Shapes are static, so components beyond `kept` are set to zero; they add zero singular values alone.
        return jnp.where(jnp.arange(s.shape[0]) < kept, u, 0), kept

    u, kept = jax.lax.map(scores, x)  # [M, n, m], [M]
    # [m, m] for each pair
    products = [jnp.einsum("ni,nj->ij", u[a], u[b], precision=EXACT) for a, b in pairs]
    return Canonical(jnp.stack([jnp.linalg.svd(p, compute_uv=False) for p in products]), kept)


@_at_full_precision
def variances(x: Float[Array, "M n D"]) -> Float[Array, "M m"]:
    """Computes the variances along the principal components of centred states (times n), largest first.

    They are eigenvalues of the smaller of `X X^T` and `X^T X`, each to a few float32 roundings of the largest.
    """

    def of_state(rows: jax.Array) -> jax.Array:
        # Both have the same non-zero eigenvalues. [m, m], in ascending order until reversed.
        form = "id,jd->ij" if rows.shape[0] < rows.shape[1] else "ni,nj->ij"
        return jnp.linalg.eigvalsh(jnp.einsum(form, rows, rows, precision=EXACT))[::-1]

    return jax.lax.map(of_state, x)


@_at_full_precision
def without_top(x: Float[Array, "M n D"], count: int) -> Float[Array, "M n D"]:
    """Returns centred states minus their projections on their `count` top principal components.

    Args:
      x: [M, n, D] float32 centred states.
      count: components to remove, fewer than n and D.

    Returns:
      [M, n, D] float32.
    """

    def of_state(rows: jax.Array) -> jax.Array:
        top = _left_singular(rows)[0][:, :count]  # [n, count]
        # [count, D]: X - U (U^T X) needs no right singular vectors.
        along = jnp.einsum("nk,nd->kd", top, rows, precision=EXACT)
        return rows - jnp.einsum("nk,kd->nd", top, along, precision=EXACT)

    return jax.lax.map(of_state, x)
