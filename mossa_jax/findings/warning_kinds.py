"""The kinds of warnings: what can spoil a result, how, the way out, and which claims it touches.

One catalogue serves the preview, the start of a run, its end and the page, so that each says the same in the same words
and once. `LEFT_OUT`, `DATA` and `SETTINGS` are known before anything is trained, `RESULTS` afterwards.

Which claims a kind touches is the field `claims`, with the sets and their reasons below. A claim is qualified only by
those of its own tasks that have the problem (`qualifications`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mossa_jax.findings.claims import CLAIMS
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

GROUPS = {"data": "Data", "training": "Training", "reading": "Reading the results"}
"""Group of warnings -> its heading."""

# Claims by what they rest on. No claim: the problem is worth knowing and moves no verdict.
EVERY = tuple(claim.name for claim in CLAIMS)
# Similarities over a task's prompts. `gain` rests on answers.
SIMILARITIES = tuple(name for name in EVERY if name != "gain")
# What tuning did to E. `clusters` and `ability` compare the base with specialists and do not involve E.
TUNING = tuple(name for name in EVERY if name not in ("clusters", "ability"))
# How near the base is to specialists, as a level and not as a difference of two levels.
LEVELS = ("clusters", "ability")
# How good answers are.
ANSWERS = ("ability", "gain")

MOSTLY = 0.5
"""Share of a task's rows from which cut rows qualify what rests on the task: most rows are not whole."""

MEMORISED = 0.1
"""Share of a task's test prompts, seen in training, from which they qualify what rests on the task: below it, they
cannot move a mean over its prompts by more than a tenth of their own difference."""

SKIPPED = 0.05
"""Share of a model's updates from which skipped ones qualify what rests on it."""

SOME_TASKS = 0.1
"""Share of the tasks behind a claim from which a problem of tasks qualifies it."""

MOST_TASKS = 0.5
"""The same for problems that a few tasks of any run have, such as a specialist that learned nothing."""


@dataclass(frozen=True)
class Kind:
    """A kind of warning.

    Attributes:
      name: unique; the page's anchor is made of it.
      group: a key of `GROUPS`.
      problem: the problem, in a few words; the tasks that have it follow.
      effect: what it spoils.
      knob: the way out.
      claims: the claims that it touches, where their tasks have it.
      qualification: what is said beside such a claim. `{some}` stands for how many of the claim's tasks have the
        problem, `{have}` and `{are}` for its verb; without `{some}`, the problem is not one of tasks.
      share: of the claim's tasks, from which on it is qualified.
      is_note: whether it is only worth knowing, and spoils nothing.
    """

    name: str
    group: str
    problem: str
    effect: str
    knob: str
    claims: tuple[str, ...] = ()
    qualification: str = ""
    share: float = SOME_TASKS
    is_note: bool = False


@dataclass(frozen=True, kw_only=True)
class DataKind(Kind):
    """A kind of warning that shows in the table of tasks.

    Attributes:
      column: column of the table whose figure shows the problem.
      applies: table of tasks -> [tasks] bool, which of them have the problem.
      lowest_first: whether the lowest figures are the worst.
      grave: the figure above which a task's problem qualifies what rests on the task.
    """

    column: str
    applies: Callable[[pd.DataFrame], pd.Series]
    lowest_first: bool = False
    grave: float = float("-inf")


