"""Everything a run can say, computed from its results table and its task scores."""

from typing import Any

import pandas as pd

from mossa_jax.config import PRETRAINED
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.findings import verdicts
from mossa_jax.findings.ability import find_ability
from mossa_jax.findings.clusters import clusters_differ, rank_clusters, task_levels
from mossa_jax.findings.curves import HEADLINE, REPORTED_ESTIMATORS, block_layers, curve_rows
from mossa_jax.findings.json_types import to_json_types
from mossa_jax.findings.resampling import paired_change
from mossa_jax.findings.sections import find_sections, shared_change, upper_layers
from mossa_jax.findings.specificity import find_specificity
from mossa_jax.findings.trust import find_trust
from mossa_jax.findings.unseen import find_unseen

COLUMNS = (
    "experimental control task cluster held_out layer estimator cka low high n participation_ratio_a "
    "participation_ratio_b offset_a offset_b null_mean p q undefined"
).split()
"""Columns of the results table."""

SCORE_COLUMNS = "task cluster held_out model exact_match n".split()
"""Columns of the task scores."""


def find(
    table: pd.DataFrame,
    scores: pd.DataFrame,
    seed: int = 0,
    draws: int = 2000,
    prompts: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Derives everything the run can say from the results table and the task scores.

    Args:
      table: columns `COLUMNS`, one row per experimental model, control, task, layer and estimator.
      scores: columns `SCORE_COLUMNS`; may have no rows.
      seed: seed of all resampling. The same input and seed give the same output.
      draws: resamples per bootstrap, and permutations per test.
      prompts: number of prompts per task, for tables whose `n` counts something else (every token). None: `n` is the
        number of prompts.

    Returns:
      JSON-serialisable dict without NaN: `curves`, `curves_held_out`, `sections`, `upper`, `half`, `shared`, `shift`,
      `clusters`, `unseen`, `specificity`, `scores`, `trust`, `robustness` (the main results by each estimator) and
      `findings` (a list of `verdicts.Finding`).

    Raises:
      Refusal: 3 if the table lacks a column or has no block layer.
    """
    layers = _checked_layers(table)
    sections = {estimator: find_sections(table, estimator, seed, draws) for estimator in REPORTED_ESTIMATORS}
    upper, upper_name = upper_layers(sections[HEADLINE], layers)
    # The test of a shift uses the upper half, fixed in advance: layers chosen by a rise would favour a rise.
    half = layers[len(layers) // 2 :]
    by_estimator: dict[str, dict[str, Any]] = {}
    for estimator in REPORTED_ESTIMATORS:
        half_change = task_levels(table, half, estimator)["change"].to_numpy()
        all_levels = task_levels(table, upper, estimator, held_out=None)
        mixture_levels = task_levels(table, upper, estimator)
        by_estimator[estimator] = {
            "sections": sections[estimator],
            "shared": shared_change(table, sections[HEADLINE], estimator, seed, draws),
            "shift": paired_change(half_change, seed, draws),
            "differ": clusters_differ(mixture_levels, PRETRAINED, seed, draws),
            "unseen": find_unseen(table, upper, estimator, seed, draws),
            "specificity": find_specificity(table, upper, estimator, seed, draws),
            "ability": find_ability(all_levels, scores, seed, draws),
        }
    headline = by_estimator[HEADLINE]
    analysis = {
        "estimator": HEADLINE,
        "seed": seed,
        "draws": draws,
        "curves": curve_rows(table, held_out=False),
        "curves_held_out": curve_rows(table, held_out=True),
        "sections": headline["sections"],
        "upper": {"layers": upper, "name": upper_name},
        "half": {"layers": half, "name": f"layers {half[0]} to {half[-1]} (upper half)"},
        "shared": headline["shared"],
        "shift": headline["shift"],
        "clusters": {
            "ranking": rank_clusters(task_levels(table, upper), seed, draws),
            "differ": headline["differ"],
            "layers": upper_name,
        },
        "unseen": headline["unseen"],
        "specificity": headline["specificity"],
        "scores": headline["ability"],
        "trust": find_trust(table, prompts),
        "robustness": {
            estimator: results | {"ability": results["ability"]["rank_correlation"]}
            for estimator, results in by_estimator.items()
        },
    }
    analysis = to_json_types(analysis)
    analysis["findings"] = to_json_types(verdicts.statements(analysis))
    return analysis


def _checked_layers(table: pd.DataFrame) -> list[str]:
    """Returns the block layers of a table that has all columns and at least one such layer."""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise Refusal(BAD_INPUT, f"results table: column '{missing[0]}' is missing; run the comparison stage again")
    layers = block_layers(table)
    if not layers:
        raise Refusal(BAD_INPUT, "results table: it has no block output (layers 1..L); compare at least one layer")
    return layers
