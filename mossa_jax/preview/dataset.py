"""A look at the suite before the run: sizes, lengths, the mixture, and what would spoil the result.

Reads the rows and the tokenizer; no weights are loaded and nothing is trained. What is encoded here lies in the cache,
where the run finds it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd
from etils import epath

from mossa_jax.config import Config, Schedule, check
from mossa_jax.files.write import write_text
from mossa_jax.llama.files.base import base_can_share_prefix, base_tokenizer
from mossa_jax.monitoring.progress import Progress
from mossa_jax.tasks import Suite, Task, load_suite
from mossa_jax.tasks.mixture import mixture_counts, sample
from mossa_jax.tasks.thresholds import (
    DISTINCT_SHARE,
    DUPLICATES,
    FEW_DISTINCT,
    FEW_GIVEN,
    FEW_PROMPTS,
    FEW_STEPS,
    OVERLAP,
    TOP_ANSWER,
    TRUNCATED,
)
from mossa_jax.tokens.encoded import Examples, encode_split, join
from mossa_jax.tokens.packing import batches_of, packed
from mossa_jax.tokens.tokenizer import Tokenizer
from mossa_jax.tuning.loop import steps_for

_NAMED = 6  # tasks that a warning names; the table marks them all
_SHARES = ("truncated", "truncated_test", "overlap", "overlap_others", "top_answer")


@dataclass(frozen=True)
class Look:
    """What there is to see before a run.

    Attributes:
      tasks: a row per task: `task, cluster, held_out, source`; `train, validation, test` rows (train and test under
        their caps); `tokens` in all training rows, `tokens_mean, tokens_p95, tokens_max` of one, prompt and answer
        after cutting; `truncated, truncated_test`, shares of training rows and test prompts that were cut;
        `duplicates`, training rows that repeat an earlier one; `overlap`, share of test prompts that are training
        prompts of the task, and `overlap_others`, of other tasks in the mixture; `distinct_prompts`, different test
        prompts after cutting; `templates`, different instruction templates in train, 0 where the source does not say;
        `top_answer`, share of the most frequent test answer; `bad_rows` left out; `mixture`, examples given to E;
        `packed_rows`, `control_steps` and `control_tokens` (over all epochs) of its control
        model. Texts are compared with white space joined.
      mixture: a row per cluster and per task (`kind`): `name, cluster, rows, given, share` of E's examples.
      totals: of E `examples`, `packed_rows`, `fill` (share of their positions that hold a token), `steps`, `tokens`;
        `missing` tasks; `max_tokens`; tokens over all epochs: `trained_experimental`, `trained_controls`, `trained`.
      warnings: one line each; what is only worth knowing starts with "note".
      lengths: task -> tokens of each training row, int32.
    """

    tasks: pd.DataFrame
    mixture: pd.DataFrame
    totals: dict[str, float]
    warnings: list[str]
    lengths: dict[str, np.ndarray]


def look(config: Config) -> Look:
    """Reads every task's rows and encodes what the run will encode.

    Raises:
      Refusal: 2 for a bad configuration; 3 for bad data or a model folder without config or tokenizer; 4 when access
        is denied.
    """
    check(config)
    suite = load_suite(config.tasks)
    tokenizer = base_tokenizer(config)
    sharing = base_can_share_prefix(config)
    rows, examples, trained, tested = [], {}, {}, {}
    progress = Progress("look", len(suite.tasks))
    for number, task in enumerate(suite.tasks, 1):
        found = _look_at(task, tokenizer, config, sharing)
        row, examples[task.name], trained[task.name], tested[task.name] = found
        rows.append(row | {"held_out": task.name in suite.held_out})
        progress.line(number, f"{task.name}: {row['train']} train, {row['test']} test")
    tasks = pd.DataFrame(rows)
    tasks.insert(2, "held_out", tasks.pop("held_out"))
    given = mixture_counts(suite, dict(zip(tasks.task, tasks.train, strict=True)), config.tasks)
    tasks["overlap_others"] = _overlap_others(trained, tested, list(given))
    tasks["mixture"] = [given.get(name, 0) for name in tasks.task]
    totals = _totals(tasks, examples, given, suite, config, sharing)
    lengths = {name: part.lengths for name, part in examples.items()}
    return Look(tasks, _mixture(tasks), totals, _warnings(tasks, suite), lengths)


def _key(text: str) -> int:
    """Eight bytes that stand for a text, however its white space is set."""
    joined = " ".join(text.split()).encode()
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest())


def _keys(task: Task, split: str, limit: int) -> np.ndarray:
    """[n, 2] uint64: keys of inputs and targets."""
    keys = (_key(text) for row in islice(task.rows(split), limit) for text in (row.inputs, row.targets))
    return np.fromiter(keys, np.uint64).reshape(-1, 2)


def _look_at(
    task: Task, tokenizer: Tokenizer, config: Config, sharing: bool
) -> tuple[dict, Examples, np.ndarray, np.ndarray]:
    """A task's row of the table; its training rows, encoded; its different training prompts and its test prompts, as
    keys.
    """
    tokens, most = config.tokens, {"train": config.tasks.max_train, "test": config.tasks.max_test}
    train, test = (encode_split(task, split, tokenizer, tokens, limit) for split, limit in most.items())
    train_keys, test_keys = (_keys(task, split, limit) for split, limit in most.items())
    validation = sum(1 for _ in task.rows("validation"))
    lengths = train.examples.lengths
    training = _training(train.examples, config.tuning.control, config, sharing)
    train_prompts = np.unique(train_keys[:, 0])
    row = {
        "task": task.name,
        "cluster": task.cluster,
        "source": task.source,
        "train": len(train),
        "validation": validation,
        "test": len(test),
        "tokens": int(lengths.sum()),
        "tokens_mean": float(lengths.mean()),
        "tokens_p95": float(np.percentile(lengths, 95)),
        "tokens_max": int(lengths.max()),
        "truncated": float(train.cut.mean()),
        "truncated_test": float(test.cut.mean()),
        "duplicates": len(train_keys) - len(np.unique(train_keys, axis=0)),
        "overlap": float(np.isin(test_keys[:, 0], train_prompts).mean()),
        "distinct_prompts": len({test.examples.prompt(item).tobytes() for item in range(len(test))}),
        "templates": len(np.unique(train.templates[train.templates >= 0])),
        "top_answer": float(np.unique(test_keys[:, 1], return_counts=True)[1].max() / len(test)),
        "bad_rows": train.bad_rows + test.bad_rows + task.bad_rows.get("validation", 0),
        "packed_rows": sum(training.packed),
        "control_steps": training.steps,
        "control_tokens": training.tokens,
    }
    return row, train.examples, train_prompts, test_keys[:, 0]


def _overlap_others(trained: dict[str, np.ndarray], tested: dict[str, np.ndarray], mixture: list[str]) -> list[float]:
    """Share of each task's test prompts that another task of the mixture trains on."""
    keys, tasks = np.unique(np.concatenate([trained[name] for name in mixture]), return_counts=True)
    shares = []
    for name, prompts in tested.items():
        place = np.searchsorted(keys, prompts).clip(max=len(keys) - 1)
        having = np.where(keys[place] == prompts, tasks[place], 0)
        if name in mixture:
            having = having - np.isin(prompts, trained[name])
        shares.append(float((having > 0).mean()))
    return shares


