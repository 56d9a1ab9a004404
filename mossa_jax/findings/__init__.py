"""Findings: from the results table to statements with figures, intervals and verdicts."""

import math

import numpy as np
import pandas as pd

from mossa_jax.errors import Refusal
from mossa_jax.findings import verdicts
from mossa_jax.findings.clusters import clusters_differ, rank_clusters, task_levels
from mossa_jax.findings.curves import ESTIMATORS, HEADLINE, block_layers, curve_rows
from mossa_jax.findings.sections import find_sections, shared_change, upper_layers
from mossa_jax.findings.specificity import find_ability, find_specificity
from mossa_jax.findings.trust import find_trust
from mossa_jax.findings.unseen import find_unseen, paired_change

COLUMNS = (
    "experimental control task cluster held_out layer estimator cka low high n participation_ratio_a "
    "participation_ratio_b offset_a offset_b null_mean p q undefined"
).split()

__all__ = ["COLUMNS", "find", "plain"]


def plain(value: object) -> object:
    """The same value in JSON's own types: NumPy scalars and arrays unwrapped, NaN and infinities to None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray | pd.Series):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


def find(
    table: pd.DataFrame,
    scores: pd.DataFrame,
    seed: int = 0,
    draws: int = 2000,
    prompts: dict[str, int] | None = None,
) -> dict:
    """Everything the run can say, from the results table and the task scores.

    Args:
        table: Tidy results, columns `COLUMNS`, a row per experimental, control, task, layer and estimator.
        scores: Columns `task, cluster, held_out, model, exact_match, n`; may have no rows.
        seed: Seed of every resampling; the same input and seed give the same output.
        draws: Resamples per bootstrap and permutations per test.
        prompts: Task -> its prompts, where `n` counts something else (every token); None where `n` is that.

    Returns:
        JSON-serialisable dict without NaN: `curves`, `curves_held_out`, `sections`, `upper`, `shared`, `shift`,
        `clusters`, `unseen`, `specificity`, `scores`, `trust`, `robustness`, `findings` (title, sentence,
        verdict, figures, chart).

    Raises:
        Refusal: Code 3, when the table lacks a column or has no block layer.
    """
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise Refusal(3, f"results table: column '{missing[0]}' is missing; run the comparison stage again")
    layers = block_layers(table)
    if not layers:
        raise Refusal(3, "results table: no block output (layers 1..L) in it; compare at least one layer")

    by_estimator = {}
    for estimator in ESTIMATORS:
        sections = find_sections(table, estimator, seed, draws)
        by_estimator[estimator] = {"sections": sections}
    upper, upper_name = upper_layers(by_estimator[HEADLINE]["sections"], layers)
    # The test of a shift uses the upper half, fixed in advance: layers chosen by a rise would favour a rise.
    half = layers[len(layers) // 2 :]
    for estimator, part in by_estimator.items():
        levels = task_levels(table, half, estimator)
        part["shared"] = shared_change(table, by_estimator[HEADLINE]["sections"], estimator, seed, draws)
        part["shift"] = paired_change(levels["change"].to_numpy(), seed, draws)
        part["unseen"] = find_unseen(table, upper, estimator, seed, draws)
        part["specificity"] = find_specificity(table, upper, estimator, seed, draws)
        everywhere = task_levels(table, upper, estimator, held_out=None)
        part["ability"] = find_ability(everywhere, scores, seed, draws)
        part["differ"] = clusters_differ(task_levels(table, upper, estimator), "pretrained", seed, draws)
    levels = task_levels(table, upper)
    head = by_estimator[HEADLINE]
    found = {
        "estimator": HEADLINE,
        "seed": seed,
        "draws": draws,
        "curves": curve_rows(table, held_out=False),
        "curves_held_out": curve_rows(table, held_out=True),
        "sections": head["sections"],
        "upper": {"layers": upper, "name": upper_name},
        "half": {"layers": half, "name": f"layers {half[0]} to {half[-1]} (upper half)"},
        "shared": head["shared"],
        "shift": head["shift"],
        "clusters": {
            "ranking": rank_clusters(levels, seed, draws),
            "differ": head["differ"],
            "layers": upper_name,
        },
        "unseen": head["unseen"],
        "specificity": head["specificity"],
        "scores": head["ability"],
        "trust": find_trust(table, prompts),
        "robustness": {
            estimator: {key: part[key] for key in ("sections", "shared", "shift", "differ", "unseen", "specificity")}
            | {"ability": part["ability"]["rank_correlation"]}
            for estimator, part in by_estimator.items()
        },
    }
    found = plain(found)
    found["findings"] = plain(verdicts.statements(found))
    return found
