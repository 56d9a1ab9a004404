"""Does a finding depend on the measure that shows it? Agreement of a panel of measures with each primary finding.

The rule is fixed in advance. A *view* is one form of the states: raw, standardised, without the top component, or in
the other pooling. A measure agrees with a finding if its mean over units has the finding's sign, and if at least
`MAJORITY` of the units have it too. A view shares the finding if at least `MAJORITY` of its measures agree, and if the
median rank correlation of their changes with CKA's, over all tasks and layers, is at least `LEAST_CORRELATION`. A
finding that any view does not share is not `supported`: it may be made by a few directions, or by the place that is
pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.claims import Evidence
from mossa_jax.findings.curves import block_layers, mean_defined
from mossa_jax.findings.units import t_interval, unit_means

MAJORITY = 2 / 3
"""Share of the measures, and of the units, that must have the finding's sign."""

LEAST_CORRELATION = 0.5
"""Least median rank correlation with CKA over tasks and layers."""

MIN_CELLS = 6
"""Fewer tasks and layers have no rank correlation; the signs alone then decide."""

RESOLUTION = 1e-6
"""Values with less spread than this are equal but for rounding, and have no ranks."""

REFERENCE = ("cka_debiased", "raw")
"""Measure and variant, in the comparison's pooling, that the others are held against."""

VIEWS = {
    "raw": "states as they are",
    "standardised": "states with standardised dimensions",
    "top_removed": "states without their top component",
    "last": "states of the last token",
    "mean": "states averaged over tokens",
}
"""Variant, or the other pooling -> what the view is called."""

PRIMARY_FINDINGS = ("transition", "shift", "specificity", "unseen")

FOREIGN = "foreign"
"""E against a foreign control, beside `pretrained` and `tuned` against the task's own."""

Matrices = Mapping[str, pd.DataFrame]
"""`pretrained`, `tuned`, `foreign` -> [tasks, layers] of one measure."""


def find_robustness(
    measures: pd.DataFrame | None, analysis: dict[str, Any], incompetent: Sequence[str]
) -> dict[str, Any]:
    """Holds every measure of the panel against the primary findings.

    Args:
      measures: the table `results/measures`; None if it was not made.
      analysis: the results of the comparison: `sections`, `half`, `shift`, `specificity`, `unseen`.
      incompetent: tasks that are left out.

    Returns:
      `measured`; `rule`: its numbers; `tasks`, `layers`, `prompts`: of the subset; `changes`: of each measure in each
      view over the mixture's tasks, `view, measure, mean, low, high`, the last three by layer (of all tasks if none is
      competent); `findings`: for each
      primary finding that is measured on the subset `direction`, `n_tasks`, `n_units`, `views` (`view, name, agree,
      measures, correlation, shares`), `members` (`view, measure, mean, low, high, units, n_units, n_tasks, correlation,
      agrees`), `shared` and `sentence`.
    """
    rule = {"majority": MAJORITY, "least_correlation": LEAST_CORRELATION}
    result: dict[str, Any] = {"measured": False, "rule": rule, "findings": {}}
    if measures is None or measures.empty:
        return result
    measures = measures.assign(layer=measures["layer"].astype(str), view=_views(measures))
    sound = measures[~measures["task"].isin(incompetent)]
    result |= {
        "measured": True,
        "tasks": sorted(sound["task"].unique()),
        "layers": block_layers(measures),
        "prompts": int(measures["n"].max()),
    }
    shown = sound if len(sound) else measures
    result["changes"] = _changes(shown[~shown["held_out"].astype(bool)], result["layers"])
    for name in PRIMARY_FINDINGS:
        statistic = _statistic(name, analysis, result["layers"])
        if statistic is not None and len(sound):
            direction, value, cells = statistic
            held_out = name == "unseen"
            rows = sound[sound["held_out"].astype(bool) == held_out]
            finding = _hold(rows, direction, value, cells)
            if finding is not None:
                result["findings"][name] = finding | {"sentence": _sentence(finding)}
    return result


def add_to_evidence(evidence: dict[str, Evidence], robustness: dict[str, Any]) -> None:
    """Adds to each primary finding what the panel says; a view that does not share it is a reservation."""
    for name, finding in robustness["findings"].items():
        item = evidence[name]
        if item.is_measured:
            if finding["shared"] or item.direction < 0:
                item.sentence = f"{item.sentence} {finding['sentence']}"
            else:
                item.reservations.append(finding["sentence"])


