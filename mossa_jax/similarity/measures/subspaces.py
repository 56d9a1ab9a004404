"""Factorisations of centred rows of one layer, for Procrustes, SVCCA, spectra and the removal of components.

All of them shrink to m = min(n, D) first. QR, SVD and eigenvalues are the platform's own in float32, with products at
full precision inside them too.

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
    @functools.wraps(function)
    def run(*args: Any) -> Any:
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
    if x.shape[1] < x.shape[2]:
        side = jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(x, 1, 2), mode="r"), 1, 2)  # [M, n, n]
    else:
        side = x
    products = [jnp.einsum("ni,nj->ij", side[a], side[b], precision=EXACT) for a, b in pairs]
    return jnp.stack([jnp.linalg.svd(p, compute_uv=False) for p in products])


def _left_singular(rows: Float[Array, "n D"]) -> tuple[Float[Array, "n m"], Float[Array, " m"]]:
    """Returns the left singular vectors and the singular values of rows, largest first.

    They do not come from the eigenvectors of the covariance, in which a component a thousandth of the largest would
    drown in rounding.
    """
    if rows.shape[0] < rows.shape[1]:
        u, s, _ = jnp.linalg.svd(jnp.linalg.qr(rows.T, mode="r").T, full_matrices=False)
        return u, s
    q, r = jnp.linalg.qr(rows)
    u, s, _ = jnp.linalg.svd(r, full_matrices=False)
    return jnp.einsum("ni,ij->nj", q, u, precision=EXACT), s


class Canonical(NamedTuple):
    """Canonical correlations of pairs of states.

    Attributes:
      correlations: [P, m] float32, zeros behind the last.
      components: [M] int32, how many principal components of each state were kept.
    """

    correlations: Float[Array, "P m"]
    components: Int[Array, " M"]


@_at_full_precision
def canonical_correlations(x: Float[Array, "M n D"], pairs: Sequence[tuple[int, int]], share: float) -> Canonical:
    """Computes canonical correlations between the principal components that hold `share` of each state's variance.

    They are the singular values of `U_a^T U_b`, where U are the left singular vectors that are kept.

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

    u, kept = jax.lax.map(scores, x)  # [M, n, m], [M]
    products = [jnp.einsum("ni,nj->ij", u[a], u[b], precision=EXACT) for a, b in pairs]
    return Canonical(jnp.stack([jnp.linalg.svd(p, compute_uv=False) for p in products]), kept)


@_at_full_precision
def variances(x: Float[Array, "M n D"]) -> Float[Array, "M m"]:
    """Computes the variances along the principal components of centred states (times n), largest first.

    They are eigenvalues of the smaller of `X X^T` and `X^T X`, each to a few float32 roundings of the largest.
    """

    def of_state(rows: jax.Array) -> jax.Array:
        form = "id,jd->ij" if rows.shape[0] < rows.shape[1] else "ni,nj->ij"
        return jnp.linalg.eigvalsh(jnp.einsum(form, rows, rows, precision=EXACT))[::-1]

    return jax.lax.map(of_state, x)


@_at_full_precision
def without_top(x: Float[Array, "M n D"], count: int) -> Float[Array, "M n D"]:
    """Returns centred states minus their projections on their `count` top principal components."""

    def of_state(rows: jax.Array) -> jax.Array:
        top = _left_singular(rows)[0][:, :count]  # [n, count]
        along = jnp.einsum("nk,nd->kd", top, rows, precision=EXACT)
        return rows - jnp.einsum("nk,kd->nd", top, along, precision=EXACT)

    return jax.lax.map(of_state, x)
