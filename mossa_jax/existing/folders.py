"""Comparison of states that lie in two folders, whoever wrote them: `mossa.compare_saved`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mossa_jax.errors import NOT_FINITE, Refusal
from mossa_jax.existing.compare import COLUMNS, NULL_COLUMNS, null_columns
from mossa_jax.existing.prompts import check_draws
from mossa_jax.foreign import user_path
from mossa_jax.log import log
from mossa_jax.monitoring.progress import Progress
from mossa_jax.similarity import compare_states
from mossa_jax.similarity.cells import similarity_cells
from mossa_jax.similarity.estimators import MIN_ROWS, variance_missing
from mossa_jax.states.folders import SavedStates, check_paired, open_states

if TYPE_CHECKING:
    import pandas as pd

# Rows and layers that a message names at most.
_NAMED = 5


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
    either side is in memory at a time. Widths may differ. A row that holds NaN or infinity in a layer of either side
    is left out of that layer on both sides, and of no other layer; a warning names it. A layer with too few rows left
    is undefined.

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
      One row per layer and estimator, as in `compare`; `n` is the number of rows that counted in that layer.
      `attrs["dropped"]` lists the rows left out of any layer, by id or number.

    Raises:
      Refusal: 2 for a negative number of permutations or seed; 3 if a file cannot be read, or if rows, ids or layers
        do not match; 5 if every layer is undefined because of numbers that are not finite.

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
    pairs, rows, untouched, not_finite = [(0, 1)], [], [], _NotFinite(sides)
    progress = Progress("compare", len(sides[0].layers), unit="layers")
    for number, name in enumerate(sides[0].layers, 1):
        arrays = [side.layers[name]() for side in sides]  # each [n, D_side]
        finite, reason = not_finite.look_at(name, arrays)
        states = _layer_of_both(arrays, finite)
        untouched += [name] if bool((states[0] == states[1]).all()) else []
        similarities = compare_states(
            states, finite, pairs, items=items, templates=templates, permutations=permutations, seed=seed
        )
        cells = similarity_cells(similarities, pairs, [name])[0]
        is_short = bool(reason) and similarities.units < MIN_ROWS
        rows += [cell | {"undefined": f"{reason}: {cell['undefined']}"} if is_short else cell for cell in cells]
        not_finite.undefined += [reason] if is_short else []
        progress.line(number, f"layer {name}")
    not_finite.warn_or_refuse()
    table, columns = pd.DataFrame(rows), list(COLUMNS)
    if permutations:
        table = null_columns(table, untouched)
        columns[-1:-1] = NULL_COLUMNS
    table = table[columns]
    table.attrs["dropped"] = not_finite.labels()
    return table


class _NotFinite:
    """What was found of numbers that are not finite.

    Attributes:
      undefined: reasons of the layers that have too few rows for that reason.
    """

    def __init__(self, sides: Sequence[SavedStates]):
        self._sides = sides
        # By side: rows that are not finite in some layer, and the names of those layers.
        self._rows = np.zeros((len(sides), sides[0].rows), bool)
        self._layers: list[list[str]] = [[] for _ in sides]
        self.undefined: list[str] = []

    def look_at(self, name: str, arrays: Sequence[np.ndarray]) -> tuple[Bool[np.ndarray, " n"], str]:
        """Returns which rows of a layer are finite on both sides, and if not all are, which side has how many."""
        finite = [np.isfinite(array).all(axis=1) for array in arrays]
        for layers, own in zip(self._layers, finite, strict=True):
            layers += [] if own.all() else [name]
        both = np.logical_and.reduce(finite)
        self._rows |= ~np.asarray(finite)
        parts = [
            f"layer {name} of {side.folder} is not finite in {(~own).sum():,} of {len(own):,} rows"
            for side, own in zip(self._sides, finite, strict=True)
            if not own.all()
        ]
        return both, " and ".join(parts)

    def labels(self) -> list[str]:
        """Returns the rows that are not finite in some layer, by id or number."""
        return self._labels(np.asarray(self._rows.any(0)))

    def warn_or_refuse(self) -> None:
        """Names what was left out; refuses, with code 5, where no layer is left."""
        if len(self.undefined) == len(self._sides[0].layers):
            raise Refusal(NOT_FINITE, f"no layer can be compared: {self.undefined[0]}; save states of finite numbers")
        for side, layers, rows in zip(self._sides, self._layers, self._rows, strict=True):
            if layers:
                log.warning(
                    "%s: %d of %d rows are not finite in some layer (%s), and left out there on both sides: %s",
                    *(side.folder, rows.sum(), len(rows), _shortened(layers), _shortened(self._labels(rows))),
                )

    def _labels(self, rows: Bool[np.ndarray, " n"]) -> list[str]:
        return [self._sides[0].label(int(row)) for row in np.flatnonzero(rows)]


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _layer_of_both(arrays: Sequence[np.ndarray], finite: Bool[np.ndarray, " n"]) -> Float[Array, "2 1 n D"]:
    """Joins one layer of both sides; the narrower side gets zero columns, which change no inner product."""
    arrays = [_as_float32(array, finite) for array in arrays]  # each [n, D_side]
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