DATA = (
    DataKind(
        name="few_prompts",
        group="data",
        column="test",
        applies=lambda t: t.test < FEW_PROMPTS,
        problem=f"fewer than {FEW_PROMPTS} test prompts",
        effect="intervals are wide and biased similarities too high",
        knob="add test rows or raise tasks.max_test",
        claims=SIMILARITIES,
        qualification=f"{{some}} {{have}} fewer than {FEW_PROMPTS} test prompts",
        lowest_first=True,
    ),
    DataKind(
        name="few_distinct_prompts",
        group="data",
        column="distinct_prompts",
        applies=lambda t: t.distinct_prompts < FEW_DISTINCT,
        problem=f"fewer than {FEW_DISTINCT} distinct test prompts",
        effect="every cell of the task is undefined or meaningless",
        knob="correct the prompts or, if cutting made them equal, raise tokens.max_tokens",
        claims=EVERY,
        qualification=f"{{some}} {{have}} fewer than {FEW_DISTINCT} distinct test prompts",
        lowest_first=True,
    ),
    DataKind(
        name="equal_prompts",
        group="data",
        column="distinct_prompts",
        applies=lambda t: (t.distinct_prompts >= FEW_DISTINCT) & (t.distinct_prompts < DISTINCT_SHARE * t.test),
        problem="less than half of the test prompts are distinct",
        effect="each distinct prompt counts once, so similarities rest on few",
        knob="add others or, if cutting made them equal, raise tokens.max_tokens",
        claims=EVERY,
        qualification="{some} {have} test prompts of which less than half are distinct",
        lowest_first=True,
    ),
    DataKind(
        name="repeated_prompts",
        group="data",
        column="distinct_prompts",
        applies=lambda t: (t.distinct_prompts < t.test) & (t.distinct_prompts >= DISTINCT_SHARE * t.test),
        problem="test prompts of which some repeat others after cutting (distinct ones)",
        effect="they count once in similarities",
        knob="remove them for a clean count",
        is_note=True,
        lowest_first=True,
    ),
    DataKind(
        name="large_item",
        group="data",
        column="item_max",
        applies=lambda t: (t.distinct_prompts >= FEW_DISTINCT) & (t.item_max >= LARGE_ITEM * t.distinct_prompts),
        problem="an item holds half or more of the distinct test prompts",
        effect="debiased similarities compare prompts of different items and are undefined",
        knob="add prompts about other passages",
        claims=SIMILARITIES,
        qualification="{some} {have} an item that holds half of the test prompts",
    ),
    DataKind(
        name="guessed_items",
        group="data",
        column="item_max",
        applies=lambda t: t.item_source == GUESSED,
        problem="items were guessed from long texts that test prompts share",
        effect="intervals and the debiased estimator treat these as one item",
        knob="name the column `item` to say so yourself",
        is_note=True,
    ),
    DataKind(
        name="memorised_prompts",
        group="data",
        column="overlap",
        applies=lambda t: t.overlap > OVERLAP,
        problem=f"more than {OVERLAP:.0%} of the test prompts are training prompts of the same task",
        effect="the specialist and E are measured on prompts that they have memorised",
        knob="remove these rows from train or test",
        claims=EVERY,
        qualification=f"{{some}} {{have}} more than {MEMORISED:.0%} of the test prompts among the training prompts",
        grave=MEMORISED,
    ),
    DataKind(
        name="known_prompts",
        group="data",
        column="overlap_others",
        applies=lambda t: t.overlap_others > OVERLAP,
        problem=f"more than {OVERLAP:.0%} of the test prompts are training prompts of another task in the mixture",
        effect="E has seen them under another name, so the task is not unseen even if it is held out",
        knob="remove them or hold out both tasks",
        claims=("unseen",),
        qualification=f"E was trained on more than {MEMORISED:.0%} of the test prompts of {{some}} under another name",
        grave=MEMORISED,
    ),
    DataKind(
        name="repeated_rows",
        group="data",
        column="duplicates",
        applies=lambda t: t.duplicates > DUPLICATES * t.train,
        problem=f"more than {DUPLICATES:.0%} of the training rows repeat an earlier one",
        effect="they are trained on several times per epoch and give the task more weight in the mixture",
        knob="remove them",
    ),
    DataKind(
        name="few_repeated_rows",
        group="data",
        column="duplicates",
        applies=lambda t: (t.duplicates > 0) & (t.duplicates <= DUPLICATES * t.train),
        problem="some training rows repeat an earlier one",
        effect="there are too few to matter much",
        knob="remove them for a clean count",
        is_note=True,
    ),
    DataKind(
        name="one_answer",
        group="data",
        column="top_answer",
        applies=lambda t: t.top_answer > TOP_ANSWER,
        problem=f"one answer makes up more than {TOP_ANSWER:.0%} of the test answers",
        effect="a model that always gives it would score as high, and a specialist may learn no more than that",
        knob="balance the answers or leave the task out",
        claims=ANSWERS,
        qualification=f"{{some}} {{have}} one answer to more than {TOP_ANSWER:.0%} of the test prompts",
    ),
    DataKind(
        name="cut_rows",
        group="data",
        column="truncated",
        applies=lambda t: t.truncated > TRUNCATED,
        problem=f"more than {TRUNCATED:.0%} of the training rows are cut",
        effect="models learn from truncated prompts and answers",
        knob="raise tokens.max_tokens or shorten the rows",
        claims=EVERY,
        qualification="{some} {have} more than half of the training rows cut",
        grave=MOSTLY,
    ),
    DataKind(
        name="cut_prompts",
        group="data",
        column="truncated_test",
        applies=lambda t: t.truncated_test > TRUNCATED,
        problem=f"more than {TRUNCATED:.0%} of the test prompts are cut",
        effect="states and scores are those of truncated prompts",
        knob="raise tokens.max_tokens or shorten the prompts",
        claims=EVERY,
        qualification="{some} {have} more than half of the test prompts cut",
        grave=MOSTLY,
    ),
    DataKind(
        name="few_steps",
        group="training",
        column="control_steps",
        applies=lambda t: t.control_steps < FEW_STEPS,
        problem=f"fewer than {FEW_STEPS} steps for the control model",
        effect="a specialist that barely differs from the base shows nothing",
        knob="raise tuning.control.epochs (or tuning.control.max_steps, if it is set) or lower "
        "tuning.control.batch_rows",
        claims=EVERY,
        qualification=f"{{some}} {{have}} a specialist of fewer than {FEW_STEPS} steps",
        lowest_first=True,
    ),
    DataKind(
        name="few_examples",
        group="data",
        column="mixture",
        applies=lambda t: ~t.held_out & (t.mixture < FEW_EXAMPLES),
        problem=f"fewer than {FEW_EXAMPLES} examples in the mixture",
        effect="E barely learns the task, which still counts as one that E was tuned on",
        knob="raise tasks.max_per_cluster, change tasks.mixture or hold the task out",
        claims=TUNING,
        qualification=f"{{some}} {{have}} fewer than {FEW_EXAMPLES} examples in the mixture",
        lowest_first=True,
    ),
    DataKind(
        name="bad_rows",
        group="data",
        column="bad_rows",
        applies=lambda t: t.bad_rows > 0,
        problem="unusable rows are left out",
        effect="the run sees less data than the files hold",
        knob="correct them (tasks.allow_bad_rows=False names the first one)",
    ),
)
"""Kinds that show in a column of the table of tasks."""

