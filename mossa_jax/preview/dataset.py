"""A preview of the suite before the run: sizes, lengths, the mixture, and what would spoil the result.

It reads the rows and the tokenizer; no weights are loaded and nothing is trained. Encoded rows go to the cache, where
the run finds them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from etils import epath

from mossa_jax.config import Config, check
from mossa_jax.files.csv_text import csv_text
from mossa_jax.files.write import write_text
from mossa_jax.findings.warnings import data_warnings, in_order, pooling_warnings
from mossa_jax.llama.files.base import base_can_share_prefix, base_tokenizer
from mossa_jax.monitoring.progress import Progress
from mossa_jax.tasks import Suite, load_suite
from mossa_jax.tokens.encoded import Examples, encode_rows
from mossa_jax.tuning.data_figures import TaskFigures, TrainingCost, data_table, task_figures


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
    """A suite's figures before a run.

    Attributes:
      tasks: one row per task, with the columns of `data_figures.data_table` and `validation`, the rows of that split.
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
    figures: dict[str, TaskFigures] = {}
    validation = []
    progress = Progress("preview", len(suite.tasks))
    for number, task in enumerate(suite.tasks, 1):
        train, test = (encode_rows(task, split, tokenizer, config) for split in ("train", "test"))
        figures[task.name] = task_figures(task, task.name in suite.held_out, train, test, config, sharing)
        validation.append(sum(1 for _ in task.rows("validation")))
        progress.line(number, f"{task.name}: {len(train)} train, {len(test)} test")
    tasks, mixture, cost = data_table(figures, suite, config, sharing)
    tasks.insert(tasks.columns.get_loc("test"), "validation", validation)
    warnings = in_order([*data_warnings(tasks, suite, cost.steps), *pooling_warnings(config.compare.pool)])
    lengths = {name: task.examples.lengths for name, task in figures.items()}
    totals = _totals(tasks, mixture, cost, suite, config)
    return Preview(tasks, _mixture_table(tasks), totals, [warning.line for warning in warnings], lengths)


def write_preview(preview: Preview, folder: epath.PathLike) -> None:
    """Writes tasks.csv, mixture.csv, warnings.txt and lengths.png (with .svg and .pdf)."""
    from mossa_jax.report.drawing.glyphs import say_missing
    from mossa_jax.report.drawing.length_histograms import draw_lengths
    from mossa_jax.report.drawing.saving import save, settle
    from mossa_jax.report.drawing.style import figure_style

    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tasks.csv", csv_text(preview.tasks))
    write_text(folder / "mixture.csv", csv_text(preview.mixture))
    write_text(folder / "warnings.txt", "".join(f"{line}\n" for line in preview.warnings))
    with figure_style():
        figure = draw_lengths(preview.tasks, preview.lengths, preview.totals.max_tokens)
    say_missing(settle(figure))
    save(figure, folder, "lengths", "Length of the training examples")


def _totals(tasks: pd.DataFrame, mixture: Examples, cost: TrainingCost, suite: Suite, config: Config) -> Totals:
    """Returns the figures of E and of the whole run."""
    return Totals(
        missing=len(suite.missing),
        max_tokens=config.tokens.max_tokens,
        examples=len(mixture),
        packed_rows=cost.packed_rows,
        fill=cost.fill,
        steps=cost.steps,
        epochs=cost.epochs,
        tokens=int(mixture.lengths.sum()),
        trained_experimental=cost.tokens,
        trained_controls=int(tasks.control_tokens.sum()),
    )


def _mixture_table(tasks: pd.DataFrame) -> pd.DataFrame:
    """Tabulates training rows and examples in the mixture, per cluster and per task."""
    per_task = tasks[["task", "cluster", "train", "mixture"]].set_axis(["name", "cluster", "rows", "given"], axis=1)
    per_cluster = per_task.groupby("cluster", sort=False)[["rows", "given"]].sum().reset_index()
    per_cluster.insert(0, "name", per_cluster["cluster"])
    table = pd.concat([per_cluster.assign(kind="cluster"), per_task.assign(kind="task")], ignore_index=True)
    table["share"] = table["given"] / tasks["mixture"].sum()
    return table[["kind", "name", "cluster", "rows", "given", "share"]]
