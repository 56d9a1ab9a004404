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
      carry: what rounding has put into `total` too much; the same structure, zero at the start.
      term: what to add; the same structure.

    Returns:
      The new sum and the new carry. The best estimate of the sum is their difference.

    References:
      Kahan 1965, "Further remarks on reducing truncation errors".
    """
    corrected = jax.tree.map(jnp.subtract, term, carry)
    new = jax.tree.map(jnp.add, total, corrected)
    # The barrier keeps the compiler from cancelling the compensation algebraically.
    moved = jax.tree.map(jnp.subtract, lax.optimization_barrier(new), total)
    return new, jax.tree.map(jnp.subtract, moved, corrected)