LONE_CLUSTERS = Kind(
    name="lone_clusters",
    group="data",
    problem="clusters with a single task in the mixture",
    effect="a statement about the cluster is one about that task, and E learns it from no related task",
    knob="add a task or merge clusters",
    claims=("clusters",),
    qualification="{some} {have} no other task in the cluster",
)
MISSING_TASKS = Kind(
    name="missing_tasks",
    group="data",
    problem="tasks that no source has",
    effect="neither E nor the findings include them",
    knob="add a source that has them (tasks.sources) or report them with the result",
)
LEFT_OUT = {
    kind.name: kind
    for kind in (
        Kind(
            name="other_files",
            group="data",
            problem="files and folders beside the tasks that are not read",
            effect="what they hold is in no task",
            knob="a task is <split>/<task>.jsonl, .jsonl.gz or .parquet with split train or test: write these so, or "
            "move them elsewhere",
        ),
        Kind(
            name="lone_files",
            group="data",
            problem="test or validation files without a train file",
            effect="they are in no task, since a task needs both",
            knob="add the train file, give both the same name, or move them elsewhere",
        ),
        Kind(
            name="other_splits",
            group="data",
            problem="splits of the data set that are not read",
            effect="a run reads train and test alone",
            knob="add their rows to one of these if they are to count",
        ),
        Kind(
            name="unknown_fields",
            group="data",
            problem="fields of tasks.json that are not known",
            effect="they say nothing to a run",
            knob="known are cluster, held_out, licence and file",
        ),
        Kind(
            name="misspelt_columns",
            group="data",
            problem="fields of rows whose names are nearly those of fields that a run reads",
            effect="they are not read",
            knob="name them in tasks.columns, or rename them",
        ),
        Kind(
            name="validation_files",
            group="data",
            problem="tasks with validation files",
            effect="a run reads train and test alone",
            knob="add their rows to one of these if they are to count",
            is_note=True,
        ),
        Kind(
            name="unread_columns",
            group="data",
            problem="fields of rows that are not read",
            effect="a run reads prompts, answers, templates and items alone",
            knob="tasks.columns says which fields hold them",
            is_note=True,
        ),
    )
}
"""Kinds of what a source holds and a run does not read (`tasks.suite.LeftOut`), by name."""

