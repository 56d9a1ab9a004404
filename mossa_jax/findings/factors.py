"""What similarity and its change are made of: template, answer, item and the rest; and what is left within the answer.

Last-token states carry the answer that comes next, so two models that both know it are similar for that reason. The
change within the answer says whether tuning brings E nearer to the specialists beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import TUNED
from mossa_jax.findings.claims import Evidence
from mossa_jax.findings.curves import EXPERIMENTALS, layer_order, mean_defined
from mossa_jax.findings.layer_means import LayerMeans, layer_means, sound_rows, spread
from mossa_jax.findings.units import Estimate, estimate
from mossa_jax.findings.wording import counted
from mossa_jax.similarity.factor_sums import WITHIN
from mossa_jax.similarity.projections import FACTORS

EQUAL_ANSWERS = ("class", "first token")
"""What stands for an answer whose levels hold equal answers, or answers that begin alike."""

LEAST_SHARE = 0.02
"""Parts of CKA below this are not worth a word."""


def find_factors(
    analyses: Mapping[str, pd.DataFrame] | None,
    incompetent: Sequence[str],
    half: Sequence[str],
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, Any]:
    """Averages the parts of CKA and of its change over units, in the upper half of the network.

    Args:
      analyses: tables of the analyses by name; `factors` and `within` are looked at.
      incompetent: tasks that are left out.
      half: the layers of the upper half.
      seed: of the sign flips.
      draws: number of flips.

    Returns:
      `measured`; `n_tasks`; `parts`: by factor, estimates `pretrained`, `tuned` and `change` over the competent tasks
      of the mixture, where a factor that a task does not tell apart counts as no part of it; `within`: by what rows are
      centred within, the same three over the tasks where that is defined within the answer and answers have levels;
      `task_changes`: of these tasks, with their intervals by layer averaged; `left_out`: task -> why it is not among
      them.
    """
    tables = analyses or {}
    if not {"factors", "within"} <= set(tables):
        return {"measured": False}
    parts = sound_rows(tables["factors"], incompetent)
    within = sound_rows(tables["within"], incompetent)
    parts, within = (table[table["layer"].astype(str).isin(half)] for table in (parts, within))
    found, left_out = defined_tasks(within)
    within = within[within["task"].isin(found)]
    return {
        "measured": bool(len(parts)),
        "n_tasks": int(parts["task"].nunique()),
        "parts": {
            name: _three(_filled(parts[parts["factor"] == name]), half, (seed, 80, at), draws)
            for at, name in enumerate(FACTORS)
        },
        "within": {
            name: _three(within[within["within"] == name], half, (seed, 81, at), draws)
            for at, name in enumerate(WITHIN)
        },
        "task_changes": _task_changes(within),
        "left_out": left_out,
    }


def defined_tasks(within: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    """Returns the tasks where CKA within equal answers is defined in all layers, and why the others are not.

    Args:
      within: rows of `results/within`.
    """
    found, left_out = [], {}
    for task, rows in within.groupby("task", sort=True):
        kind = str(rows["answer"].iloc[0])
        # Within the template needs one, and the claim does not.
        reasons = [reason for reason in rows.loc[rows["within"].isin(["none", "answer"]), "undefined"] if reason]
        if kind not in EQUAL_ANSWERS:
            left_out[str(task)] = "too few prompts have equal answers"
        elif reasons:
            left_out[str(task)] = str(reasons[0])
        else:
            found.append(str(task))
    return found, left_out


def _filled(rows: pd.DataFrame) -> pd.DataFrame:
    """Counts a factor that is not told apart as no part of a similarity, if some task tells it apart."""
    if rows["cka"].isna().all():
        return rows
    is_defined = rows["whole"].notna()
    filled = rows.assign(cka=rows["cka"].where(rows["cka"].notna() | ~is_defined, 0.0))
    is_tuned = is_defined & (rows["experimental"] == TUNED)
    return filled.assign(change=rows["change"].where(rows["change"].notna() | ~is_tuned, 0.0))


def _three(rows: pd.DataFrame, half: Sequence[str], seed: tuple[int, ...], draws: int) -> dict[str, Estimate]:
    """Returns the estimates of the base, of E and of the change."""
    estimates = {}
    for at, name in enumerate((*EXPERIMENTALS, "change")):
        own = rows[rows["experimental"] == (TUNED if name == "change" else name)]
        column = "change" if name == "change" else "cka"
        values, clusters = spread(own.assign(layer=own["layer"].astype(str)), column, list(half))
        estimates[name] = estimate(mean_defined(values) if len(values) else np.zeros(0), clusters, (*seed, at), draws)
    return estimates


def _task_changes(within: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the change of each task, for all rows and within the answer, averaged over layers.

    Layers share their prompts, so the interval is as wide as the mean of theirs.
    """
    tuned = within[within["experimental"] == TUNED]
    rows = []
    for (cluster, task), own in tuned.groupby(["cluster", "task"], sort=True):
        row: dict[str, Any] = {"task": task, "cluster": cluster}
        for name, each in own.groupby("within"):
            row[name] = {
                key: float(each[column].mean())
                for key, column in (("mean", "change"), ("low", "change_low"), ("high", "change_high"))
            }
        rows.append(row)
    return rows