def _totals(
    tasks: pd.DataFrame,
    examples: dict[str, Examples],
    given: dict[str, int],
    suite: Suite,
    config: Config,
    sharing: bool,
) -> dict[str, float]:
    """The figures of E and of the whole run."""
    mixture = join(
        [examples[name].select(sample(name, len(examples[name]), count, config.seed)) for name, count in given.items()]
    )
    experimental = _training(mixture, config.tuning.experimental, config, sharing)
    controls = int(tasks.control_tokens.sum())
    return {
        "missing": len(suite.missing),
        "max_tokens": config.tokens.max_tokens,
        "examples": len(mixture),
        "packed_rows": sum(experimental.packed),
        "fill": experimental.fill,
        "steps": experimental.steps,
        "epochs": experimental.epochs,
        "tokens": int(mixture.lengths.sum()),
        "trained_experimental": experimental.tokens,
        "trained_controls": controls,
        "trained": experimental.tokens + controls,
    }


@dataclass(frozen=True)
class _Training:
    """What tuning on some examples comes to.

    Attributes:
      packed: rows, short and long.
      steps: of the optimizer.
      epochs: passes over the examples in these.
      tokens: worked through over all epochs.
      fill: share of the rows' positions that hold a token.
    """

    packed: tuple[int, int]
    steps: int
    epochs: float
    tokens: int
    fill: float


