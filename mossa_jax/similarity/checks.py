"""Checks of states and pairs before they are compared, and the mesh that states lie on."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mossa_jax.errors import BAD_INPUT, Refusal


def check_states(states: jax.Array, valid: np.ndarray, may_be_flat: bool = False) -> None:
    """Checks that states are floating [M, K, n, D] and that `valid` is [n] bool.

    Args:
      states: of M models at K layers.
      valid: which rows count.
      may_be_flat: whether states [S, n, D], without separate axes for models and layers, are allowed too.

    Raises:
      Refusal: 3 if they are not.
    """
    shapes = "[models, layers, rows, width]" + (" or [states, rows, width]" if may_be_flat else "")
    ranks = (3, 4) if may_be_flat else (4,)
    if states.ndim not in ranks or not jnp.issubdtype(states.dtype, jnp.floating):
        raise Refusal(BAD_INPUT, f"states are {states.dtype}{list(states.shape)}; give floating {shapes}")
    if valid.shape != states.shape[-2:-1] or valid.dtype != bool:
        raise Refusal(
            BAD_INPUT,
            f"valid is {valid.dtype}{list(valid.shape)}; give one bool for each of {states.shape[-2]} rows",
        )


def check_pairs(pairs: Sequence[tuple[int, int]], models: int) -> None:
    """Checks that there are pairs and that their indices are those of models.

    Args:
      pairs: (a, b) indices of models.
      models: M.

    Raises:
      Refusal: 3 if there are none, or if an index is out of range.
    """
    if not pairs or any(not 0 <= model < models for pair in pairs for model in pair):
        raise Refusal(BAD_INPUT, f"pairs are {list(pairs)}; give pairs of indices below {models}")


def check_labels(items: object, templates: object, rows: int) -> None:
    """Checks that there is one item and one template per row; None stands for unknown.

    Args:
      items: ids of any kind.
      templates: whole numbers.
      rows: n.

    Raises:
      Refusal: 3 if not.
    """
    for name, labels in (("items", items), ("templates", templates)):
        if labels is not None and np.asarray(labels).shape != (rows,):
            shape = list(np.asarray(labels).shape)
            raise Refusal(BAD_INPUT, f"{name} have shape {shape}; give one for each of {rows} rows")
    if templates is not None and not np.issubdtype(np.asarray(templates).dtype, np.integer):
        raise Refusal(BAD_INPUT, f"templates are {np.asarray(templates).dtype}; give whole numbers, -1 if unknown")


def mesh_of(states: jax.Array) -> Mesh | None:
    """Returns the mesh that an array is spread over; None on a single device."""
    if not isinstance(states.sharding, NamedSharding):
        return None
    # An abstract mesh has no devices, and on a mesh of one device nothing is spread.
    mesh = states.sharding.mesh
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None
