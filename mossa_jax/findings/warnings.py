"""The warnings of a run: which of its tasks and models have which problem, in words.

Read `warning_kinds` first. Each function here looks at one source: the table of tasks, the settings, the scores, the
training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import TUNED
from mossa_jax.findings.cells import Cells
from mossa_jax.findings.competence import BASE, CONTROL, EXACT_MATCH, INFORMATION, scores_of
from mossa_jax.findings.warning_kinds import (
    CHANGED_TASKS,
    DATA,
    FEW_STEPS_OF_E,
    IDLE_BASE,
    IDLE_E,
    IDLE_SPECIALISTS,
    KINDS,
    LEFT_OUT,
    LONE_CLUSTERS,
    LOST_RECORDS,
    MISSING_TASKS,
    MOST_TASKS,
    MOVING_E,
    MOVING_SPECIALISTS,
    NO_EXACT_MATCH,
    OTHER_MIXTURE,
    POOLINGS,
    RESULTS,
    SKIPPED,
    SKIPPING_E,
    SKIPPING_SPECIALISTS,
    SPIKES,
    UNSCORED,
    Kind,
)
from mossa_jax.tasks import Suite
from mossa_jax.tasks.thresholds import FEW_STEPS

# Tasks that a warning names at most.
_NAMED = 6
# Tasks that a short line names at most.
_FIRST = 3
_SHARES = ("truncated", "truncated_test", "overlap", "overlap_others", "top_answer")


@dataclass(frozen=True)
class RunWarning:
    """A warning: a problem, who has it, and which claims it touches.

    Attributes:
      kind: name of its kind (`warning_kinds.KINDS`).
      sentence: the problem, who has it, and what it spoils.
      tasks: names of the tasks that have it, worst first; empty if it is not a problem of tasks.
      figures: the figure of each of these tasks that shows the problem.
      grave: those of them in which it is bad enough to qualify a claim.
      qualifies: whether a problem that is not one of tasks qualifies the claims that it touches.
    """

    kind: str
    sentence: str
    tasks: tuple[str, ...] = ()
    figures: tuple[float, ...] = ()
    grave: tuple[str, ...] = ()
    qualifies: bool = True

    @property
    def about(self) -> Kind:
        """Its kind."""
        return KINDS[self.kind]

    @property
    def line(self) -> str:
        """Its line at a terminal."""
        severity = "note" if self.about.is_note else "warning"
        return f"{severity}: {self.sentence}; {self.about.knob}"

    @property
    def short(self) -> str:
        """Its line where the page has the rest: who has the problem, and the first way out."""
        severity = "note" if self.about.is_note else "warning"
        more = f" and {len(self.tasks) - _FIRST} more" if len(self.tasks) > _FIRST else ""
        names = f": {', '.join(self.tasks[:_FIRST])}{more}" if self.tasks else ""
        return f"{severity}: {self.about.problem}{names}; {self.about.knob.partition(';')[0]}"

    def record(self) -> dict[str, Any]:
        """Returns it with what its kind says, for JSON."""
        return {
            "kind": self.kind,
            "group": self.about.group,
            "is_note": self.about.is_note,
            "tasks": list(self.tasks),
            "figures": list(self.figures),
            "grave": list(self.grave),
            "qualifies": self.qualifies,
            "sentence": self.sentence,
            "knob": self.about.knob,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> RunWarning:
        """Returns the warning of a record."""
        tasks, figures, grave = (tuple(record[key]) for key in ("tasks", "figures", "grave"))
        return cls(record["kind"], record["sentence"], tasks, figures, grave, record["qualifies"])


def data_warnings(tasks: pd.DataFrame, suite: Suite, experimental_steps: int) -> list[RunWarning]:
    """Returns what is to be said of a run's data before anything is trained; notes come last.

    Args:
      tasks: a row per task, with the columns of `data_figures.data_table`.
      suite: the suite, for the tasks that it lacks and for what it leaves out.
      experimental_steps: optimizer steps of E.
    """
    warnings = []
    for kind in DATA:
        bad = tasks[kind.applies(tasks)].sort_values(kind.column, ascending=kind.lowest_first, kind="stable")
        if len(bad):
            figures = {str(row.task): float(row[kind.column]) for _, row in bad.iterrows()}
            shown = {task: format_cell(kind.column, figure, " %") for task, figure in figures.items()}
            warnings.append(
                _of_tasks(kind, figures, len(tasks), shown, [t for t in figures if figures[t] > kind.grave])
            )
    in_mixture = tasks[~tasks.held_out].groupby("cluster", sort=False)["task"]
    lone = {str(names.iloc[0]): str(cluster) for cluster, names in in_mixture if len(names) == 1}
    if lone:
        names = [f"{cluster} ({task})" for task, cluster in lone.items()]
        sentence = _sentence(LONE_CLUSTERS, name_some(names, in_mixture.ngroups))
        warnings.append(RunWarning(LONE_CLUSTERS.name, sentence, tuple(lone), grave=tuple(lone)))
    if suite.missing:
        sentence = _sentence(MISSING_TASKS, name_some(suite.missing, len(tasks) + len(suite.missing)))
        warnings.append(RunWarning(MISSING_TASKS.name, sentence, tuple(suite.missing)))
    for left in suite.left_out:
        sentence = _sentence(LEFT_OUT[left.kind], name_first(left.names))
        warnings.append(RunWarning(left.kind, sentence))
    if experimental_steps < FEW_STEPS:
        warnings.append(RunWarning(FEW_STEPS_OF_E.name, _sentence(FEW_STEPS_OF_E, str(experimental_steps))))
    return in_order(warnings)


def pooling_warnings(pool: str) -> list[RunWarning]:
    """Returns what is to be said of a pooling of states."""
    kind = POOLINGS.get(pool)
    return [RunWarning(kind.name, _sentence(kind, f"compare.pool={pool}"))] if kind else []


def history_warnings(record: Mapping[str, Any], mixture: Sequence[str]) -> list[RunWarning]:
    """Returns what is to be said of tasks that came, went or changed since the run began.

    Args:
      record: of the run's data: `tasks` (name -> `held_out`), `history` (changes, oldest first: `added`, `removed` and
        `changed` names) and `kept` (models of E that are kept as they are).
      mixture: names of the tasks that E was tuned on.
    """
    warnings, tasks = [], record["tasks"]
    changes = [f"{how} {', '.join(names)}" for change in record["history"] for how, names in change.items()]
    if changes:
        warnings.append(RunWarning(CHANGED_TASKS.name, _sentence(CHANGED_TASKS, "; ".join(changes))))
    came = [name for change in record["history"] for name in change.get("added", []) if name in tasks]
    unseen = [name for name in dict.fromkeys(came) if name not in mixture and tasks[name]["held_out"]]
    gone = [name for name in mixture if name not in tasks]
    differences = [f"it has also seen {', '.join(gone)}"] if gone else []
    differences += [f"it has not seen {', '.join(unseen)}"] if record["kept"] and unseen else []
    if differences:
        warnings.append(RunWarning(OTHER_MIXTURE.name, _sentence(OTHER_MIXTURE, "; ".join(differences))))
    return warnings


def score_warnings(cells: Cells, scores: pd.DataFrame, competence: Mapping[str, Any]) -> list[RunWarning]:
    """Returns what is to be said of models that learned nothing, and of scores that tell nothing.

    E and the base are warned of where they do not use the prompts of half of their tasks or more; a specialist always.

    Args:
      cells: the results table.
      scores: the task scores.
      competence: from `find_competence`.
    """
    warnings = []
    if competence["unknown"]:
        unknown = dict.fromkeys(competence["unknown"], 0.0)
        warnings.append(_of_tasks(UNSCORED, unknown, len(cells.tasks), {}))
    if competence["incompetent"]:
        rows = {row["task"]: row for row in competence["tasks"]}
        idle = {task: float(rows[task]["control"]) for task in competence["incompetent"]}
        shown = {task: _nats(idle[task], rows[task]["low"], rows[task]["high"]) for task in idle}
        total = len(competence["incompetent"]) + len(competence["competent"])
        warnings.append(_of_tasks(IDLE_SPECIALISTS, _rising(idle), total, shown))
    seen = [task for task, held_out in zip(cells.tasks, cells.held_out, strict=True) if not held_out]
    for kind, model, tasks in ((IDLE_E, TUNED, seen), (IDLE_BASE, BASE, cells.tasks)):
        value, low, high = (scores_of(scores, INFORMATION, model, column) for column in ("value", "low", "high"))
        scored = [task for task in tasks if np.isfinite(low.get(task, np.nan))]
        idle = {task: float(value[task]) for task in scored if low[task] <= 0}
        if idle and len(idle) >= MOST_TASKS * len(scored):
            shown = {task: _nats(idle[task], low[task], high[task]) for task in idle}
            warnings.append(_of_tasks(kind, _rising(idle), len(scored), shown))
    right = pd.concat([scores_of(scores, EXACT_MATCH, model) for model in (BASE, TUNED, CONTROL)], axis=1)
    right = right.reindex([task for task in cells.tasks if task in right.index]).dropna(how="all")
    none = [str(task) for task in right.index[(right.fillna(0) == 0).all(axis=1)]]
    if none and len(none) >= MOST_TASKS * len(right):
        shares = dict.fromkeys(none, 0.0)
        # What is right no answer at all qualifies `ability` only if its scores are exact matches.
        by_answers = not len(scores_of(scores, INFORMATION, CONTROL))
        warnings.append(_of_tasks(NO_EXACT_MATCH, shares, len(right), {}, none if by_answers else []))
    return warnings


def training_warnings(
    convergence: Mapping[str, Any] | None, counters: Mapping[str, Mapping[str, float]]
) -> list[RunWarning]:
    """Returns what is to be said of models that have not converged, and of what went wrong and was overcome.

    Args:
      convergence: from `trajectory.convergence_summary`.
      counters: model -> `skipped` (updates), `spikes` and `steps`, each so far.
    """
    warnings = []
    if convergence is not None and convergence["unconverged"]:
        reasons = {name: 1.0 for name in convergence["unconverged"]}
        warnings.append(_of_tasks(MOVING_SPECIALISTS, reasons, convergence["specialists"], convergence["reasons"]))
    if convergence is not None and convergence["tuned"]:
        warnings.append(RunWarning(MOVING_E.name, _sentence(MOVING_E, convergence["tuned"])))
    skipped = _counted(counters, "skipped")
    share = {model: count / max(1.0, counters[model].get("steps", 0.0)) for model, count in skipped.items()}
    own = {model: count for model, count in skipped.items() if model.split(".seed")[0] != TUNED}
    if own:
        grave = [model for model in own if share[model] > SKIPPED]
        warnings.append(_of_tasks(SKIPPING_SPECIALISTS, own, len(counters), grave=grave))
    if len(skipped) > len(own):
        of_e = {model: count for model, count in skipped.items() if model not in own}
        names = name_some([f"{model} ({count:.0f})" for model, count in of_e.items()], len(of_e))
        is_grave = any(share[model] > SKIPPED for model in of_e)
        warnings.append(RunWarning(SKIPPING_E.name, _sentence(SKIPPING_E, names), qualifies=is_grave))
    spikes = _counted(counters, "spikes")
    if spikes:
        warnings.append(_of_tasks(SPIKES, spikes, len(counters), grave=[]))
    return warnings


def record_warnings(losses: Sequence[str]) -> list[RunWarning]:
    """Returns what is to be said of records of training that are damaged or gone.

    Args:
      losses: what is lost, in words; empty if nothing is.
    """
    return [RunWarning(LOST_RECORDS.name, _sentence(LOST_RECORDS, "; ".join(losses)))] if losses else []


def in_order(warnings: Iterable[RunWarning]) -> list[RunWarning]:
    """Returns warnings in the order of their kinds, notes last, each kind once."""
    first: dict[str, RunWarning] = {}
    for warning in warnings:
        first.setdefault(warning.kind, warning)
    order = list(KINDS)
    return sorted(first.values(), key=lambda warning: (warning.about.is_note, order.index(warning.kind)))


def late_lines(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns short lines of those warnings that show in the results alone (`find` returns the records)."""
    warnings = [RunWarning.of_record(record) for record in records]
    return [warning.short for warning in warnings if warning.about in RESULTS]