def _training(examples: Examples, schedule: Schedule, config: Config, sharing: bool) -> _Training:
    tokens = config.tokens
    rows = packed(examples, tokens, sharing)
    batches = batches_of([len(part) for part in rows], schedule.batch_rows, tokens.row_length, tokens.long_row_length)
    steps = steps_for(schedule, batches)
    positions = sum(len(part) * part.length for part in rows)
    # Ids that are shared are worked through once a row.
    worked = sum(int(part.examples.lengths[part.plan.items].sum()) + len(part) * part.shared for part in rows)
    epochs = steps / batches.per_epoch
    return _Training(batches.rows, steps, epochs, round(worked * epochs), worked / positions)


def _mixture(tasks: pd.DataFrame) -> pd.DataFrame:
    """Rows and given examples, per cluster and per task."""
    sizes = tasks[["task", "cluster", "train", "mixture"]].set_axis(["name", "cluster", "rows", "given"], axis=1)
    clusters = sizes.groupby("cluster", sort=False)[["rows", "given"]].sum().reset_index()
    clusters.insert(0, "name", clusters["cluster"])
    both = pd.concat([clusters.assign(kind="cluster"), sizes.assign(kind="task")], ignore_index=True)
    both["share"] = both["given"] / tasks["mixture"].sum()
    return both[["kind", "name", "cluster", "rows", "given", "share"]]


@dataclass(frozen=True)
class _Check:
    """Something that tasks can be warned of.

    Attributes:
      column: whose figure is shown, and marked in the table.
      holds: table of tasks -> which of them it holds for.
      what: is the matter.
      so: what that spoils, and the way out.
      low: the lowest figures are the worst.
      note: only worth knowing.
    """

    column: str
    holds: Callable[[pd.DataFrame], pd.Series]
    what: str
    so: str
    low: bool = False
    note: bool = False


CHECKS = (
    _Check(
        "test",
        lambda t: t.test < FEW_PROMPTS,
        f"fewer than {FEW_PROMPTS} test prompts",
        "similarities have wide intervals and biased ones are too high; add test rows or raise tasks.max_test",
        low=True,
    ),
    _Check(
        "distinct_prompts",
        lambda t: t.distinct_prompts < FEW_DISTINCT,
        f"fewer than {FEW_DISTINCT} different test prompts",
        "every cell of the task is undefined or says nothing; mend the prompts or, where cutting made them equal, "
        "raise tokens.max_tokens",
        low=True,
    ),
    _Check(
        "distinct_prompts",
        lambda t: (t.distinct_prompts >= FEW_DISTINCT) & (t.distinct_prompts < DISTINCT_SHARE * t.test),
        "less than half of the test prompts are different",
        "each counts once, so that similarities rest on few; add others or, where cutting made prompts equal, raise "
        "tokens.max_tokens",
        low=True,
    ),
    _Check(
        "overlap",
        lambda t: t.overlap > OVERLAP,
        f"more than {OVERLAP:.0%} of the test prompts are training prompts of the same task",
        "the specialist and E are measured on what they have learnt by heart; take these rows out of train or test",
    ),
    _Check(
        "overlap_others",
        lambda t: t.overlap_others > OVERLAP,
        f"more than {OVERLAP:.0%} of the test prompts are training prompts of another task in the mixture",
        "E has seen them under another name, so the task is not unseen even if it is held out; take them out or hold "
        "out both tasks",
    ),
    _Check(
        "duplicates",
        lambda t: t.duplicates > DUPLICATES * t.train,
        f"more than {DUPLICATES:.0%} of the training rows repeat an earlier one",
        "they are trained on several times an epoch and give the task more weight in the mixture; remove them",
    ),
    _Check(
        "duplicates",
        lambda t: (t.duplicates > 0) & (t.duplicates <= DUPLICATES * t.train),
        "some training rows repeat an earlier one",
        "too few to matter much; remove them for a clean count",
        note=True,
    ),
    _Check(
        "top_answer",
        lambda t: t.top_answer > TOP_ANSWER,
        f"one answer makes up more than {TOP_ANSWER:.0%} of the test answers",
        "a model that always gives it would score as much, and a specialist may learn no more than that; balance the "
        "answers or leave the task out",
    ),
    _Check(
        "truncated",
        lambda t: t.truncated > TRUNCATED,
        f"more than {TRUNCATED:.0%} of the training rows are cut",
        "models learn from torn prompts and answers; raise tokens.max_tokens or shorten the rows",
    ),
    _Check(
        "truncated_test",
        lambda t: t.truncated_test > TRUNCATED,
        f"more than {TRUNCATED:.0%} of the test prompts are cut",
        "states and scores are those of torn prompts; raise tokens.max_tokens or shorten the prompts",
    ),
    _Check(
        "control_steps",
        lambda t: t.control_steps < FEW_STEPS,
        f"fewer than {FEW_STEPS} steps for the control model",
        "a specialist that hardly differs from the base shows nothing; raise tuning.control.epochs or lower "
        "tuning.control.batch_rows",
        low=True,
    ),
    _Check(
        "mixture",
        lambda t: ~t.held_out & (t.mixture < FEW_GIVEN),
        f"fewer than {FEW_GIVEN} examples given to E",
        "E hardly learns the task, which yet counts as one of its own; raise tasks.max_per_cluster, change "
        "tasks.mixture or hold it out",
        low=True,
    ),
    _Check(
        "bad_rows",
        lambda t: t.bad_rows > 0,
        "rows are left out as unusable",
        "the run knows less data than the files hold; mend them (tasks.allow_bad_rows=False names the first)",
    ),
)