def _views(measures: pd.DataFrame) -> pd.Series:
    """Returns the view of each row: its variant, and the pooling where it is not the comparison's."""
    # The comparison's pooling has all variants, the other one raw states alone.
    variants = measures.groupby("pool")["variant"].nunique()
    main = variants.index[int(np.argmax(variants))]
    pool, variant = measures["pool"].astype(str), measures["variant"].astype(str)
    return variant.where(pool == main, pool)


def _changes(rows: pd.DataFrame, layers: list[str]) -> list[dict[str, Any]]:
    """Averages the change of every member over units, layer by layer."""
    tasks, changes = sorted(rows["task"].unique()), []
    clusters = _clusters(rows, tasks)
    for (view, measure), matrices in _members(rows, layers).items():
        units = unit_means(_change(matrices).to_numpy(float), clusters)
        intervals = [t_interval(units[:, k]) for k in range(len(layers))]
        low, high = zip(*intervals, strict=True)
        mean = mean_defined(units, axis=0)
        changes.append({"view": view, "measure": measure, "mean": list(mean), "low": list(low), "high": list(high)})
    return changes


def _clusters(rows: pd.DataFrame, tasks: list[str]) -> list[str]:
    cluster_of = rows.drop_duplicates("task").set_index("task")["cluster"]
    return [str(cluster_of[task]) for task in tasks]


Statistic = tuple[int, Callable[[Matrices], np.ndarray], Callable[[Matrices], pd.DataFrame]]
"""Sign of the finding; the value of every task; what is ranked, [tasks, layers]."""


def _statistic(name: str, analysis: dict[str, Any], layers: list[str]) -> Statistic | None:
    """Returns what a finding says of a measure; None if the run or the subset has nothing on it."""
    upper = [layer for layer in analysis["half"]["layers"] if layer in layers]
    if name == "transition":
        fit = analysis["sections"]["fit"]
        if fit is None:
            return None
        before = [layer for layer in layers if int(layer) < fit["start"]["layer"]]
        after = [layer for layer in layers if int(layer) >= fit["end"]["layer"]]
        if not before or not after:
            return None

        def rise(matrices: Matrices) -> np.ndarray:
            change = _change(matrices)
            return mean_defined(change[after].to_numpy()) - mean_defined(change[before].to_numpy())

        return _sign(fit["rise"]), rise, _change
    means = {
        "shift": analysis["shift"]["mean"],
        "unseen": analysis["unseen"]["upper"]["mean"] if analysis["unseen"]["tasks"] else None,
        "specificity": analysis["specificity"]["tuned"]["mean"] if analysis["specificity"]["measured"] else None,
    }
    mean = means[name]
    if mean is None or not np.isfinite(mean) or not upper:
        return None
    cells = _own_minus_foreign if name == "specificity" else _change

    def level(matrices: Matrices) -> np.ndarray:
        return mean_defined(cells(matrices)[upper].to_numpy())

    return _sign(mean), level, cells


def _sign(value: float) -> int:
    return 1 if value >= 0 else -1


def _change(matrices: Matrices) -> pd.DataFrame:
    return matrices[TUNED] - matrices[PRETRAINED]


def _own_minus_foreign(matrices: Matrices) -> pd.DataFrame:
    return matrices[TUNED] - matrices[FOREIGN]


