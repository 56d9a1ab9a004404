"""Everything a run can say, computed from its results table and its task scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.findings.ability import find_ability
from mossa_jax.findings.ceiling import find_ceiling, variance_parts
from mossa_jax.findings.cells import OWN, Cells, cells_of
from mossa_jax.findings.claims import MARGIN, judge
from mossa_jax.findings.clusters import clusters_differ, rank_clusters, task_levels
from mossa_jax.findings.competence import find_competence
from mossa_jax.findings.controls import kind_matrix
from mossa_jax.findings.curves import (
    HEADLINE,
    REPORTED_ESTIMATORS,
    block_layers,
    clusters_of,
    curve_rows,
    differences,
    mean_defined,
    task_layer_matrix,
)
from mossa_jax.findings.evidence import gather_evidence
from mossa_jax.findings.factors import find_factors
from mossa_jax.findings.json_types import to_json_types
from mossa_jax.findings.profile import find_profile
from mossa_jax.findings.qualifications import qualifications, tasks_behind
from mossa_jax.findings.robustness import add_to_evidence, find_robustness
from mossa_jax.findings.sections import find_sections
from mossa_jax.findings.specificity import find_specificity
from mossa_jax.findings.story import tell_story
from mossa_jax.findings.trajectory import convergence_summary
from mossa_jax.findings.trust import find_trust
from mossa_jax.findings.units import equivalence_p, estimate, t_interval, unit_means
from mossa_jax.findings.unseen import find_unseen
from mossa_jax.findings.warnings import RunWarning, in_order, score_warnings, training_warnings

COLUMNS = "experimental control task cluster held_out layer estimator cka n undefined".split()
"""Columns that the results table must have; the others of `results/cka` are used where they are there."""

SCORE_COLUMNS = "task cluster held_out model metric value low high n".split()
"""Columns of the task scores."""

_OPTIONAL = "low high participation_ratio_a participation_ratio_b offset_a offset_b null_mean p q".split()


def find(
    table: pd.DataFrame,
    scores: pd.DataFrame,
    seed: int = 0,
    draws: int = 2000,
    *,
    prompts: dict[str, int] | None = None,
    change: pd.DataFrame | None = None,
    analyses: Mapping[str, pd.DataFrame] | None = None,
    warnings: Sequence[RunWarning] = (),
    counters: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Derives everything the run can say from the results table and the task scores.

    Args:
      table: columns `COLUMNS` and those of `results/cka`, one row per experimental model, control, task, layer and
        estimator.
      scores: columns `SCORE_COLUMNS`; may have no rows.
      seed: seed of all resampling. The same input and seed give the same output.
      draws: resamples per bootstrap, and draws per test.
      prompts: number of prompts per task, for tables whose `n` counts something else (every token). None: `n` is the
        number of prompts.
      change: the table `results/change`, for the part of the variance that rows make and for tasks that changed by
        themselves.
      analyses: tables of the analyses beside the comparison, by their names in `results/`; what is absent is not
        measured.
      warnings: of data and settings (`warnings.data_warnings`, `warnings.pooling_warnings`). Those of scores and of
        convergence are found here.
      counters: what went wrong in training and was overcome, per model, as in `warnings.training_warnings`.

    Returns:
      JSON-serialisable dict without NaN: `competence`, `curves`, `curves_held_out`, `sections`, `half`, `shared`,
      `shift`, `clusters`, `unseen`, `specificity`, `scores`, `ceiling`, `variance`, `trust`, `profile`, `factors`,
      `convergence` (None without snapshots), `robustness` (the main results by the biased estimator), `panel` (whether
      other measures agree), `warnings` (a list of `RunWarning.record` with `touches`: claim -> the sentence that
      qualifies it), `findings` (a list of `claims.Finding`) and `summary` (the result in three sentences,
      `story.Story`). Curves show all tasks; every other result rests on competent tasks alone.

    Raises:
      Refusal: 3 if the table or the scores lack a column, or if the table has no block layer.
    """
    table, scores = _checked(table, scores)
    cells = cells_of(table)
    layers = block_layers(cells)
    # The upper half, fixed in advance: layers chosen by a rise would favour a rise.
    half = layers[len(layers) // 2 :]
    competence = find_competence(cells, scores)
    sound = cells.without(competence["incompetent"])
    results = {name: _by_estimator(sound, scores, layers, name, (seed, draws)) for name in REPORTED_ESTIMATORS}
    headline = results[HEADLINE]
    levels = task_levels(sound, half)
    analysis: dict[str, Any] = {
        "estimator": HEADLINE,
        "seed": seed,
        "draws": draws,
        "competence": competence,
        "curves": curve_rows(cells, held_out=False),
        "curves_held_out": curve_rows(cells, held_out=True),
        "half": {"layers": half, "name": f"layers {half[0]} to {half[-1]} (upper half)"},
        **{key: headline[key] for key in ("sections", "shared", "shift", "unseen", "specificity", "ceiling")},
        "clusters": {"ranking": rank_clusters(levels, scores), "differ": headline["differ"], "layers": half},
        "scores": headline["ability"],
        "variance": _variance(sound, levels, half, change, _template_errors(table, levels, half)),
        "trust": find_trust(table, prompts, cells),
        "robustness": results,
        "changed_tasks": _changed_tasks(change, half, list(levels.index)),
        "profile": find_profile(
            (analyses or {}).get("profile"),
            sound,
            {name: result["sections"] for name, result in results.items()},
            layers,
            seed,
            draws,
        ),
        "factors": find_factors(analyses, competence["incompetent"], half, seed, draws),
        "convergence": convergence_summary(analyses, competence["incompetent"]),
    }
    analysis["panel"] = find_robustness((analyses or {}).get("measures"), analysis, competence["incompetent"])
    analysis = to_json_types(analysis)
    evidence = gather_evidence(analysis)
    add_to_evidence(evidence, analysis["panel"])
    findings = judge(evidence)
    every = in_order(
        [
            *warnings,
            *score_warnings(cells, scores, competence),
            *training_warnings(convergence_summary(analyses), counters or {}),
        ]
    )
    behind = [tasks_behind(part, scores, layers, analyses) for part in (sound, cells)]
    touches = qualifications(findings, every, *behind)
    for finding in findings:
        finding["qualifications"] = [said[finding["id"]] for said in touches.values() if finding["id"] in said]
    analysis["warnings"] = to_json_types(
        [warning.record() | {"touches": touches.get(warning.kind, {})} for warning in every]
    )
    analysis["findings"] = to_json_types(findings)
    return analysis | {"summary": tell_story(analysis)}


def _by_estimator(
    cells: Cells, scores: pd.DataFrame, layers: list[str], estimator: str, random: tuple[int, int]
) -> dict[str, Any]:
    """Returns the results that both estimators give.

    Args:
      cells: of competent tasks only; there may be none.
      scores: the task scores.
      layers: all block outputs.
      estimator: `debiased` or `biased`.
      random: seed and draws.
    """
    seed, draws = random
    half, cluster_of = layers[len(layers) // 2 :], clusters_of(cells)
    mixture = cells.only(~cells.held_out)
    tuned = task_layer_matrix(cells, TUNED, estimator, False, layers)
    change = differences(cells, estimator, False, layers)
    tasks = list(change.index)
    clusters = [cluster_of[task] for task in tasks]
    ceiling = find_ceiling(mixture, tasks, layers, estimator)
    sections = find_sections(
        tuned.reindex(tasks).to_numpy(),
        change.to_numpy(),
        clusters,
        tuple(int(layer) for layer in layers),
        seed,
        draws,
        ceiling["by_layer"] if ceiling["measured"] else None,
    )
    values = mean_defined(change[half].to_numpy())
    shift = dict(estimate(values, clusters, (seed, 20), draws))
    shift |= _equivalence(values, clusters) | _share_of_ceiling(ceiling, half, values, tasks)
    shift["fallers"] = [
        {"task": tasks[index], "change": float(values[index])}
        for index in np.argsort(values, kind="stable")
        if values[index] < 0
    ]
    levels = task_levels(cells, half, estimator)
    return {
        "sections": sections,
        "shift": shift,
        "shared": _shared(change, sections, clusters, (seed, draws)),
        "differ": clusters_differ(levels, PRETRAINED),
        "unseen": find_unseen(cells, layers, half, estimator, seed, draws),
        "specificity": find_specificity(
            mixture, {task: cluster_of[task] for task in tasks}, (layers, half), estimator, seed, draws
        ),
        "ceiling": ceiling,
        "ability": find_ability(task_levels(cells, half, estimator, None), scores, tasks, seed, draws),
    }


def _equivalence(values: np.ndarray, clusters: list[str]) -> dict[str, Any]:
    """Tests that a change is within the margin of zero."""
    keep = np.isfinite(values)
    units = unit_means(values[keep], [name for name, kept in zip(clusters, keep, strict=True) if kept])
    return {"margin": MARGIN, "p_equivalence": equivalence_p(units, MARGIN), "interval_90": t_interval(units, 0.9)}


def _share_of_ceiling(ceiling: dict[str, Any], half: list[str], values: np.ndarray, tasks: list[str]) -> dict[str, Any]:
    """Returns the change, and the levels of E and of the base, as shares of the ceiling over the upper half."""
    index = [ceiling["layers"].index(layer) for layer in half]
    level = mean_defined(np.asarray(ceiling["by_layer"])[index][None])[0]
    seeded = values[[tasks.index(task) for task in ceiling["tasks"]]] if ceiling["tasks"] else np.array([np.nan])
    with np.errstate(invalid="ignore"):
        return {
            "ceiling": level,
            "share_of_ceiling": mean_defined(seeded[None])[0] / level,
            "tuned_share": mean_defined(np.asarray(ceiling["tuned_share"])[index][None])[0],
            "pretrained_share": mean_defined(np.asarray(ceiling["pretrained_share"])[index][None])[0],
        }


def _shared(
    change: pd.DataFrame, sections: dict[str, Any], clusters: list[str], random: tuple[int, int]
) -> dict[str, Any] | None:
    """Estimates the change in the layers before the transition, if there are any; None otherwise."""
    if not sections["is_transition"]:
        return None
    first, last = sections["shared"]
    layers = [layer for layer in change.columns if first <= int(layer) <= last]
    values = mean_defined(change[layers].to_numpy())
    return dict(estimate(values, clusters, (random[0], 21), random[1])) | _equivalence(values, clusters)


def _variance(
    cells: Cells,
    levels: pd.DataFrame,
    half: list[str],
    change: pd.DataFrame | None,
    template_errors: np.ndarray | None,
) -> list[dict[str, Any]]:
    errors = None
    if change is not None and "error_rows" in change:
        rows = change[(change["estimator"] == HEADLINE) & change["layer"].astype(str).isin(half)]
        errors = rows.groupby("task")["error_rows"].mean().reindex(levels.index).to_numpy(float)
    return variance_parts(cells, list(levels.index), list(levels["cluster"]), half, errors, template_errors)


def _template_errors(table: pd.DataFrame, levels: pd.DataFrame, half: list[str]) -> np.ndarray | None:
    """Returns the standard errors over templates of each task's CKA with E, [T, L]; None if there are none."""
    if "error_template" not in table.columns:
        return None
    errors = cells_of(table[table["control"] == table["task"]], "error_template")
    return kind_matrix(errors, TUNED, OWN, half, list(levels.index)).to_numpy()


def _changed_tasks(change: pd.DataFrame | None, half: list[str], tasks: list[str]) -> dict[str, list[str]] | None:
    """Returns the tasks with a significant change (q <= 0.05) in most layers of the upper half, by direction."""
    if change is None or change.empty:
        return None
    rows = change[(change["estimator"] == HEADLINE) & change["layer"].astype(str).isin(half)]
    rows = rows[rows["task"].isin(tasks)]
    significant = rows.assign(sign=np.sign(rows["change"].astype(float)) * (rows["q"].astype(float) <= 0.05))
    share = significant.groupby("task")["sign"].mean()
    return {
        "rise": sorted(share[share > 0.5].index),
        "fall": sorted(share[share < -0.5].index),
        "neither": sorted(share[share.abs() <= 0.5].index),
    }


def _checked(table: pd.DataFrame, scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the table with optional columns filled up, and the scores.

    Raises:
      Refusal: 3 for a missing column, or a table without a block layer.
    """
    for columns, frame, name, remedy in (
        (COLUMNS, table, "results table", "run the comparison stage again"),
        (SCORE_COLUMNS, scores, "task scores", "score the tasks again"),
    ):
        missing = [column for column in columns if column not in frame.columns]
        if missing and (len(frame) or frame is table):
            raise Refusal(BAD_INPUT, f"{name}: column '{missing[0]}' is missing; {remedy}")
    if not block_layers(table):
        raise Refusal(BAD_INPUT, "results table: it has no block output (layers 1..L); compare at least one layer")
    absent = [column for column in _OPTIONAL if column not in table.columns]
    table = table.assign(**{column: np.nan for column in absent})
    if not len(scores):
        return table, pd.DataFrame(columns=SCORE_COLUMNS)
    # Names as Python's own strings: columns of Arrow strings take several times as long to select from.
    return table, scores.astype(dict.fromkeys(("task", "cluster", "model", "metric"), object))
