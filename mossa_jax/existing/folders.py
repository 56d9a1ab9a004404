"""Comparisons of states that lie in two folders, whoever wrote them: `mossa.compare_saved`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pandas as pd

from mossa_jax.existing.compare import COLUMNS
from mossa_jax.log import log
from mossa_jax.similarity import compare_states
from mossa_jax.similarity.cells import cells
from mossa_jax.similarity.estimators import variance_missing
from mossa_jax.states.folders import SavedStates, check_paired, open_states

_NAMED = 5  # rows that a message names


def compare_saved(states_a: str, states_b: str, *, ids_a: str | None = None, ids_b: str | None = None) -> pd.DataFrame:
    """CKA at every layer between states in two folders; rows are paired in their order, which ids confirm.

    A layer of either side is in memory at a time. Widths may differ. Rows that hold NaN or infinity in any layer of
    either side are left out of all layers on both sides, and named in one line of the log.

    Args:
      states_a, states_b: folders as `states.saved.open_states` reads them; layers are paired by name.
      ids_a, ids_b: files of row ids (.txt, .json, .npy), for folders without.

    Returns:
      A row per layer and estimator as of `compare`; `attrs["dropped"]` lists the rows left out, by id or number.

    Raises:
      Refusal: 3 where files cannot be read, or rows or layers do not match.
    """
    sides = [open_states(states_a, ids_a), open_states(states_b, ids_b)]
    check_paired(*sides)
    finite = np.ones(sides[0].rows, bool)
    for side in sides:
        for read in side.layers.values():
            finite &= np.isfinite(read()).all(axis=1)
    dropped = [sides[0].label(row) for row in np.flatnonzero(~finite)]
    if dropped:
        names = ", ".join(dropped[:_NAMED]) + (", ..." if len(dropped) > _NAMED else "")
        log.warning("%d of %d rows are not finite, left out on both sides: %s", len(dropped), len(finite), names)
    rows = []
    for name in sides[0].layers:
        pair = _paired(sides, name, finite)
        rows += cells(compare_states(pair, finite, [(0, 1)]), [(0, 1)], [name])[0]
    table = pd.DataFrame(rows)[list(COLUMNS)]
    table.attrs["dropped"] = dropped
    return table


def _paired(sides: list[SavedStates], name: str, finite: np.ndarray) -> jnp.ndarray:
    """[2, 1, n, D] float32 of one layer; the narrower side has zero columns, which change no inner product."""
    arrays = [_float32(side.layers[name](), finite) for side in sides]
    pair = np.zeros((2, 1, len(finite), max(array.shape[1] for array in arrays)), np.float32)
    for index, array in enumerate(arrays):
        pair[index, 0, :, : array.shape[1]] = array
    return jnp.asarray(pair)


def _float32(array: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Rows as the device takes them. Float64 is centred here: its digits matter under an offset, and float32 cuts them.

    Rows that are left out become zero, and so do all rows of float64 whose spread is nothing but rounding.
    """
    if array.dtype != np.float64:
        return np.where(finite[:, None], array.astype(np.float32), 0)
    rows = np.asarray(array)[finite]
    out = np.zeros(array.shape, np.float32)
    if len(rows):
        rows = np.ldexp(rows, -np.frexp(np.abs(rows).max())[1])
        mean = rows.mean(0)
        rows = rows - mean
        spread, offset = np.square(rows).sum(), np.square(mean).sum()
        if not variance_missing(spread, offset, len(rows), float(np.finfo(np.float64).eps)):
            out[finite] = np.ldexp(rows, -np.frexp(np.abs(rows).max())[1])
    return out