def _hold(
    rows: pd.DataFrame,
    direction: int,
    value: Callable[[Matrices], np.ndarray],
    cells: Callable[[Matrices], pd.DataFrame],
) -> dict[str, Any] | None:
    """Holds all members of the panel against one finding; None if none has a value."""
    tasks = sorted(rows["task"].unique())
    clusters = _clusters(rows, tasks)
    members, ranked = [], {}
    for (view, measure), matrices in _members(rows, block_layers(rows)).items():
        values, ranked[view, measure] = value(matrices), cells(matrices).to_numpy(float)
        units = unit_means(values, clusters)
        units = units[np.isfinite(units)]
        if units.size:
            low, high = t_interval(units)
            members.append(
                {
                    "view": view,
                    "measure": measure,
                    "mean": float(units.mean()),
                    "low": low,
                    "high": high,
                    "units": int((np.sign(units) == direction).sum()),
                    "n_units": units.size,
                    "n_tasks": int(np.isfinite(values).sum()),
                }
            )
    if not members:
        return None
    reference = ranked.get((REFERENCE[1], REFERENCE[0]))
    for member in members:
        member["correlation"] = _rank_correlation(ranked[member["view"], member["measure"]], reference)
        has_units = member["units"] >= MAJORITY * member["n_units"]
        member["agrees"] = bool(_sign(member["mean"]) == direction and has_units)
    views = [_judge_view(view, members) for view in dict.fromkeys(member["view"] for member in members)]
    return {
        "direction": direction,
        "n_tasks": max(member["n_tasks"] for member in members),
        "n_units": max(member["n_units"] for member in members),
        "views": views,
        "members": members,
        "shared": all(view["shares"] for view in views),
    }


def _members(rows: pd.DataFrame, layers: list[str]) -> dict[tuple[str, str], Matrices]:
    """Spreads the rows of each view and measure out over tasks and layers, for each pair of models."""
    tasks = sorted(rows["task"].unique())
    is_own = rows["control"] == rows["task"]
    pair = rows["experimental"].where(is_own, rows["experimental"].astype(str) + " foreign")
    pairs = {PRETRAINED: PRETRAINED, TUNED: TUNED, FOREIGN: f"{TUNED} foreign"}
    keys = ["view", "measure", "pair"]
    wide = rows.assign(pair=pair).pivot_table(index=[*keys, "task"], columns="layer", values="value", aggfunc="mean")
    blocks = {key: block.droplevel(keys) for key, block in wide.groupby(level=keys)}
    absent = pd.DataFrame(index=tasks, columns=layers, dtype=float)
    return {
        (view, measure): {
            name: blocks.get((view, measure, pair), absent).reindex(index=tasks, columns=layers).astype(float)
            for name, pair in pairs.items()
        }
        for view, measure in rows[["view", "measure"]].drop_duplicates().itertuples(index=False)
    }


def _rank_correlation(values: Float[np.ndarray, "T K"], reference: Float[np.ndarray, "T K"] | None) -> float | None:
    """Returns Spearman's rank correlation over the cells that both have; None with too few, or without a spread."""
    from scipy.stats import spearmanr

    if reference is None:
        return None
    both = np.isfinite(values) & np.isfinite(reference)
    a, b = values[both], reference[both]
    if len(a) < MIN_CELLS or np.ptp(a) < RESOLUTION or np.ptp(b) < RESOLUTION:
        return None
    return float(spearmanr(a, b)[0])


def _judge_view(view: str, members: list[dict[str, Any]]) -> dict[str, Any]:
    own = [member for member in members if member["view"] == view]
    agree = sum(member["agrees"] for member in own)
    # The reference agrees with itself, which is no evidence.
    others = [member for member in own if (member["measure"], view) != REFERENCE]
    correlations = [member["correlation"] for member in others if member["correlation"] is not None]
    correlation = float(np.median(correlations)) if correlations else None
    is_ranked_alike = correlation is None or correlation >= LEAST_CORRELATION
    return {
        "view": view,
        "name": VIEWS[view],
        "agree": agree,
        "measures": len(own),
        "correlation": correlation,
        "shares": bool(agree >= MAJORITY * len(own) and is_ranked_alike),
    }


def _sentence(finding: dict[str, Any]) -> str:
    """Says which views share a finding, with their numbers."""
    members = finding["members"]
    agree, total = sum(member["agrees"] for member in members), len(members)
    tasks = f"{finding['n_tasks']} task{'s' if finding['n_tasks'] != 1 else ''}"
    if finding["shared"]:
        return (
            f"The panel of measures agrees: {agree} of {total} in sign on {tasks}, and every view of the states "
            "shares the finding."
        )
    missing = [view for view in finding["views"] if not view["shares"]]
    parts = [f"{view['name']} ({view['agree']} of {view['measures']}{_correlation(view)})" for view in missing]
    return f"Of the panel of measures {agree} of {total} agree in sign on {tasks}; not shared by: {', '.join(parts)}."


def _correlation(view: dict[str, Any]) -> str:
    return "" if view["correlation"] is None else f", rank correlation with CKA {view['correlation']:+.2f}"
