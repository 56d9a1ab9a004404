"""Same-layer CKA of pairs of models, with intervals and a permutation null, from kept rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.similarity import gram, intervals, null
from mossa_jax.similarity.checks import check_labels, check_pairs, check_states, mesh_of
from mossa_jax.similarity.combine import Similarities, Sums
from mossa_jax.similarity.items import item_rows

# With fewer templates an error over them means nothing.
MIN_TEMPLATES = 3


def compare_states(
    states: Float[Array, "M K n D"],
    valid: np.ndarray | jax.Array,
    pairs: Sequence[tuple[int, int]],
    *,
    permutations: int = 0,
    seed: int = 0,
    rows: int | None = None,
    items: np.ndarray | Sequence | None = None,
    templates: np.ndarray | Sequence[int] | None = None,
) -> Similarities:
    """Computes exact linear CKA, biased and debiased, of pairs of models at every layer.

    Everything of size n x D stays on the devices, in one compiled program per shape; row sums come back to the host
    and are combined in float64.

    Args:
      states: [M, K, n, D] float32 or bfloat16 pooled states, possibly sharded on a mesh.
      valid: [n] bool, False on padding and on prompts left out; the same on every process.
      pairs: (a, b) indices of models.
      permutations: how many random re-pairings the p-value rests on.
      seed: of the re-pairings.
      rows: only so many rows are looked at, the first ones; all by default. The work grows with their square, and each
        number of them is a program of its own.
      items: [n] ids: rows with the same one are related, as questions on one passage are. Pairs of such rows are left
        out of the debiased value, intervals rest on items, and the null exchanges whole items. By default every row
        is an item of its own. Ids of rows that are not valid mean nothing.
      templates: [n] int: the wording of each row, -1 if unknown. The null exchanges rows within their template.

    Raises:
      ValueError: a row behind them is valid.
      Refusal: 3 if shapes or indices do not fit; 2 for a negative number of permutations.
    """
    # On the host: the number of valid rows and the draws below are the same on every process.
    valid = np.asarray(valid)
    pairs = tuple((int(a), int(b)) for a, b in pairs)
    states = jnp.asarray(states)
    check_states(states, valid)
    check_pairs(pairs, states.shape[0])
    check_labels(items, templates, len(valid))
    if permutations < 0:
        raise Refusal(BAD_CONFIG, f"permutations is {permutations}; give 0 (no p-value) or more")
    rows = len(valid) if rows is None else rows
    if valid[rows:].any():
        raise ValueError(f"rows behind the first {rows} are valid")
    valid = valid[:rows]
    items, templates = (None if labels is None else np.asarray(labels)[:rows] for labels in (items, templates))
    if items is not None and len(np.unique(items[valid])) == valid.sum():
        # Every row is its own item: the program without items has the same values, and may be compiled already.
        items = None
    comparison = _Comparison(states, pairs, gram.gram_combinations(states.shape[0], pairs))
    whole = comparison.similarities(valid, items, templates, (permutations, seed))
    return dataclasses.replace(whole, template_error=comparison.template_error(valid, items, templates))


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """States and pairs of one call; `combinations` are those of their models."""

    states: Float[Array, "M K n D"]
    pairs: tuple[tuple[int, int], ...]
    combinations: tuple[tuple[int, int], ...]

    def similarities(
        self, valid: np.ndarray, items: np.ndarray | None, templates: np.ndarray | None, draws: tuple[int, int]
    ) -> Similarities:
        """Computes everything but the error over templates; `draws` are their number and seed."""
        sums, repairing = self._sums(valid, items, templates, draws)
        kept = sums.kept
        if not kept[valid].all() and (items is not None or repairing.name not in ("rows", "none")):
            # Items and draws were made for all valid rows. The same program runs again with those that are finite.
            sums, repairing = self._sums(kept, items, templates, draws)
        rows = None if items is None else item_rows(items, kept)
        eps = float(jnp.finfo(self.states.dtype).eps)
        return Sums(sums, rows, repairing.name, int(valid.sum()), eps).similarities(self.combinations, self.pairs)

    def _sums(
        self, valid: np.ndarray, items: np.ndarray | None, templates: np.ndarray | None, draws: tuple[int, int]
    ) -> tuple[Any, null.Repairing]:
        """Runs the program of the devices; the sums come back as NumPy arrays."""
        repairing = null.repairing_of(valid, items, templates)
        sums = gram.gram_sums(
            self.states,
            valid,
            null.draw_ranks(valid, *draws, repairing),
            combinations=self.combinations,
            pairs=self.pairs,
            tile=gram.tile_size(len(valid)),
            mesh=mesh_of(self.states),
            items=None if items is None else item_rows(items, valid, templates),
        )
        # Only these sums leave the devices, about K M^2 n numbers and 2 K P R of the permutations.
        return jax.tree.map(np.asarray, sums), repairing

    def template_error(
        self, valid: np.ndarray, items: np.ndarray | None, templates: np.ndarray | None
    ) -> Float[np.ndarray, "P K 2"]:
        """Computes the jackknife error over templates, by one comparison without draws per template."""
        names = np.zeros(0) if templates is None else np.unique(templates[valid])
        if templates is None or len(names) < MIN_TEMPLATES or names[0] < 0:
            return np.full((len(self.pairs), self.states.shape[1], 2), np.nan)
        values = [self.similarities(valid & (templates != name), items, None, (0, 0)).value for name in names]
        return intervals.jackknife_error(np.stack(values, -1))