def format_cell(column: str, value: float, percent: str = "") -> str:
    """Formats the figure of a column of the table of tasks; shares as percentages.

    Args:
      column: column of `data_figures.data_table`.
      value: the figure.
      percent: what follows a percentage.
    """
    if column == "item_mean":
        return f"{value:.1f}"
    if column not in _SHARES:
        return f"{value:.0f}"
    if 0 < value < 0.001:
        return f"<0.1{percent}"
    return f"{100 * value:.{1 if 0 < value < 0.0995 else 0}f}{percent}"


def name_some(names: Sequence[str], total: int) -> str:
    """Lists names; if there are many, how many of the total, and the first of them."""
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{len(names)} of {total}, first {', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"


def name_first(names: Sequence[str]) -> str:
    """Lists names; if there are many, the first of them and how many there are."""
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"


def _of_tasks(
    kind: Kind,
    figures: Mapping[str, float],
    total: int,
    shown: Mapping[str, str] | None = None,
    grave: Sequence[str] | None = None,
) -> RunWarning:
    """Returns the warning of tasks that have a problem.

    Args:
      kind: of the problem.
      figures: the figure of each task, worst first.
      total: tasks that might have it.
      shown: what is shown behind a name; the figure, if None.
      grave: as in `RunWarning`; all, if None.
    """
    shown = {task: f"{figure:.0f}" for task, figure in figures.items()} if shown is None else shown
    names = name_some([f"{task} ({shown[task]})" if task in shown else task for task in figures], total)
    tasks, values = tuple(figures), tuple(float(figure) for figure in figures.values())
    return RunWarning(kind.name, _sentence(kind, names), tasks, values, tasks if grave is None else tuple(grave))


def _sentence(kind: Kind, names: str) -> str:
    return f"{kind.problem}: {names}; {kind.effect}"


def _nats(value: float, low: float, high: float) -> str:
    return f"{value:+.2f} nats, {low:+.2f} to {high:+.2f}"


def _rising(figures: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(figures.items(), key=lambda pair: pair[1]))


def _counted(counters: Mapping[str, Mapping[str, float]], counter: str) -> dict[str, float]:
    """Returns the models whose counter is above zero, highest first."""
    counts = {model: float(each.get(counter, 0)) for model, each in counters.items() if each.get(counter, 0)}
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))
