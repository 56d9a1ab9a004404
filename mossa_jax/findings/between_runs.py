"""Several runs beside one another: curves on relative depth, and differences of their cells with intervals.

The first run is the reference: every other run is compared with it. Three questions are kept apart. *Where* do two runs
differ: every cell with an interval over rows and seeds. *Do they differ over tasks*: paired differences, with whole
clusters as units. *How much is that*: the mean absolute difference, beside the one that seeds alone make.

Shape letters: T tasks, K layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.cell_differences import are_equal, cell_differences
from mossa_jax.findings.cells import OWN, Cells, cells_of
from mossa_jax.findings.curves import REPORTED_ESTIMATORS, clusters_of, mean_defined
from mossa_jax.findings.run_sizes import measure_sizes, size_sentence
from mossa_jax.findings.run_tables import CHANGE, QUANTITIES, RunTables, seed_freedom
from mossa_jax.findings.units import estimate
from mossa_jax.findings.wording import counted

UPPER_HALF = "upper half"

_CONSERVATIVE = (
    "where the test prompts are the same, intervals of cells still count the rows of the runs as independent, and are "
    "wider than need be; --paired runs the models again and pairs the rows."
)
_DRAWS = 2000
_MAX_NAMES = 6


@dataclass(frozen=True)
class Comparison:
    """Several runs beside one another.

    Attributes:
      names: of the runs; the first is the reference.
      tasks: those that means and curves rest on: in the mixture of all runs, and competent in all.
      curves: columns `run, layer, relative_depth, median, q1, q3, n_tasks`: d_t(l) over tasks, debiased.
      cells: columns `run, task, cluster, held_out, quantity, layer, estimator, reference_value, value, difference, low,
        high, p, q, same_prompts, is_paired`: run less reference. Empty for runs of other layers or tasks.
      means: columns `run, quantity, estimator, layers` and those of `units.Estimate`: differences averaged over units.
      sizes: columns `kind, first, second, quantity, estimator, mean_absolute, n_tasks, same_prompts`, over the
        block outputs.
      sentences: what the sizes say.
      notes: what a reader should know before trusting it, one sentence each.
    """

    names: list[str]
    tasks: list[str]
    curves: pd.DataFrame
    cells: pd.DataFrame
    means: pd.DataFrame
    sizes: pd.DataFrame
    sentences: list[str]
    notes: list[str]


def compare_runs(
    runs: Sequence[RunTables], free: Sequence[str] = (), paired: Mapping[str, pd.DataFrame] | None = None
) -> Comparison:
    """Compares several runs with the first of them.

    Args:
      runs: at least two, with different names.
      free: fields of the configuration that no result depends on.
      paired: name of a run -> errors of its differences over the rows that it shares with the first, as in
        `cell_differences`; runs without any have intervals that count rows as independent.
    """
    reference, others = runs[0], runs[1:]
    tasks, notes = _shared_tasks(runs)
    own_tasks = [tasks or [task for task in clusters_of(run.table) if task not in run.incompetent] for run in runs]
    curves = pd.concat([_curve(run, names) for run, names in zip(runs, own_tasks, strict=True)], ignore_index=True)
    pairs = [cell_differences(reference, run, (paired or {}).get(run.name)) for run in others]
    notes += _notes_on_pairs(reference, others, pairs)
    means = [mean_differences(reference, run, tasks) for run in others] if tasks else []
    sizes = measure_sizes(runs, pairs, tasks, free)
    return Comparison(
        names=[run.name for run in runs],
        tasks=tasks,
        curves=curves,
        cells=_stacked(pairs),
        means=_stacked(means) if means else pd.DataFrame(columns=_MEAN_COLUMNS),
        sizes=sizes,
        sentences=[sentence for run in others if (sentence := size_sentence(reference, run, sizes))],
        notes=notes,
    )


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Joins tables with the same columns; empty ones, whose columns have no type, only if all are empty."""
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def _shared_tasks(runs: Sequence[RunTables]) -> tuple[list[str], list[str]]:
    """Returns the tasks that means rest on, and what to know about them."""
    notes = []
    tasks = [clusters_of(run.table) for run in runs]
    shared = [task for task in tasks[0] if all(task in names for names in tasks)]
    if not shared:
        return [], ["No task is in all of these runs: each curve is over its own run's tasks."]
    unlike = [task for task in shared if any(task in run.held_out for run in runs)]
    mixture = [task for task in shared if task not in unlike]
    if unlike:
        notes.append(
            f"{counted(len(unlike), 'task')} held out of the mixture of some run: in the cells, not in means and "
            f"curves ({_names(unlike)})."
        )
    competent = [task for task in mixture if not any(task in run.incompetent for run in runs)]
    if mixture and not competent:
        notes.append(
            "In no shared task do the specialists of all runs use their prompts, so means and curves are over all "
            f"{counted(len(mixture), 'shared task')}: specialists that learned nothing are near the base for that "
            "reason alone."
        )
    elif len(competent) < len(mixture):
        left_out = [task for task in mixture if task not in competent]
        notes.append(f"Left out of means and curves, since a specialist does not use its prompts: {_names(left_out)}.")
    return competent or mixture, notes


