"""The comparison stage: CKA of base and E with the control models, task by task."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.write import write_table
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes import agreement
from mossa_jax.run.context import Run
from mossa_jax.run.models import chosen_engine, similarities
from mossa_jax.run.prepare import prepare
from mossa_jax.similarity.cells import cells, pairs_of, with_q
from mossa_jax.tasks import Task

ORDER = ("experimental", "control", "task", "cluster", "held_out")


def compare(run: Run) -> pd.DataFrame | None:
    """Compares pre-trained and tuned E with the control models, task by task; writes results/cka.parquet.

    Returns:
      The table; None on processes that do not write.
    """
    prepare(run)
    with run.ledger.stage("compare"):
        return _compare(run)


def _compare(run: Run) -> pd.DataFrame | None:
    tasks, run_folder = run.suite.tasks, run.folder
    lacking = run.untuned([TUNED, *(task.name for task in tasks)])
    if lacking:
        raise Refusal(
            BAD_INPUT,
            f"{run_folder.path} has no adapter or model of {lacking[0]!r} yet; run launch.tune or launch.run first",
        )
    todo = run.unfinished("cka")
    progress = Progress("compare", len(tasks), len(tasks) - len(todo))
    how = _engine(run, tasks) if todo else ""
    for number, task in enumerate(todo, len(tasks) - len(todo) + 1):
        with goodput.useful("compare", number - 1):
            rows, text = _compare_task(run, task, how)
        goodput.running(())  # nothing is any more: similarities are on the host
        run.write_part("cka", task, rows)
        progress.line(number, f"{task.name}: {text}")
        run.stop.leave_if_asked()
    table = None
    if run_folder.writer:
        table = with_q(pd.concat([run.read_part("cka", task) for task in tasks]), _untouched(run))
        table = table[[*ORDER, *[name for name in table.columns if name not in (*ORDER, "undefined")], "undefined"]]
        write_table(run_folder / "results/cka.parquet", table)
    agreement.wait_for_all("table")
    return table


def _engine(run: Run, tasks: list[Task]) -> str:
    """How similarities are found, by the task with the most prompts."""
    controls = 1 + run.config.compare.mismatched
    prompts = max(len(run.encoded(task, "test")) for task in tasks)
    return chosen_engine(run, 2 + controls, prompts, pairs_of(controls))


def _compare_task(run: Run, task: Task, how: str) -> tuple[list[dict], str]:
    controls = [task.name, *_mismatched(run, task)]
    models, pairs = [None, TUNED, *controls], pairs_of(len(controls))
    found = similarities(run, how, models, run.test_prompts(task), pairs)
    rows = []
    for (one, other), made in zip(pairs, cells(found, pairs, run.architecture.state_names()), strict=True):
        named = {"experimental": models[one] or PRETRAINED, "control": models[other]}
        rows += [{**named, **cell} for cell in made]
    middle = str(run.architecture.layers // 2)
    shown = [
        f"{row['experimental']} {row['cka']:.3f}"
        for row in rows
        if row["layer"] == middle and row["estimator"] == "debiased" and row["control"] == task.name
    ]
    dropped = f", {found.dropped} rows not finite" if found.dropped else ""
    return rows, f"layer {middle}: {', '.join(shown)}, n {found.n}{dropped}"


def _untouched(run: Run) -> list[str]:
    """The layers below all adapters; none where models are tuned in full."""
    tuning = run.config.tuning
    if "full" in (tuning.control.method, tuning.experimental.method):
        return []
    return run.architecture.state_names()[: 1 + tuning.first_layer]


def _mismatched(run: Run, task: Task) -> list[str]:
    """Control models of other clusters for this task's prompts, drawn anew for each task.

    Of tasks of the mixture, where there are any: E has not seen the others. One specialist that is odd must not stand
    for "others" in a whole cluster.
    """
    suite = run.suite
    others = [other.name for other in suite.tasks if other.cluster != task.cluster]
    others = [name for name in others if name not in suite.held_out] or others
    order = np.random.default_rng((*run.seed(task.name), 4)).permutation(len(others))
    return [others[index] for index in order[: run.config.compare.mismatched]]
