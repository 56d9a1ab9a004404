"""A preview of the suite before the run: sizes, lengths, the mixture, and what would spoil the result.

It reads the rows and the tokenizer; no weights are loaded and nothing is trained. Encoded rows go to the cache, where
the run finds them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from mossa_jax.config import Config, Schedule, check
from mossa_jax.files.write import write_text
from mossa_jax.llama.files.base import base_can_share_prefix, base_tokenizer
from mossa_jax.monitoring.progress import Progress
from mossa_jax.findings.warning_kinds import warnings_for
from mossa_jax.tasks import Suite, Task, load_suite
from mossa_jax.tasks.mixture import mixture_counts, sample
from mossa_jax.tasks.order import draw_seed, take_rows
from mossa_jax.tokens.batches import Batches
from mossa_jax.tokens.encoded import Examples, concatenate, encode_rows
from mossa_jax.tokens.packing import Packing
from mossa_jax.tokens.test_prompts import distinct_prompts
from mossa_jax.tokens.tokenizer import Tokenizer
from mossa_jax.tuning.members import steps_for


@dataclass(frozen=True)
class Totals:
    """Figures of E and of the whole run.

    Attributes:
      missing: tasks that no source has.
      max_tokens: positions that prompt and answer may take together.
      examples: examples in the mixture for E.
      packed_rows: packed rows of the mixture.
      fill: share of their positions that hold a token.
      steps: optimizer steps of E.
      epochs: passes over the mixture in these steps.
      tokens: tokens of the mixture.
      trained_experimental: tokens that E is trained on, over all epochs.
      trained_controls: tokens that all control models are trained on, over all epochs.
    """

    missing: int
    max_tokens: int
    examples: int
    packed_rows: int
    fill: float
    steps: int
    epochs: float
    tokens: int
    trained_experimental: int
    trained_controls: int

    @property
    def trained(self) -> int:
        """Tokens that all models are trained on, over all epochs."""
        return self.trained_experimental + self.trained_controls


@dataclass(frozen=True)
class Preview:
    """A suite's figures before a run. Texts are compared with their white space normalised.

    Attributes:
      tasks: one row per task with the columns
        - `task, cluster, held_out, source`;
        - `train, validation, test`: rows, train and test under their caps;
        - `tokens`: tokens of all training rows; `tokens_mean, tokens_p95, tokens_max` of one row, prompt and answer
          after cutting;
        - `truncated, truncated_test`: shares of training rows and of test prompts that are cut;
        - `duplicates`: training rows that repeat an earlier one;
        - `overlap`: share of test prompts that are training prompts of the task; `overlap_others`: of other tasks in
          the mixture;
        - `distinct_prompts`: distinct test prompts after cutting;
        - `items`: of the distinct test prompts, those about one passage or of one row count as one; `item_source`:
          "column", "guessed" or "rows"; `item_mean, item_max`: distinct test prompts per item;
        - `test_templates`: different instruction templates of the distinct test prompts, 0 if the source does not say;
        - `templates`: different instruction templates in train, 0 if the source does not say;
        - `top_answer`: share of the most frequent test answer;
        - `bad_rows`: unusable rows that are left out;
        - `mixture`: examples in the mixture for E;
        - `packed_rows, control_steps, control_tokens`: packed rows of the task's control model, its steps, and the
          tokens that it is trained on over all epochs.
      mixture: one row per cluster and per task (`kind`): `name, cluster, rows, given, share`; `given` counts the
        examples in the mixture, `share` is their share of it.
      totals: figures of E and of the whole run.
      warnings: one line each; a line that is only worth knowing starts with "note".
      lengths: task -> [n] int32, tokens of each training row.
    """

    tasks: pd.DataFrame
    mixture: pd.DataFrame
    totals: Totals
    warnings: list[str]
    lengths: dict[str, np.ndarray]


def preview_dataset(config: Config) -> Preview:
    """Reads every task's rows, encodes what the run will encode, and counts.

    Raises:
      Refusal: 2 for a bad configuration; 3 for bad data or a model folder without config or tokenizer; 4 if access is
        denied.
    """
    check(config)
    suite = load_suite(config.tasks)
    tokenizer = base_tokenizer(config)
    sharing = base_can_share_prefix(config)
    measured: dict[str, _MeasuredTask] = {}
    progress = Progress("preview", len(suite.tasks))
    for number, task in enumerate(suite.tasks, 1):
        measured[task.name] = _measure(task, task.name in suite.held_out, tokenizer, config, sharing)
        row = measured[task.name].row
        progress.line(number, f"{task.name}: {row['train']} train, {row['test']} test")
    tasks = pd.DataFrame([task.row for task in measured.values()])
    counts = mixture_counts(suite, dict(zip(tasks.task, tasks.train, strict=True)), config.tasks)
    tasks["overlap_others"] = _overlap_others(measured, list(counts))
    tasks["mixture"] = [counts.get(name, 0) for name in tasks.task]
    mixture = concatenate(
        [
            measured[name].examples.select(sample(name, len(measured[name].examples), count, config.seed))
            for name, count in counts.items()
        ]
    )
    totals = _totals(tasks, mixture, suite, config, sharing)
    lengths = {name: task.examples.lengths for name, task in measured.items()}
    return Preview(tasks, _mixture_table(tasks), totals, warnings_for(tasks, suite), lengths)


def write_preview(preview: Preview, folder: epath.PathLike) -> None:
    """Writes tasks.csv, mixture.csv, warnings.txt and lengths.png (with .pdf)."""
    from mossa_jax.report import figure_elements
    from mossa_jax.report.length_histograms import draw_lengths

    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tasks.csv", preview.tasks.to_csv(index=False))
    write_text(folder / "mixture.csv", preview.mixture.to_csv(index=False))
    write_text(folder / "warnings.txt", "".join(f"{line}\n" for line in preview.warnings))
    # matplotlib's stubs want literal keys; the style is a plain dict.
    with figure_elements.figure_style():
        figure_elements.save(draw_lengths(preview.tasks, preview.lengths, preview.totals.max_tokens), folder, "lengths")


@dataclass(frozen=True)
class _MeasuredTask:
    """The figures of a task, and what those of other tasks need.

    Attributes:
      row: of the table of tasks, without the columns that depend on other tasks.
      examples: its training rows, encoded.
      train_prompts: [distinct training prompts] uint64 keys, sorted.
      test_prompts: [test prompts] uint64 keys.
    """

    row: dict[str, Any]
    examples: Examples
    train_prompts: np.ndarray
    test_prompts: np.ndarray


def _measure(task: Task, held_out: bool, tokenizer: Tokenizer, config: Config, sharing: bool) -> _MeasuredTask:
    """Encodes and counts the rows of a task.

    Args:
      task: the task.
      held_out: whether E never sees it.
      tokenizer: of the base model.
      config: of the run.
      sharing: whether the model allows sequences to share a prefix.
    """
    train, test = (encode_rows(task, split, tokenizer, config) for split in ("train", "test"))
    train_keys, test_keys = (_keys(task, split, config) for split in ("train", "test"))
    prompts = distinct_prompts(test)
    validation = sum(1 for _ in task.rows("validation"))
    lengths = train.examples.lengths
    training = _training_cost(train.examples, config.tuning.control, config, sharing)
    train_prompts = np.unique(train_keys[:, 0])
    row = {
        "task": task.name,
        "cluster": task.cluster,
        "held_out": held_out,
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
        "distinct_prompts": len(prompts),
        "items": len(prompts.item_sizes),
        "item_source": prompts.item_source,
        "item_mean": float(prompts.item_sizes.mean()),
        "item_max": int(prompts.item_sizes.max()),
        "test_templates": prompts.template_count or 0,
        "templates": len(np.unique(train.templates[train.templates >= 0])),
        "top_answer": float(np.unique(test_keys[:, 1], return_counts=True)[1].max() / len(test)),
        "bad_rows": train.bad_rows + test.bad_rows + task.bad_rows.get("validation", 0),
        "packed_rows": training.packed_rows,
        "control_steps": training.steps,
        "control_tokens": training.tokens,
    }
    return _MeasuredTask(row, train.examples, train_prompts, test_keys[:, 0])


def _keys(task: Task, split: str, config: Config) -> np.ndarray:
    """Returns the keys of the inputs and targets of the rows that the run takes: [n, 2] uint64."""
    limit = config.tasks.max_test if split == "test" else config.tasks.max_train
    rows = take_rows(task, split, limit, draw_seed(config, task, split))
    keys = (_key(text) for row in rows for text in (row.inputs, row.targets))
    return np.fromiter(keys, np.uint64).reshape(-1, 2)


def _key(text: str) -> int:
    """Returns eight bytes that stand for a text, independent of its white space."""
    normalised = " ".join(text.split()).encode()
    return int.from_bytes(hashlib.blake2b(normalised, digest_size=8).digest())


def _overlap_others(measured: Mapping[str, _MeasuredTask], in_mixture: list[str]) -> list[float]:
    """Returns the share of each task's test prompts that another task of the mixture trains on."""
    # Every training prompt of the mixture, and how many of its tasks have it.
    keys, counts = np.unique(np.concatenate([measured[name].train_prompts for name in in_mixture]), return_counts=True)
    shares = []
    for name, task in measured.items():
        prompts = task.test_prompts
        index = np.searchsorted(keys, prompts).clip(max=len(keys) - 1)
        tasks_with_it = np.where(keys[index] == prompts, counts[index], 0)
        if name in in_mixture:
            tasks_with_it = tasks_with_it - np.isin(prompts, task.train_prompts)
        shares.append(float((tasks_with_it > 0).mean()))
    return shares


