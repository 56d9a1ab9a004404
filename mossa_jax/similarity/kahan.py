"""Compensated addition: the sum of many float32 terms to about one rounding."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")


def add_compensated(total: Tree, carry: Tree, term: Tree) -> tuple[Tree, Tree]:
    """Adds `term` to `total`, leaf by leaf.

    Args:
      total: the sum so far, a pytree of float32 arrays.
      carry: the excess that rounding has put into `total`; the same structure, zero at the start.
      term: the arrays to add; the same structure.

    Returns:
      The new sum and the new carry. The best estimate of the sum is their difference.

    References:
      Kahan 1965, "Further remarks on reducing truncation errors".
    """
    # The excess of the earlier additions is taken off the small term, where float32 still has room for it.
    corrected = jax.tree.map(jnp.subtract, term, carry)
    new = jax.tree.map(jnp.add, total, corrected)
    # Algebraically `moved` equals `corrected`. The barrier keeps the compiler from simplifying it to that.
    moved = jax.tree.map(jnp.subtract, lax.optimization_barrier(new), total)
    # The sum really grew by `moved`; its surplus over the corrected term is the new excess.
    return new, jax.tree.map(jnp.subtract, moved, corrected)
