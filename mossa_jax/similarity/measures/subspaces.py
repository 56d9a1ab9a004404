"""Factorisations of centred rows of one layer: what Procrustes, SVCCA, spectra and the removal of components need.

All of them shrink to m = min(n, D) first. QR, SVD and eigenvalues are those of the platform in float32; products
inside them are asked for at full precision too.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mossa_jax.similarity.gram import EXACT


def _at_full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args)

    return run


@_at_full_precision
def cross_singular_values(x: jax.Array, pairs: Sequence[tuple[int, int]]) -> jax.Array:
    """Singular values of `X_a^T X_b` for pairs of [M, n, D] centred states.

    With fewer rows than columns, `X^T = Q R` and the values are those of the [n, n] matrix `R_a R_b^T`.

    Returns:
        [P, min(n, D)] float32.
    """
    if x.shape[1] < x.shape[2]:
        side = jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(x, 1, 2), mode="r"), 1, 2)
    else:
        side = x
    products = [jnp.einsum("ni,nj->ij", side[a], side[b], precision=EXACT) for a, b in pairs]
    return jnp.stack([jnp.linalg.svd(p, compute_uv=False) for p in products])


def _left_singular(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Left singular vectors [n, m] and singular values [m], largest first, of [n, D] rows.

    Not from the eigenvectors of their covariance, in which a component a thousandth of the largest drowns in rounding.
    """
    if rows.shape[0] < rows.shape[1]:
        u, s, _ = jnp.linalg.svd(jnp.linalg.qr(rows.T, mode="r").T, full_matrices=False)
        return u, s
    q, r = jnp.linalg.qr(rows)
    u, s, _ = jnp.linalg.svd(r, full_matrices=False)
    return jnp.einsum("ni,ij->nj", q, u, precision=EXACT), s


class Canonical(NamedTuple):
    """`correlations` [P, m] canonical correlations, zeros behind the last; `components` [M] how many were kept."""

    correlations: jax.Array
    components: jax.Array


@_at_full_precision
def canonical_correlations(x: jax.Array, pairs: Sequence[tuple[int, int]], share: float) -> Canonical:
    """Canonical correlations between the principal components that hold `share` of each state's variance.

    They are the singular values of `U_a^T U_b`, U the left singular vectors kept.

    Args:
        x: [M, n, D] centred states.
        pairs: of models.
        share: of the variance, below 1.
    """

    def scores(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        u, s = _left_singular(rows)
        held = jnp.cumsum(jnp.square(s))
        kept = jnp.minimum((held < share * held[-1]).sum() + 1, s.shape[0])
        return jnp.where(jnp.arange(s.shape[0]) < kept, u, 0), kept

    u, kept = jax.lax.map(scores, x)
    products = [jnp.einsum("ni,nj->ij", u[a], u[b], precision=EXACT) for a, b in pairs]
    return Canonical(jnp.stack([jnp.linalg.svd(p, compute_uv=False) for p in products]), kept)


@_at_full_precision
def variances(x: jax.Array) -> jax.Array:
    """[M, m] variances along the principal components of [M, n, D] centred states (times n), largest first.

    Eigenvalues of the smaller of `X X^T` and `X^T X`, each to a few float32 roundings of the largest.
    """

    def one(rows: jax.Array) -> jax.Array:
        form = "id,jd->ij" if rows.shape[0] < rows.shape[1] else "ni,nj->ij"
        return jnp.linalg.eigvalsh(jnp.einsum(form, rows, rows, precision=EXACT))[::-1]

    return jax.lax.map(one, x)


@_at_full_precision
def without_top(x: jax.Array, count: int) -> jax.Array:
    """[M, n, D] centred states less their projections on their `count` top principal components."""

    def one(rows: jax.Array) -> jax.Array:
        top = _left_singular(rows)[0][:, :count]
        along = jnp.einsum("nk,nd->kd", top, rows, precision=EXACT)
        return rows - jnp.einsum("nk,kd->nd", top, along, precision=EXACT)

    return jax.lax.map(one, x)
