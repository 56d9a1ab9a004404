"""What goes with similarity over tasks: readability of the prompts and size of the data (the paper's figure 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mossa_jax.files.checked import read_table
from mossa_jax.findings.correlates import find_correlates
from mossa_jax.run.analyse.analysis import Analysis, TaskStates, all_tasks, no_models, one_table
from mossa_jax.run.context import Run
from mossa_jax.run.score import SCORES
from mossa_jax.tasks import Task
from mossa_jax.tasks.readability import readability

if TYPE_CHECKING:
    import pandas as pd


def _price(run: Run) -> str:
    return f"reads {run.config.analyse.correlates_prompts} prompts per task; nothing runs on the devices"


def _rows(run: Run, task: Task, _: TaskStates | None) -> list[dict[str, Any]]:
    # The rows of a split come in the order of its draw, so the first ones are a sample.
    texts = [row.inputs for row in run.test_examples(task, run.config.analyse.correlates_prompts)]
    rows = run.record["tasks"][task.name]["train"]["rows"]
    return [{**readability(texts), "training_rows": rows, "texts": len(texts)}]


def _tables(run: Run, parts: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    import pandas as pd

    scores = run.read_parts(SCORES)
    empty = pd.DataFrame(columns=["task", "cluster", "held_out", "model", "metric", "value", "low", "high", "n"])
    correlates = find_correlates(
        read_table(run.results / "cka.parquet"),
        empty if scores is None else scores,
        parts,
        run.config.seed,
        run.config.compare.draws,
    )
    return {"correlates": correlates, **one_table("readability")(run, parts)}


ANALYSIS = Analysis(
    name="correlates",
    models=no_models,
    settings=("correlates_prompts",),
    table_names=("correlates", "readability"),
    needs_states=False,
    price=_price,
    tasks=all_tasks,
    rows=_rows,
    tables=_tables,
)
