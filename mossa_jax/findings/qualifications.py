"""Which warnings qualify which verdicts: those whose problem the tasks behind a claim have.

A claim rests on tasks. A warning qualifies it if the warning's kind touches the claim (`Kind.claims`) and if enough of
the claim's own tasks have the problem badly enough (`Kind.share`, `RunWarning.grave`). A problem that is not one of
tasks, such as an E of few steps, qualifies every claim that it touches. The verdict itself stays: it is what the
statistics say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.cells import OWN, Cells
from mossa_jax.findings.claims import NOT_MEASURED, Finding
from mossa_jax.findings.curves import HEADLINE
from mossa_jax.findings.warning_kinds import EVERY, IDLE_SPECIALISTS
from mossa_jax.findings.warnings import RunWarning


def tasks_behind(
    cells: Cells, scores: pd.DataFrame, layers: list[str], analyses: Mapping[str, pd.DataFrame] | None = None
) -> dict[str, tuple[str, ...]]:
    """Returns the tasks on which each claim rests.

    Args:
      cells: of the tasks that may carry a finding, or of all tasks.
      scores: the task scores.
      layers: all block outputs.
      analyses: as in `find`.

    Returns:
      Claim -> names of the tasks with a defined similarity of base and of E: `unseen` rests on held-out ones, `ability`
      on those of both kinds that have scores, the others on those of the mixture; `gain` and `within_answer` on those
      of their tables.
    """
    matrices = [cells.matrix((model, OWN, HEADLINE), cells.tasks, layers) for model in (PRETRAINED, TUNED)]
    is_defined = np.logical_and(*(np.isfinite(matrix).any(1) for matrix in matrices))
    names = np.asarray(cells.tasks, object)
    mixture = tuple(names[is_defined & ~cells.held_out])
    behind = dict.fromkeys(EVERY, mixture)
    behind["unseen"] = tuple(names[is_defined & cells.held_out])
    behind["ability"] = tuple(task for task in names[is_defined] if task in set(scores["task"]))
    for claim, table in (("gain", "profile"), ("within_answer", "factors")):
        # A table without rows may have no columns either.
        there = set((analyses or {}).get(table, pd.DataFrame()).get("task", ()))
        behind[claim] = tuple(task for task in mixture if task in there)
    return behind


def qualifications(
    findings: Sequence[Finding],
    warnings: Sequence[RunWarning],
    behind: Mapping[str, Sequence[str]],
    behind_all: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, str]]:
    """Returns what each warning says beside which findings.

    Args:
      findings: with their verdicts; one that was not measured needs no qualification.
      warnings: of the run.
      behind: the tasks on which each claim rests.
      behind_all: the same before tasks without a competent specialist were left out.

    Returns:
      Kind of the warning -> claim -> a short sentence; kinds and claims without one are absent.
    """
    measured = [finding["id"] for finding in findings if finding["verdict"] != NOT_MEASURED]
    result: dict[str, dict[str, str]] = {}
    for warning in warnings:
        tasks = behind_all if warning.kind == IDLE_SPECIALISTS.name else behind
        said = {name: _sentence(warning, tasks[name]) for name in measured if name in warning.about.claims}
        result[warning.kind] = {name: sentence for name, sentence in said.items() if sentence}
    return {kind: said for kind, said in result.items() if said}


def _sentence(warning: RunWarning, tasks: Sequence[str]) -> str:
    """Returns the sentence by which a warning qualifies a claim that rests on `tasks`; empty if it does not."""
    kind = warning.about
    if "{some}" not in kind.qualification:
        return kind.qualification if warning.qualifies else ""
    # Further seeds and twins of a task's specialist stand behind what rests on the task.
    touched = {name.split(".seed")[0].removesuffix(".twin") for name in warning.grave}
    count, total = sum(task in touched for task in tasks), len(tasks)
    if not count or count < kind.share * total:
        return ""
    if total == 1:
        some = "its one task"
    else:
        some = f"all its {total} tasks" if count == total else f"{count} of its {total} tasks"
    have, are = ("has", "is") if count == 1 else ("have", "are")
    return kind.qualification.format(some=some, have=have, are=are)
