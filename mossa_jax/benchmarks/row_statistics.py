"""Simulations of rows that share items or templates: bias, coverage of intervals, p-values and paired changes.

Synthetic states of models whose rows are `sqrt(share) * item + sqrt(1 - share) * own`, with a power-law spectrum over
the columns. What two models have in common is a fraction of both parts, so the CKA of fresh rows that share no item is
known. Every condition is compared in one call: its runs are the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mossa_jax.similarity import compare_states
from mossa_jax.similarity.changes import paired_changes

if TYPE_CHECKING:
    import pandas as pd

WIDTH, ROWS, PERMUTATIONS = 512, 240, 99
SHARES = (0.1, 0.3, 0.5, 0.8)
# Items x rows of an item; exponents of the spectrum; cosine of the two models' rows.
ITEMS, SPECTRA, TRUTHS = (48, 24), (0.0, 0.5), (0.0, 0.16)
TEMPLATES, TEMPLATE_SHARES = 10, (0.05, 0.2, 0.5)
# Runs that are compared at once, as layers.
_BATCH = 40


class _Design(NamedTuple):
    """One kind of rows; `share` is the part of the variance that rows of one group have in common."""

    groups: np.ndarray
    share: float
    exponent: float
    truth: float


def _states(random: np.random.Generator, design: _Design, runs: int, models: int) -> Float[np.ndarray, "M K n D"]:
    """Draws states of models that resemble the last one alike.

    With `x = sqrt(c) z + sqrt(1 - c) own` of the same spectrum, the cross-covariance of two models is c times the
    covariance, and CKA is c^2: so `c` is the root of the truth.
    """
    scale = np.arange(1, WIDTH + 1, dtype=np.float32) ** np.float32(-design.exponent)
    numbers = np.unique(design.groups, return_inverse=True)[1].reshape(-1)

    def noise(count: int) -> np.ndarray:
        group = random.standard_normal((count, runs, numbers.max() + 1, WIDTH), np.float32)[:, :, numbers]
        own = random.standard_normal((count, runs, ROWS, WIDTH), np.float32)
        return (np.sqrt(design.share) * group + np.sqrt(1 - design.share) * own) * scale

    common = np.sqrt(design.truth)
    return (np.sqrt(common) * noise(1) + np.sqrt(1 - common) * noise(models)).astype(np.float32)


def _item_conditions() -> Iterator[tuple[dict, _Design]]:
    for items in ITEMS:
        groups = np.repeat(np.arange(items), ROWS // items)
        for exponent in SPECTRA:
            for truth in TRUTHS:
                for share in SHARES:
                    names = {"items": items, "exponent": exponent, "truth": truth, "share": share}
                    yield names, _Design(groups, share, exponent, truth)


def _item_row(random: np.random.Generator, design: _Design, runs: int) -> dict[str, float]:
    """Compares two models with a third one; their similarities to it are the same, so their change is 0."""
    values, covers, p, change_covers = [], [], [], []
    for start in range(0, runs, _BATCH):
        states = _states(random, design, min(_BATCH, runs - start), 3)
        found = compare_states(
            jnp.asarray(states), np.ones(ROWS, bool), [(0, 2), (1, 2)],
            permutations=0 if design.truth else PERMUTATIONS, seed=int(random.integers(2**31)), items=design.groups,
        )  # fmt: skip
        change = paired_changes(found, [0], [1])
        values.append(found.value[0, :, 1])
        covers.append((found.low[0, :, 1] <= design.truth) & (design.truth <= found.high[0, :, 1]))
        p.append(found.p[0, :, 1])
        change_covers.append((change.low[0, :, 1] <= 0) & (change.high[0, :, 1] >= 0))
    return {
        "bias": float(np.concatenate(values).mean() - design.truth),
        "spread": float(np.concatenate(values).std(ddof=1)),
        "coverage": float(np.concatenate(covers).mean()),
        "p_below_05": float((np.concatenate(p) <= 0.05).mean()) if design.truth == 0 else np.nan,
        "change_coverage": float(np.concatenate(change_covers).mean()),
    }


def _template_row(random: np.random.Generator, share: float, runs: int) -> dict[str, float]:
    """Compares models with independent contents whose rows follow the same templates."""
    templates = np.arange(ROWS) % TEMPLATES
    within: list[np.ndarray] = []
    free: list[np.ndarray] = []
    scale = np.arange(1, WIDTH + 1, dtype=np.float32) ** np.float32(-0.5)
    for start in range(0, runs, _BATCH):
        count = min(_BATCH, runs - start)
        wordings = random.standard_normal((2, count, TEMPLATES, WIDTH), np.float32)[:, :, templates]
        own = random.standard_normal((2, count, ROWS, WIDTH), np.float32)
        states = ((np.sqrt(share) * wordings + np.sqrt(1 - share) * own) * scale).astype(np.float32)
        for into, known in ((within, templates), (free, None)):
            found = compare_states(
                jnp.asarray(states), np.ones(ROWS, bool), [(0, 1)],
                permutations=PERMUTATIONS, seed=int(random.integers(2**31)), templates=known,
            )  # fmt: skip
            into.append(found.p[0, :, 1])
    return {
        "p_below_05": float((np.concatenate(within) <= 0.05).mean()),
        "p_below_05_free": float((np.concatenate(free) <= 0.05).mean()),
    }


def row_statistics(runs: int = 200, seed: int = 0) -> pd.DataFrame:
    """Simulates every condition.

    Args:
      runs: per condition.
      seed: of NumPy's generator.

    Returns:
      One row per condition: `kind` ("items" or "templates"), `items`, `exponent`, `truth`, `share`; `bias` and `spread`
      of the debiased value, `coverage` of its interval, `p_below_05` (the share of p-values of at most 0.05 without any
      relation), `change_coverage` of a change of 0, and `p_below_05_free` if rows are re-paired across templates.
    """
    import pandas as pd

    random = np.random.default_rng(seed)
    rows: list[dict] = []
    for names, design in _item_conditions():
        rows.append({"kind": "items", **names, **_item_row(random, design, runs)})
    for share in TEMPLATE_SHARES:
        rows.append({"kind": "templates", "truth": 0.0, "share": share, **_template_row(random, share, runs)})
    return pd.DataFrame(rows)
