"""How much runs differ, beside the difference that seeds alone make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.cell_differences import cell_differences
from mossa_jax.findings.curves import REPORTED_ESTIMATORS
from mossa_jax.findings.run_tables import CHANGE, RunTables, is_seed

RUNS, SPECIALIST_SEEDS, E_SEEDS, RUN_SEEDS = "runs", "seeds of a specialist", "seeds of E", "seeds of a whole run"
"""Kinds of differences: two runs; two seeds of one model within a run; two runs that differ in their seed alone."""

_WAY_OUT = "tune with tuning.control_seeds=2, or add a run with another seed"
_WITHOUT_E = "; the seed of E is not in that figure, which a further run with another seed would show"
_SIZE_COLUMNS = ["kind", "first", "second", "quantity", "estimator", "mean_absolute", "n_tasks", "same_prompts"]


def measure_sizes(
    runs: Sequence[RunTables], pairs: Sequence[pd.DataFrame], tasks: list[str], free: Sequence[str]
) -> pd.DataFrame:
    """Measures mean absolute differences over block outputs: of runs, and of seeds within and between them.

    Args:
      runs: the first is the reference.
      pairs: the cell differences of each other run.
      tasks: those that count in differences of runs.
      free: as in `differ_in_seed_alone`.

    Returns:
      As in `between_runs.Comparison.sizes`.
    """
    rows: list[dict[str, Any]] = []
    for run, cells in zip(runs[1:], pairs, strict=True):
        rows += _run_sizes(runs[0], run, cells, tasks, RUNS)
    for run in runs:
        rows += _seed_sizes(run)
    compared = {run.name: cells for run, cells in zip(runs[1:], pairs, strict=True)}
    for first, second in combinations(runs, 2):
        if differ_in_seed_alone(first.settings, second.settings, free):
            is_known = first is runs[0]
            cells = compared[second.name] if is_known else cell_differences(first, second)
            rows += _run_sizes(first, second, cells, tasks, RUN_SEEDS)
    return pd.DataFrame(rows, columns=_SIZE_COLUMNS)


def differ_in_seed_alone(first: Mapping[str, Any], second: Mapping[str, Any], free: Sequence[str] = ()) -> bool:
    """Whether two configurations differ in `seed`, and in no other field that a result depends on.

    Args:
      first: dotted names of fields -> values.
      second: of the other run.
      free: fields, or groups of fields, that no result depends on.
    """
    names = {name for name in {*first, *second} if first.get(name) != second.get(name)}
    return {name for name in names if not any(name == each or name.startswith(f"{each}.") for each in free)} == {"seed"}


def _run_sizes(
    first: RunTables, second: RunTables, cells: pd.DataFrame, tasks: list[str], kind: str
) -> list[dict[str, Any]]:
    cells = cells[cells["layer"].astype(str).str.isdigit() & cells["task"].isin(tasks) & cells["difference"].notna()]
    about = {"kind": kind, "first": first.name, "second": second.name}
    return [
        about
        | {"quantity": quantity, "estimator": estimator}
        | {"mean_absolute": float(rows["difference"].abs().mean()), "n_tasks": rows["task"].nunique()}
        | {"same_prompts": bool(rows["same_prompts"].all())}
        for (quantity, estimator), rows in cells.groupby(["quantity", "estimator"], sort=False)
    ]


def _seed_sizes(run: RunTables) -> list[dict[str, Any]]:
    """Measures what pairs of seeds of one specialist, and of E, make of the same cells of a run."""
    table, sizes = run.table, []
    own = table[table["control"] == table["task"]]
    further = table[is_seed(table)]
    seeds_of_e = own[own["experimental"].str.fullmatch(rf"{TUNED}(\.seed\d+)?")]
    for estimator in REPORTED_ESTIMATORS:
        with_base, with_e = (
            _by_member(pd.concat([rows[rows["experimental"] == name] for rows in (own, further)]), "control", estimator)
            for name in (PRETRAINED, TUNED)
        )
        # With one base and one specialist, what a seed of E changes in its CKA it changes in d as well.
        between_e = _by_member(seeds_of_e, "experimental", estimator)
        for kind, quantity, values in (
            (SPECIALIST_SEEDS, CHANGE, with_e - with_base),
            (SPECIALIST_SEEDS, PRETRAINED, with_base),
            (SPECIALIST_SEEDS, TUNED, with_e),
            (E_SEEDS, CHANGE, between_e),
            (E_SEEDS, TUNED, between_e),
        ):
            mean_absolute, n_tasks = _mean_of_pairs(values)
            if n_tasks:
                place = {"kind": kind, "first": run.name, "second": "", "quantity": quantity, "estimator": estimator}
                sizes.append(place | {"mean_absolute": mean_absolute, "n_tasks": n_tasks, "same_prompts": True})
    return sizes


def _by_member(rows: pd.DataFrame, member: str, estimator: str) -> pd.Series:
    """Returns CKA at block outputs, indexed by task, layer and the column that names the seed."""
    keep = (rows["estimator"] == estimator) & rows["layer"].astype(str).str.isdigit()
    return rows[keep].set_index(["task", "layer", member])["cka"].astype(float)


def _mean_of_pairs(values: pd.Series) -> tuple[float, int]:
    """Returns the mean absolute difference of two seeds over tasks and layers, and the number of tasks with seeds."""
    sums: list[float] = []
    tasks = set()
    for (task, _), cell in values.dropna().groupby(level=[0, 1], sort=False):
        if len(cell) > 1:
            sums.append(float(np.mean([abs(a - b) for a, b in combinations(cell.to_numpy(), 2)])))
            tasks.add(task)
    return (float(np.mean(sums)) if sums else float("nan")), len(tasks)


def size_sentence(reference: RunTables, run: RunTables, sizes: pd.DataFrame) -> str:
    """Says how much two runs differ in the change, and how much seeds alone do; empty if they share no cells."""
    rows = sizes[(sizes["quantity"] == CHANGE) & (sizes["estimator"] == REPORTED_ESTIMATORS[0])]
    is_pair = (rows["first"] == reference.name) & (rows["second"] == run.name)
    pair = rows[is_pair & (rows["kind"] == RUNS)]
    if pair.empty:
        return ""
    size, tasks = float(pair["mean_absolute"].iloc[0]), int(pair["n_tasks"].iloc[0])
    sentence = (
        f"{reference.name} and {run.name} differ by {size:.3f} in the change (mean absolute over "
        f"{tasks} task{'' if tasks == 1 else 's'} and {len(run.blocks)} layers)"
    )
    if size == 0:
        return f"{sentence}: no cell differs."
    noises = {}
    within = rows[(rows["kind"] == SPECIALIST_SEEDS) & rows["first"].isin([reference.name, run.name])]
    if len(within):
        noises["two seeds of one specialist"] = float(np.average(within["mean_absolute"], weights=within["n_tasks"]))
    whole = rows[(rows["kind"] == RUN_SEEDS) & ~is_pair]
    if len(whole):
        pairs = ", ".join(f"{first} and {second}" for first, second in whole[["first", "second"]].to_numpy())
        prompts = "" if whole["same_prompts"].all() else ", with other test prompts"
        noises[f"runs that differ in their seed alone ({pairs}{prompts})"] = float(whole["mean_absolute"].mean())
    sentence += "".join([f"; {name} by {noise:.3f}" for name, noise in noises.items()])
    if (is_pair & (rows["kind"] == RUN_SEEDS)).any():
        return f"{sentence}. They differ in their seed alone: this is the noise that other differences have to exceed."
    if not noises:
        return f"{sentence}. What seeds alone make was not measured: {_WAY_OUT}."
    noise = list(noises.values())[-1]
    if size <= noise:
        return f"{sentence}. Seeds alone make as much."
    share = f"That is {size / noise:.1f} times what seeds alone make" if noise else "Seeds alone make none of it"
    return f"{sentence}. {share}{'' if len(whole) else _WITHOUT_E}."