def layer_parts(
    factors: pd.DataFrame, incompetent: Sequence[str], experimental: str
) -> tuple[list[str], dict[str, LayerMeans]]:
    """Averages the parts of one experimental model over units, layer by layer.

    Args:
      factors: rows of `results/factors`.
      incompetent: tasks that are left out.
      experimental: `pretrained` or `tuned`.

    Returns:
      The layers, and by factor their means.
    """
    layers = layer_order(factors)
    rows = sound_rows(factors, incompetent)
    rows = _filled(rows[rows["experimental"] == experimental])
    return layers, {name: layer_means(*spread(rows[rows["factor"] == name], "cka", layers)) for name in FACTORS}


def within_evidence(factors: dict[str, Any]) -> Evidence:
    """Returns what the data say about the claim that tuning adds similarity among prompts with the same answer.

    Args:
      factors: from `find_factors`, in JSON's own types.
    """
    if not factors["measured"]:
        return Evidence("What similarities are made of was not measured.", is_measured=False)
    change = factors["within"]["answer"]["change"]
    if change["mean"] is None:
        return Evidence("In no competent task do enough prompts have the same answer.", is_measured=False)
    every, both = factors["within"]["none"]["change"], factors["within"]["both"]["change"]
    beside = "" if both["mean"] is None else f", and with the same template and answer {_with_interval(both)}"
    sentence = (
        f"Among prompts with the same answer, tuned minus pre-trained CKA with each task's specialist is "
        f"{_with_interval(change)} in the upper half, over {_units(change)} ({counted(change['n_tasks'], 'task')}: "
        f"{change['rises']} rise, {change['falls']} fall); among all prompts of these tasks it is "
        f"{_with_interval(every)}{beside}."
    )
    figures = {**change, "all_rows": every, "template_and_answer": both, "left_out": factors["left_out"]}
    if change["p"] is None:
        return Evidence(sentence, figures, too_few=change["reason"])
    sentence += f" By sign flips of the units within the answer {_p(change['p'])}."
    return Evidence(sentence, figures, change["p"], 1 if change["mean"] >= 0 else -1, change["least_p"])


def parts_sentence(factors: dict[str, Any]) -> str:
    """Says in one sentence what the change of the upper half is made of; empty if it was not measured.

    Args:
      factors: from `find_factors`, in JSON's own types or not.
    """
    if not factors["measured"]:
        return ""
    means = {name: factors["parts"][name]["change"]["mean"] for name in FACTORS}
    changes = {name: mean for name, mean in means.items() if mean is not None and np.isfinite(mean)}
    if not changes:
        return ""
    order = sorted(changes, key=lambda name: -abs(changes[name]))
    large = [f"{name} {changes[name]:+.3f}" for name in order if abs(changes[name]) >= LEAST_SHARE]
    small = [name for name in order if abs(changes[name]) < LEAST_SHARE]
    sentence = f"The change of {sum(changes.values()):+.3f} is made of: {', '.join(large) or 'no large part'}"
    if not small:
        return f"{sentence}."
    verb = "is" if len(small) == 1 else "are"
    each = " each" if len(small) > 1 else ""
    names = " and ".join([", ".join(small[:-1]), small[-1]]) if len(small) > 1 else small[0]
    return f"{sentence}; {names} {verb} below {LEAST_SHARE}{each}."


def _with_interval(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['mean']:+.3f}"
    return f"{estimate['mean']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"


def _units(figures: dict[str, Any]) -> str:
    return counted(figures["n_units"], figures["unit"].removesuffix("s"))


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
