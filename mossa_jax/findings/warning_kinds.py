"""Checks of a data set: what in its figures would spoil a result, how, and the way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mossa_jax.tasks import Suite
from mossa_jax.tasks.items import GUESSED
from mossa_jax.tasks.thresholds import (
    DISTINCT_SHARE,
    DUPLICATES,
    FEW_DISTINCT,
    FEW_EXAMPLES,
    FEW_PROMPTS,
    FEW_STEPS,
    LARGE_ITEM,
    OVERLAP,
    TOP_ANSWER,
    TRUNCATED,
)

if TYPE_CHECKING:
    import pandas as pd

# Tasks that a warning names at most; the table marks them all.
_NAMED = 6
_SHARES = ("truncated", "truncated_test", "overlap", "overlap_others", "top_answer")


@dataclass(frozen=True)
class Check:
    """A problem that tasks can have.

    Attributes:
      column: column of the table of tasks whose figure shows the problem.
      applies: table of tasks -> [tasks] bool, which of them have the problem.
      problem: the problem, in a few words.
      effect: what it spoils, and the way out.
      lowest_first: whether the lowest figures are the worst.
      is_note: whether it is only worth knowing, and spoils nothing.
    """

    column: str
    applies: Callable[[pd.DataFrame], pd.Series]
    problem: str
    effect: str
    lowest_first: bool = False
    is_note: bool = False


CHECKS = (
    Check(
        "test",
        lambda t: t.test < FEW_PROMPTS,
        f"fewer than {FEW_PROMPTS} test prompts",
        "intervals are wide and biased similarities too high; add test rows or raise tasks.max_test",
        lowest_first=True,
    ),
    Check(
        "distinct_prompts",
        lambda t: t.distinct_prompts < FEW_DISTINCT,
        f"fewer than {FEW_DISTINCT} distinct test prompts",
        "every cell of the task is undefined or meaningless; correct the prompts or, if cutting made them equal, raise "
        "tokens.max_tokens",
        lowest_first=True,
    ),
    Check(
        "distinct_prompts",
        lambda t: (t.distinct_prompts >= FEW_DISTINCT) & (t.distinct_prompts < DISTINCT_SHARE * t.test),
        "less than half of the test prompts are distinct",
        "each distinct prompt counts once, so similarities rest on few; add others or, if cutting made them equal, "
        "raise tokens.max_tokens",
        lowest_first=True,
    ),
    Check(
        "item_max",
        lambda t: t.item_max >= LARGE_ITEM * t.distinct_prompts.clip(lower=2),
        "an item holds half or more of the distinct test prompts",
        "debiased similarities compare prompts of different items and are undefined; add prompts about other passages",
    ),
    Check(
        "item_max",
        lambda t: t.item_source == GUESSED,
        "items were guessed from long texts that test prompts share",
        "intervals and the debiased estimator treat these as one item; name the column `item` to say so yourself",
        is_note=True,
    ),
    Check(
        "overlap",
        lambda t: t.overlap > OVERLAP,
        f"more than {OVERLAP:.0%} of the test prompts are training prompts of the same task",
        "the specialist and E are measured on prompts that they have memorised; remove these rows from train or test",
    ),
    Check(
        "overlap_others",
        lambda t: t.overlap_others > OVERLAP,
        f"more than {OVERLAP:.0%} of the test prompts are training prompts of another task in the mixture",
        "E has seen them under another name, so the task is not unseen even if it is held out; remove them or hold out "
        "both tasks",
    ),
    Check(
        "duplicates",
        lambda t: t.duplicates > DUPLICATES * t.train,
        f"more than {DUPLICATES:.0%} of the training rows repeat an earlier one",
        "they are trained on several times per epoch and give the task more weight in the mixture; remove them",
    ),
    Check(
        "duplicates",
        lambda t: (t.duplicates > 0) & (t.duplicates <= DUPLICATES * t.train),
        "some training rows repeat an earlier one",
        "there are too few to matter much; remove them for a clean count",
        is_note=True,
    ),
    Check(
        "top_answer",
        lambda t: t.top_answer > TOP_ANSWER,
        f"one answer makes up more than {TOP_ANSWER:.0%} of the test answers",
        "a model that always gives it would score as high, and a specialist may learn no more than that; balance the "
        "answers or leave the task out",
    ),
    Check(
        "truncated",
        lambda t: t.truncated > TRUNCATED,
        f"more than {TRUNCATED:.0%} of the training rows are cut",
        "models learn from truncated prompts and answers; raise tokens.max_tokens or shorten the rows",
    ),
    Check(
        "truncated_test",
        lambda t: t.truncated_test > TRUNCATED,
        f"more than {TRUNCATED:.0%} of the test prompts are cut",
        "states and scores are those of truncated prompts; raise tokens.max_tokens or shorten the prompts",
    ),
    Check(
        "control_steps",
        lambda t: t.control_steps < FEW_STEPS,
        f"fewer than {FEW_STEPS} steps for the control model",
        "a specialist that barely differs from the base shows nothing; raise tuning.control.epochs or lower "
        "tuning.control.batch_rows",
        lowest_first=True,
    ),
    Check(
        "mixture",
        lambda t: ~t.held_out & (t.mixture < FEW_EXAMPLES),
        f"fewer than {FEW_EXAMPLES} examples in the mixture",
        "E barely learns the task, which still counts as one that E was tuned on; raise tasks.max_per_cluster, change "
        "tasks.mixture or hold the task out",
        lowest_first=True,
    ),
    Check(
        "bad_rows",
        lambda t: t.bad_rows > 0,
        "unusable rows are left out",
        "the run sees less data than the files hold; correct them (tasks.allow_bad_rows=False names the first one)",
    ),
)


def warnings_for(tasks: pd.DataFrame, suite: Suite) -> list[str]:
    """Returns one line per problem, with the tasks that have it, worst first; notes come last.

    Args:
      tasks: a row per task, with the columns of `Preview.tasks`.
      suite: the suite, for the tasks that it lacks.
    """
    lines = []
    for check in CHECKS:
        bad = tasks[check.applies(tasks)].sort_values(check.column, ascending=check.lowest_first, kind="stable")
        if len(bad):
            names = [f"{row.task} ({format_cell(check.column, row[check.column], ' %')})" for _, row in bad.iterrows()]
            severity = "note" if check.is_note else "warning"
            lines.append(f"{severity}: {check.problem}: {_name_some(names, len(tasks))}; {check.effect}")
    in_mixture = tasks[~tasks.held_out].groupby("cluster", sort=False)["task"]
    lone = [f"{cluster} ({names.iloc[0]})" for cluster, names in in_mixture if len(names) == 1]
    if lone:
        lines.append(
            f"warning: clusters with a single task in the mixture: {_name_some(lone, in_mixture.ngroups)}; a statement "
            "about the cluster is one about that task, and E learns it from no related task; add a task or merge "
            "clusters"
        )
    if suite.missing:
        lines.append(
            f"warning: tasks that no source has: {_name_some(suite.missing, len(tasks) + len(suite.missing))}; neither "
            "E nor the findings include them; add a source that has them (tasks.sources) or report them with the result"
        )
    return sorted(lines, key=lambda line: line.startswith("note"))


def format_cell(column: str, value: float, percent: str = "") -> str:
    """Formats the figure of a column; shares as percentages.

    Args:
      column: column of `Preview.tasks`.
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


def _name_some(names: list[str] | tuple[str, ...], total: int) -> str:
    """Lists names; if there are many, how many of the total, and the first of them."""
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{len(names)} of {total}, first {', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"
