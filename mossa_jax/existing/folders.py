"""Comparison of states that lie in two folders, whoever wrote them: `mossa.compare_saved`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mossa_jax.existing.compare import COLUMNS, NULL_COLUMNS, null_columns
from mossa_jax.existing.prompts import check_draws
from mossa_jax.foreign import user_path
from mossa_jax.log import log
from mossa_jax.monitoring.progress import Progress
from mossa_jax.similarity import compare_states
from mossa_jax.similarity.cells import similarity_cells
from mossa_jax.similarity.estimators import variance_missing
from mossa_jax.states.folders import SavedStates, check_paired, open_states

if TYPE_CHECKING:
    import pandas as pd

_NAMED_ROWS = 5  # a message names at most this many rows


def compare_saved(
    states_a: str,
    states_b: str,
    *,
    ids_a: str | None = None,
    ids_b: str | None = None,
    items: Sequence | np.ndarray | None = None,
    templates: Sequence[int] | np.ndarray | None = None,
    permutations: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Computes CKA at every layer between states that two folders hold.

    Row i of one side is paired with row i of the other; ids, if there are any, confirm the order. Only one layer of
    either side is in memory at a time. Widths may differ. A row that holds NaN or infinity in any layer of either
    side is left out of all layers on both sides, and the log names it.

    Args:
      states_a: a folder with one array [n, D] per layer, in .npy or .safetensors files; `states.folders.open_states`
        says how it is read. Layers are paired by name.
      states_b: the other folder.
      ids_a: a file of row ids (.txt, .json or .npy) for `states_a`, if the folder has none.
      ids_b: the same for `states_b`.
      items: one id per row: rows with the same one are related, as in `compare_states`.
      templates: one whole number per row, as in `compare`.
      permutations: how many random re-pairings of the rows p rests on, as in `compare`; 0 leaves p out.
      seed: of the re-pairings.

    Returns:
      One row per layer and estimator, as in `compare`. `attrs["dropped"]` lists the rows left out, by id or number.

    Raises:
      Refusal: 2 for a negative number of permutations or seed; 3 if a file cannot be read, or if rows, ids or layers
        do not match.

    Example:
      >>> import mossa_jax as mossa, numpy as np
      >>> for name, array in my_states.items():  # {"embed": [n, D], "1": [n, D], ...}
      ...     np.save(f"states/mine/{name}.npy", array)
      >>> table = mossa.compare_saved("states/mine", "states/theirs")
      >>> table[table.estimator == "debiased"][["layer", "cka", "low", "high"]]
    """
    import pandas as pd

    check_draws(permutations, seed)
    folders = user_path(states_a, "states_a"), user_path(states_b, "states_b")
    ids = [path and user_path(path, name) for path, name in ((ids_a, "ids_a"), (ids_b, "ids_b"))]
    sides = open_states(folders[0], ids[0]), open_states(folders[1], ids[1])
    check_paired(*sides)
    finite = _finite_rows(sides)
    dropped = [sides[0].label(int(row)) for row in np.flatnonzero(~finite)]
    if dropped:
        names = ", ".join(dropped[:_NAMED_ROWS]) + (", ..." if len(dropped) > _NAMED_ROWS else "")
        log.warning("%d of %d rows are not finite, left out on both sides: %s", len(dropped), len(finite), names)
    pairs, rows, untouched = [(0, 1)], [], []
    progress = Progress("compare", len(sides[0].layers), unit="layers")
    for number, name in enumerate(sides[0].layers, 1):
        states = _layer_of_both(sides, name, finite)
        untouched += [name] if bool((states[0] == states[1]).all()) else []
        similarities = compare_states(
            states, finite, pairs, items=items, templates=templates, permutations=permutations, seed=seed
        )
        rows += similarity_cells(similarities, pairs, [name])[0]
        progress.line(number, f"layer {name}")
    table, columns = pd.DataFrame(rows), list(COLUMNS)
    if permutations:
        table = null_columns(table, untouched)
        columns[-1:-1] = NULL_COLUMNS
    table = table[columns]
    table.attrs["dropped"] = dropped
    return table


def _finite_rows(sides: Sequence[SavedStates]) -> Bool[np.ndarray, " n"]:
    """Returns which rows are finite in every layer of every side."""
    finite = np.ones(sides[0].rows, bool)
    for side in sides:
        for read in side.layers.values():
            finite &= np.isfinite(read()).all(axis=1)
    return finite


def _layer_of_both(sides: Sequence[SavedStates], name: str, finite: Bool[np.ndarray, " n"]) -> Float[Array, "2 1 n D"]:
    """Reads one layer of both sides; the narrower side gets zero columns, which change no inner product."""
    arrays = [_as_float32(side.layers[name](), finite) for side in sides]  # each [n, D_side]
    states = np.zeros((2, 1, len(finite), max(array.shape[1] for array in arrays)), np.float32)
    for index, array in enumerate(arrays):
        states[index, 0, :, : array.shape[1]] = array
    return jnp.asarray(states)


def _as_float32(array: Float[np.ndarray, "n D"], finite: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "n D"]:
    """Returns the rows as the device takes them; rows that are left out become zero.

    Float64 is centred here: its digits matter under an offset, and float32 would cut them. If the spread of its rows
    is nothing but rounding, all rows become zero.
    """
    if array.dtype != np.float64:
        return np.where(finite[:, None], array.astype(np.float32), 0)
    rows = np.asarray(array)[finite]
    out = np.zeros(array.shape, np.float32)
    if len(rows):
        # Scaled by a power of two, which is exact, so that squares neither overflow nor vanish.
        rows = np.ldexp(rows, -np.frexp(np.abs(rows).max())[1])
        mean = rows.mean(0)
        rows = rows - mean
        spread, offset = np.square(rows).sum(), np.square(mean).sum()
        if not variance_missing(spread, offset, len(rows), float(np.finfo(np.float64).eps)):
            out[finite] = np.ldexp(rows, -np.frexp(np.abs(rows).max())[1])
    return out