def _totals(tasks: pd.DataFrame, mixture: Examples, suite: Suite, config: Config, sharing: bool) -> Totals:
    """Computes the figures of E and of the whole run."""
    experimental = _training_cost(mixture, config.tuning.experimental, config, sharing)
    return Totals(
        missing=len(suite.missing),
        max_tokens=config.tokens.max_tokens,
        examples=len(mixture),
        packed_rows=experimental.packed_rows,
        fill=experimental.fill,
        steps=experimental.steps,
        epochs=experimental.epochs,
        tokens=int(mixture.lengths.sum()),
        trained_experimental=experimental.tokens,
        trained_controls=int(tasks.control_tokens.sum()),
    )


@dataclass(frozen=True)
class _TrainingCost:
    """The cost of tuning on some examples.

    Attributes:
      packed_rows: packed rows, short and long.
      steps: optimizer steps.
      epochs: passes over the examples in these steps.
      tokens: tokens that are worked through over all epochs.
      fill: share of the rows' positions that hold a token.
    """

    packed_rows: int
    steps: int
    epochs: float
    tokens: int
    fill: float


def _training_cost(examples: Examples, schedule: Schedule, config: Config, sharing: bool) -> _TrainingCost:
    """Packs examples as the run will, and counts."""
    packed = Packing.of(config.tokens).examples(examples, sharing)
    batches = Batches.of(packed, schedule.batch_rows)
    steps = steps_for(schedule, batches)
    positions = sum(len(rows) * rows.length for rows in packed)
    # Shared ids are worked through once per row.
    tokens = sum(int(rows.examples.lengths[rows.plan.items].sum()) + len(rows) * rows.prefix_length for rows in packed)
    epochs = steps / batches.per_epoch
    return _TrainingCost(sum(batches.rows), steps, epochs, round(tokens * epochs), tokens / positions)


def _mixture_table(tasks: pd.DataFrame) -> pd.DataFrame:
    """Tabulates training rows and examples in the mixture, per cluster and per task."""
    per_task = tasks[["task", "cluster", "train", "mixture"]].set_axis(["name", "cluster", "rows", "given"], axis=1)
    per_cluster = per_task.groupby("cluster", sort=False)[["rows", "given"]].sum().reset_index()
    per_cluster.insert(0, "name", per_cluster["cluster"])
    table = pd.concat([per_cluster.assign(kind="cluster"), per_task.assign(kind="task")], ignore_index=True)
    table["share"] = table["given"] / tasks["mixture"].sum()
    return table[["kind", "name", "cluster", "rows", "given", "share"]]