CHANGED_TASKS = Kind(
    name="changed_tasks",
    group="data",
    problem="tasks that came, went or changed after the run began",
    effect="the results are those of the tasks of today",
    knob="a new --workdir with --from has none of this history",
    is_note=True,
)
OTHER_MIXTURE = Kind(
    name="other_mixture",
    group="data",
    problem="E was tuned on other tasks than the mixture of today",
    effect="tasks that came later count as unseen, and what went may have taught it something",
    knob="--stale=retrain tunes it again",
    claims=TUNING,
    qualification="E was tuned on other tasks than the mixture of today",
)
FEW_STEPS_OF_E = Kind(
    name="few_steps_of_e",
    group="training",
    problem=f"fewer than {FEW_STEPS} steps for E",
    effect="a model that barely differs from the base shows nothing",
    knob="raise tuning.experimental.epochs (or tuning.experimental.max_steps, if it is set) or lower "
    "tuning.experimental.batch_rows",
    claims=TUNING,
    qualification=f"E took fewer than {FEW_STEPS} steps",
)
# Equal rows raise similarities, and two that are both near 1 differ little: `shared` is then easily supported.
POOLINGS = {
    "all": Kind(
        name="pool_all",
        group="reading",
        problem="every token is a row",
        effect="tokens with which all prompts begin (BOS, a template) are equal rows, and raise the similarity of any "
        "two models",
        knob="compare with compare.pool=last as well",
        claims=("shared", *LEVELS),
        qualification="tokens with which all prompts begin raise every similarity",
    ),
    "mean": Kind(
        name="pool_mean",
        group="reading",
        problem="the mean over tokens includes BOS",
        effect="where its state is far larger than the others, the lengths of the prompts alone make models similar",
        knob="compare with compare.pool=last as well",
        claims=("shared", *LEVELS),
        qualification="the lengths of the prompts alone may raise every similarity",
    ),
}
"""Pooling -> its trap."""