def _notes_on_pairs(reference: RunTables, others: Sequence[RunTables], pairs: Sequence[pd.DataFrame]) -> list[str]:
    """Says what limits the cell differences of each run from the reference; what holds for several stands once."""
    runs: dict[str, list[str]] = {}
    for run, cells in zip(others, pairs, strict=True):
        for sentence in _pair_notes(reference, run, cells):
            runs.setdefault(sentence, []).append(run.name)
    return [
        f"{reference.name} {'and' if len(names) == 1 else 'beside each of'} {', '.join(names)}: {sentence}"
        for sentence, names in runs.items()
    ]


def _pair_notes(reference: RunTables, run: RunTables, cells: pd.DataFrame) -> list[str]:
    if cells.empty:
        layers = len(reference.blocks), len(run.blocks)
        if layers[0] != layers[1]:
            return [f"{layers[0]} and {layers[1]} layers, so no cells are compared; see the curves."]
        return ["no shared task, so no cells are compared."]
    if are_equal(cells):
        return ["equal in every cell, so all differences and their intervals are exactly 0."]
    notes = []
    other = sorted(set(cells.loc[~cells["same_prompts"], "task"]))
    is_whole = len(other) == cells["task"].nunique()
    if other:
        share = "all shared tasks" if is_whole else _names(other)
        notes.append(f"other test prompts in {share}, so these differences contain two draws of prompts.")
    if cells["low"].isna().all():
        notes.append("no intervals of cells, since sums were streamed and no rows kept.")
    elif not (cells["is_paired"] | ~cells["same_prompts"] | cells["low"].isna()).all():
        notes.append(_CONSERVATIVE)
    if not (_has_seeds(reference) or _has_seeds(run)):
        notes.append("no specialist has a second seed, so intervals of cells are over rows alone.")
    elif not (_has_seeds(reference) and _has_seeds(run)):
        seeded = reference.name if _has_seeds(reference) else run.name
        notes.append(f"only {seeded} has second seeds of specialists; their noise stands for both runs.")
    return [*notes, "E's own seed is in no interval of a cell; only runs that differ in their seed alone show it."]


def _has_seeds(run: RunTables) -> bool:
    return bool(seed_freedom(run.table)["seed_freedom"].sum())


def _matrix(cells: Cells, quantity: str, estimator: str, layers: list[str], tasks: list[str]) -> np.ndarray:
    """Returns a quantity for each task's own specialist, [T, K] float64."""
    names = (TUNED, PRETRAINED) if quantity == CHANGE else (quantity,)
    values = [cells.matrix((name, OWN, estimator), tasks, layers) for name in names]
    return values[0] - values[1] if quantity == CHANGE else values[0]


_MEAN_COLUMNS = [
    "run", "quantity", "estimator", "layers", "mean", "low", "high", "p", "unit", "n_units", "n_tasks", "rises",
    "falls", "least_effect", "reason",
]  # fmt: skip


def mean_differences(reference: RunTables, run: RunTables, tasks: list[str]) -> pd.DataFrame:
    """Averages paired differences of tasks over units: run less reference, with t intervals over whole clusters.

    A task's rows and seeds are within the spread of the units, so this needs no assumption about them.

    Args:
      reference: the run that is subtracted.
      run: the other run; its layers may be others.
      tasks: of both.

    Returns:
      As in `Comparison.means`. The upper half of either run, fixed in advance, is tested; single layers, where both
      runs have the same, have intervals alone.
    """
    cluster_of = clusters_of(reference.table)
    clusters = [cluster_of[task] for task in tasks]
    both, blocks = [cells_of(each.table) for each in (reference, run)], [each.blocks for each in (reference, run)]
    spans = {UPPER_HALF: [names[len(names) // 2 :] for names in blocks]}
    if blocks[0] == blocks[1]:
        spans |= {layer: [[layer], [layer]] for layer in run.blocks}
    rows = []
    for quantity in QUANTITIES:
        for estimator in REPORTED_ESTIMATORS:
            for name, layers in spans.items():
                before, after = (
                    mean_defined(_matrix(each, quantity, estimator, names, tasks))
                    for each, names in zip(both, layers, strict=True)
                )
                row = dict(estimate(after - before, clusters, draws=_DRAWS))
                if name != UPPER_HALF:
                    row |= {"p": np.nan, "reason": "single layers are not tested"}
                rows.append({"run": run.name, "quantity": quantity, "estimator": estimator, "layers": name} | row)
    return pd.DataFrame(rows)[_MEAN_COLUMNS]


def _curve(run: RunTables, tasks: list[str]) -> pd.DataFrame:
    """Summarises d_t(l) over tasks by the headline estimator; block l of L is at relative depth l / L."""
    blocks = run.blocks
    values = _matrix(cells_of(run.table), CHANGE, REPORTED_ESTIMATORS[0], blocks, tasks)
    rows = []
    for number, layer in enumerate(blocks, 1):
        column = values[:, number - 1]
        column = column[np.isfinite(column)]
        q1, median, q3 = np.quantile(column, [0.25, 0.5, 0.75]) if column.size else [np.nan] * 3
        rows.append((run.name, layer, number / len(blocks), median, q1, q3, column.size))
    return pd.DataFrame(rows, columns=["run", "layer", "relative_depth", "median", "q1", "q3", "n_tasks"])


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
