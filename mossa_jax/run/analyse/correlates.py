"""What goes with similarity over tasks: readability of the prompts and size of the data (the paper's figure 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mossa_jax.files.write import read_parquet
from mossa_jax.findings.correlates import find_correlates
from mossa_jax.run.analyse.analysis import Analysis, TaskStates, all_tasks, one_table
from mossa_jax.run.context import Run
from mossa_jax.run.prepare import read_record
from mossa_jax.tasks import Task
from mossa_jax.tasks.readability import readability

if TYPE_CHECKING:
    import pandas as pd


def _price(run: Run) -> str:
    return f"reads {run.config.analyse.correlates_prompts} prompts per task; nothing runs on the devices"


def _rows(run: Run, task: Task, _: TaskStates | None) -> list[dict[str, Any]]:
    record = read_record(run.folder)
    assert record is not None
    # The rows of a split come in the order of its draw, so the first ones are a sample.
    texts = [row.inputs for row in run.test_examples(task, run.config.analyse.correlates_prompts)]
    rows = record["tasks"][task.name]["train"]["rows"]
    return [{**readability(texts), "training_rows": rows, "texts": len(texts)}]


def _tables(run: Run, parts: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    import pandas as pd

    scored = [task for task in run.suite.tasks if run.part("scores", task).exists()]
    scores = [run.read_part("scores", task) for task in scored]
    empty = pd.DataFrame(columns=["task", "cluster", "held_out", "model", "metric", "value", "low", "high", "n"])
    correlates = find_correlates(
        read_parquet(run.folder / "results/cka.parquet"),
        pd.concat(scores, ignore_index=True) if scores else empty,
        parts,
        run.config.seed,
        run.config.compare.draws,
    )
    return {"correlates": correlates, **one_table("readability")(run, parts)}


ANALYSIS = Analysis(
    name="correlates",
    settings=("correlates_prompts",),
    table_names=("correlates", "readability"),
    needs_states=False,
    price=_price,
    tasks=all_tasks,
    rows=_rows,
    tables=_tables,
)
