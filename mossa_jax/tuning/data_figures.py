"""Figures of a suite's data: what tells, before anything is trained, whether the data would spoil a result.

They come from encoded rows alone. A preview tabulates them, and a run warns of them before its first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.config import Config, Schedule
from mossa_jax.tasks import Suite, Task
from mossa_jax.tasks.mixture import mixture_counts, sample
from mossa_jax.tokens.batches import Batches
from mossa_jax.tokens.encoded import EncodedSplit, Examples, concatenate
from mossa_jax.tokens.packing import Packing
from mossa_jax.tokens.test_prompts import distinct_prompts
from mossa_jax.tuning.members import steps_for

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TrainingCost:
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


def training_cost(examples: Examples, schedule: Schedule, config: Config, sharing: bool) -> TrainingCost:
    """Packs examples as the run will, and counts.

    Args:
      examples: to train on.
      schedule: of the model.
      config: of the run.
      sharing: whether the model allows sequences to share a prefix.
    """
    packed = Packing.of(config.tokens).examples(examples, sharing)
    batches = Batches.of(packed, schedule.batch_rows)
    steps = steps_for(schedule, batches)
    positions = sum(len(rows) * rows.length for rows in packed)
    # Shared ids are worked through once per row.
    tokens = sum(int(rows.examples.lengths[rows.plan.items].sum()) + len(rows) * rows.prefix_length for rows in packed)
    epochs = steps / batches.per_epoch
    return TrainingCost(sum(batches.rows), steps, epochs, round(tokens * epochs), tokens / positions)


@dataclass(frozen=True)
class TaskFigures:
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


def task_figures(
    task: Task, held_out: bool, train: EncodedSplit, test: EncodedSplit, config: Config, sharing: bool
) -> TaskFigures:
    """Counts the rows of a task.

    Args:
      task: the task.
      held_out: whether E never sees it.
      train: its training rows.
      test: its test rows.
      config: of the run.
      sharing: whether the model allows sequences to share a prefix.

    Returns:
      `row` with the columns of `data_table` that do not depend on other tasks.
    """
    prompts = distinct_prompts(test)
    lengths = train.examples.lengths
    cost = training_cost(train.examples, config.tuning.control, config, sharing)
    train_prompts, test_prompts = np.unique(train.keys[:, 0]), test.keys[:, 0]
    row = {
        "task": task.name,
        "cluster": task.cluster,
        "held_out": held_out,
        "source": task.source,
        "train": len(train),
        "test": len(test),
        "tokens": int(lengths.sum()),
        "tokens_mean": float(lengths.mean()),
        "tokens_p95": float(np.percentile(lengths, 95)),
        "tokens_max": int(lengths.max()),
        "truncated": float(train.cut.mean()),
        "truncated_test": float(test.cut.mean()),
        "duplicates": len(train.keys) - len(np.unique(train.keys, axis=0)),
        "overlap": float(np.isin(test_prompts, train_prompts).mean()),
        "distinct_prompts": len(prompts),
        "items": len(prompts.item_sizes),
        "item_source": prompts.item_source,
        "item_mean": float(prompts.item_sizes.mean()),
        "item_max": int(prompts.item_sizes.max()),
        "test_templates": prompts.template_count or 0,
        "templates": len(np.unique(train.templates[train.templates >= 0])),
        "top_answer": float(np.unique(test.keys[:, 1], return_counts=True)[1].max() / len(test)),
        "bad_rows": train.bad_rows + test.bad_rows,
        "packed_rows": cost.packed_rows,
        "control_steps": cost.steps,
        "control_tokens": cost.tokens,
    }
    return TaskFigures(row, train.examples, train_prompts, test_prompts)


def data_table(
    figures: Mapping[str, TaskFigures], suite: Suite, config: Config, sharing: bool
) -> tuple[pd.DataFrame, Examples, TrainingCost]:
    """Tabulates the figures of all tasks.

    Args:
      figures: of each task of the suite, by its name.
      suite: the suite.
      config: of the run.
      sharing: whether the model allows sequences to share a prefix.

    Returns:
      The table, one row per task; the mixture for E; and what E's training costs. Texts are compared with their white
      space normalised. Columns:
        - `task, cluster, held_out, source`;
        - `train, test`: rows, under their caps;
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
    """
    import pandas as pd

    table = pd.DataFrame([task.row for task in figures.values()])
    counts = mixture_counts(suite, dict(zip(table.task, table.train, strict=True)), config.tasks)
    table["overlap_others"] = _overlap_others(figures, list(counts))
    table["mixture"] = [counts.get(name, 0) for name in table.task]
    parts = [
        figures[name].examples.select(sample(name, len(figures[name].examples), count, config.seed))
        for name, count in counts.items()
    ]
    mixture = concatenate(parts)
    return table, mixture, training_cost(mixture, config.tuning.experimental, config, sharing)


def _overlap_others(figures: Mapping[str, TaskFigures], in_mixture: list[str]) -> list[float]:
    """Returns the share of each task's test prompts that another task of the mixture trains on."""
    # Every training prompt of the mixture, and how many of its tasks have it.
    keys, counts = np.unique(np.concatenate([figures[name].train_prompts for name in in_mixture]), return_counts=True)
    shares = []
    for name, task in figures.items():
        prompts = task.test_prompts
        index = np.searchsorted(keys, prompts).clip(max=len(keys) - 1)
        tasks_with_it = np.where(keys[index] == prompts, counts[index], 0)
        if name in in_mixture:
            tasks_with_it = tasks_with_it - np.isin(prompts, task.train_prompts)
        shares.append(float((tasks_with_it > 0).mean()))
    return shares