def _warnings(tasks: pd.DataFrame, suite: Suite) -> list[str]:
    """A line for each matter, with the tasks that it concerns, worst first; notes last."""
    lines = []
    for check_ in CHECKS:
        bad = tasks[check_.holds(tasks)].sort_values(check_.column, ascending=check_.low, kind="stable")
        if len(bad):
            named = [f"{row.task} ({figure(check_.column, row[check_.column], ' %')})" for _, row in bad.iterrows()]
            kind = "note" if check_.note else "warning"
            lines.append(f"{kind}: {check_.what}: {_listed(named, len(tasks))}; {check_.so}")
    seen = tasks[~tasks.held_out].groupby("cluster", sort=False)["task"]
    alone = [f"{cluster} ({names.iloc[0]})" for cluster, names in seen if len(names) == 1]
    if alone:
        lines.append(
            f"warning: a single task of its cluster in the mixture: {_listed(alone, seen.ngroups)}; what is said of "
            "the cluster is said of that task, and E learns it from no relative; add a task or join clusters"
        )
    if suite.missing:
        lines.append(
            f"warning: tasks that no source has: {_listed([*suite.missing], len(tasks) + len(suite.missing))}; neither "
            "E nor the findings know them; add a source that has them (tasks.sources) or say so with the result"
        )
    return sorted(lines, key=lambda line: line.startswith("note"))


def _listed(names: list[str], of: int) -> str:
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{len(names)} of {of}, first {', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"


def figure(column: str, value: float, percent: str = "") -> str:
    """A column's figure; shares in percent."""
    if column not in _SHARES:
        return f"{value:.0f}"
    if 0 < value < 0.001:
        return f"<0.1{percent}"
    return f"{100 * value:.{1 if 0 < value < 0.0995 else 0}f}{percent}"


def write_look(found: Look, folder: epath.PathLike) -> None:
    """Writes tasks.csv, mixture.csv, warnings.txt and lengths.png (with .pdf)."""
    from matplotlib import rc_context

    from mossa_jax.report import drawing
    from mossa_jax.report.lengths import draw_lengths

    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tasks.csv", found.tasks.to_csv(index=False))
    write_text(folder / "mixture.csv", found.mixture.to_csv(index=False))
    write_text(folder / "warnings.txt", "".join(f"{line}\n" for line in found.warnings))
    with rc_context(drawing.STYLE):
        drawing.save(draw_lengths(found.tasks, found.lengths, found.totals["max_tokens"]), folder, "lengths")