IDLE_SPECIALISTS = Kind(
    name="idle_specialists",
    group="training",
    problem="specialists that are not shown to use their prompts",
    effect="one that learned nothing stays near the base for that reason alone, so all findings leave these tasks out",
    knob="raise tuning.score_prompts where the interval is wide; otherwise raise tuning.control.epochs (or "
    "tuning.control.max_steps, if it is set) or tuning.control.learning_rate, or take a base that can learn the tasks",
    claims=EVERY,
    qualification="{some} {are} left out, for want of a specialist that is shown to use its prompts",
    share=MOST_TASKS,
)
UNSCORED = Kind(
    name="unscored",
    group="training",
    problem="specialists whose use of their prompts was not measured",
    effect="one that learned nothing stays near the base for that reason alone, and would count all the same",
    knob="raise tuning.score_prompts",
    claims=EVERY,
    qualification="{some} {have} a specialist whose use of its prompts was not measured",
)
IDLE_E = Kind(
    name="idle_e",
    group="training",
    problem="tasks of the mixture whose prompts E is not shown to use",
    effect="if E did not learn them, what tuning changes there is not what it takes to do them",
    knob="raise tuning.score_prompts where the interval is wide; otherwise raise tuning.experimental.epochs (or "
    "tuning.experimental.max_steps, if it is set) or tuning.experimental.learning_rate",
    claims=TUNING,
    qualification="E is not shown to use the prompts of {some}",
    share=MOST_TASKS,
)
IDLE_BASE = Kind(
    name="idle_base",
    group="reading",
    problem="tasks whose prompts the base is not shown to use",
    effect="its similarity to specialists says how its states are laid out there, and not what it can do",
    knob="raise tuning.score_prompts where the interval is wide; otherwise take a larger or an instruction-tuned base, "
    "or the template that the base knows (tokens.template)",
    claims=LEVELS,
    qualification="the base is not shown to use the prompts of {some}",
    share=MOST_TASKS,
)
NO_EXACT_MATCH = Kind(
    name="no_exact_match",
    group="reading",
    problem="tasks without a single right answer by any model",
    effect="exact match cannot tell the models apart there",
    knob="read rouge_l and information instead, or raise tuning.score_tokens if answers are longer than that",
    claims=("ability",),
    qualification="no model gives a single right answer to {some}",
    share=MOST_TASKS,
)
MOVING_SPECIALISTS = Kind(
    name="moving_specialists",
    group="training",
    problem="specialists that have not converged",
    effect="more steps would change what they are similar to",
    knob="raise tuning.control.epochs (or tuning.control.max_steps, if it is set)",
    claims=EVERY,
    qualification="{some} {have} a specialist that has not converged",
)
MOVING_E = Kind(
    name="moving_e",
    group="training",
    problem="E has not converged",
    effect="more steps would change what it is similar to",
    knob="raise tuning.experimental.epochs (or tuning.experimental.max_steps, if it is set)",
    claims=TUNING,
    qualification="E has not converged",
)
_SKIPS = "loss or gradient was not finite"
SKIPPING_SPECIALISTS = Kind(
    name="skipping_specialists",
    group="training",
    problem="specialists that skipped updates",
    effect=f"{_SKIPS}, and the rows of these updates taught nothing",
    knob="lower tuning.control.learning_rate, or look at the rows",
    claims=EVERY,
    qualification=f"{{some}} {{have}} a specialist that skipped more than {SKIPPED:.0%} of its updates",
)
SKIPPING_E = Kind(
    name="skipping_e",
    group="training",
    problem="updates that E skipped",
    effect=f"{_SKIPS}, and the rows of these updates taught nothing",
    knob="lower tuning.experimental.learning_rate, or look at the rows",
    claims=TUNING,
    qualification=f"E skipped more than {SKIPPED:.0%} of its updates",
)
SPIKES = Kind(
    name="spikes",
    group="training",
    problem="models whose loss jumped (jumps)",
    effect="a model that a jump threw back has learned less than its number of steps says",
    knob="lower the learning rate of its schedule, or raise tuning.warmup",
)
LOST_RECORDS = Kind(
    name="lost_records",
    group="training",
    problem="records of training that are lost",
    effect="curves lack these points, and skipped updates and jumps of the loss may be counted too low",
    knob="restore metrics.jsonl from a copy, or tune in a new --workdir",
)

SETTINGS = (
    LONE_CLUSTERS,
    MISSING_TASKS,
    CHANGED_TASKS,
    OTHER_MIXTURE,
    FEW_STEPS_OF_E,
    *POOLINGS.values(),
)
"""Kinds that show in the suite or in the settings, before anything is trained."""

RESULTS = (
    UNSCORED,
    IDLE_SPECIALISTS,
    IDLE_E,
    IDLE_BASE,
    NO_EXACT_MATCH,
    MOVING_SPECIALISTS,
    MOVING_E,
    SKIPPING_SPECIALISTS,
    SKIPPING_E,
    SPIKES,
    LOST_RECORDS,
)
"""Kinds that show in training or in scores."""

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*LEFT_OUT.values(), *DATA, *SETTINGS, *RESULTS)}
"""All kinds, by name."""
