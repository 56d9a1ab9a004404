"""The comparison stage: CKA of the base and of E with the control models, task by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.checked import write_table
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes import agreement
from mossa_jax.run import models
from mossa_jax.run.analyse import TaskStates, analyse_states, announce, task_states
from mossa_jax.run.analyse.stages import engine_of
from mossa_jax.run.change import CHANGE_ERROR, CONTROL, change_table
from mossa_jax.run.context import Run
from mossa_jax.run.lineup import Compared, line_up
from mossa_jax.run.noise import add_errors
from mossa_jax.run.parts import PartKind
from mossa_jax.run.prepare import prepare
from mossa_jax.run.score import SCORES
from mossa_jax.similarity import Similarities
from mossa_jax.similarity.cells import add_q_values, similarity_cells
from mossa_jax.similarity.changes import paired_changes
from mossa_jax.similarity.engine import KEPT
from mossa_jax.similarity.estimators import MIN_ROWS
from mossa_jax.similarity.lineup import BASE, OWN, E
from mossa_jax.states.finite import find_not_finite, refuse_not_finite
from mossa_jax.tasks import Task

# Prompts that are looked at for the layer where states stop being finite.
_LOOKED_AT = 64

SIMILARITIES = PartKind(
    "cka",
    models=lambda run, task: [name for name in line_up(run, task).kept_names if name is not None],
    settings=lambda run: {name: getattr(run.config.compare, name) for name in ("pool", "engine", "permutations")},
)
"""The cells of a task."""

FIRST_COLUMNS = ("experimental", "control", "task", "cluster", "held_out")


def compare(run: Run) -> pd.DataFrame | None:
    """Compares the pre-trained and the tuned E with the control models, task by task; writes results/cka.parquet.

    Tasks that are compared already are left as they are.

    Returns:
      The table; None on processes that do not write.

    Raises:
      Refusal: 3 if a model is not tuned yet.
    """
    prepare(run)
    announce(run)
    with run.ledger.stage("compare"):
        run.ahead.take_over("compare")
        return _compare_tasks(run)


def _compare_tasks(run: Run) -> pd.DataFrame | None:
    tasks = run.suite.tasks
    untuned = run.untuned([*run.experimental_names, *run.controls])
    if untuned:
        raise Refusal(
            BAD_INPUT,
            f"{run.folder.path} has no adapter or model of {untuned[0]!r} yet; run launch.tune or launch.run first",
        )
    unfinished = run.unfinished(SIMILARITIES)
    done = len(tasks) - len(unfinished)
    progress = Progress("compare", len(tasks), done)
    engine = engine_of(run) if unfinished else ""
    for number, task in enumerate(unfinished, done + 1):
        with goodput.useful("compare", number - 1):
            compared, states = line_up(run, task), None
            if engine == KEPT:
                states = task_states(run, task, compared.names)
            rows, summary = _compare_task(run, task, compared, states)
        goodput.running(())  # the similarities are on the host: no program runs any more
        run.write_part(SIMILARITIES, task, rows)
        if states is not None:
            analyse_states(run, task, states)
        progress.line(number, f"{task.name}: {summary}")
        run.stop.leave_if_asked()
    table = None
    if run.folder.writer:
        untouched = _untouched_layers(run)
        cells = pd.concat([run.read_part(SIMILARITIES, task) for task in tasks], ignore_index=True)
        table = add_errors(add_q_values(cells, untouched))
        between = [name for name in table.columns if name not in (*FIRST_COLUMNS, "undefined", CHANGE_ERROR)]
        write_table(run.results / "change.parquet", change_table(table, _scores(run), untouched))
        table = table[[*FIRST_COLUMNS, *between, "undefined"]]
        write_table(run.results / "cka.parquet", table)
    agreement.wait_for_all("table")
    return table


def _scores(run: Run) -> pd.DataFrame:
    """Returns the scores of all tasks that have them."""
    scores = run.read_parts(SCORES)
    return pd.DataFrame() if scores is None else scores


def _compare_task(run: Run, task: Task, compared: Compared, states: TaskStates | None) -> tuple[list[dict], str]:
    """Returns the rows of a task's part of the table, and a line for the log; without states, sums are streamed."""
    names, pairs = compared.names, compared.lineup.pairs
    if states is None:
        similarities = models.streamed_similarities(run, names, run.test_prompts(task), pairs)
    else:
        similarities = models.kept_similarities(run, states.kept, states.prompts, pairs)
    if similarities.dropped:
        _look_at_dropped(run, task, names, states, similarities)
    # [K, 2], of E against the own control less the base against it.
    (change_error,) = paired_changes(similarities, [pairs.index((E, OWN))], [pairs.index((BASE, OWN))]).error
    rows = []
    pair_cells = similarity_cells(similarities, pairs, run.architecture.state_names())
    for (a, b), cells in zip(pairs, pair_cells, strict=True):
        if not compared.fillers.intersection((a, b)):
            sides = {"experimental": CONTROL if a == OWN else names[a] or PRETRAINED, "control": names[b]}
            # Cells go layer by layer and estimator by estimator.
            errors = change_error.ravel() if (a, b) == (E, OWN) else np.full(len(cells), np.nan)
            rows += [{**sides, **cell, CHANGE_ERROR: error} for cell, error in zip(cells, errors, strict=True)]
    return rows, _summary(rows, task, str(run.architecture.layers // 2))


def _look_at_dropped(
    run: Run, task: Task, names: Sequence[str | None], states: TaskStates | None, similarities: Similarities
) -> None:
    """Names model and layer of states that are not finite; refuses, with code 5, where they leave too few rows."""
    if states is None:
        # Sums keep no states, so some of them are computed again for the message.
        config = dataclasses.replace(run.pass_config, pool="mean")
        ids: list = run.test_prompts(task).ids[:_LOOKED_AT]
        kept = models.model_states(run, names, ids, config, ())
    else:
        kept = states.kept
    where = find_not_finite(kept)
    if where is None:
        log.warning("%s: %d prompts have states that are not finite, left out of all models", task.name,
                    similarities.dropped)  # fmt: skip
        return
    name = names[where.model] or PRETRAINED
    if similarities.units < MIN_ROWS:
        refuse_not_finite(f"task {task.name}: model {name}", where, None if run.is_whole(name) else run.model)
    log.warning(
        "%s: %d prompts are left out of all models, since states of %s are not finite from layer %s on",
        *(task.name, similarities.dropped, name, where.layer),
    )


def _summary(rows: list[dict], task: Task, layer: str) -> str:
    """Says how similar E's models are to the task's own control at one layer."""
    values = [
        f"{row['experimental']} {row['cka']:.3f}"
        for row in rows
        if row["layer"] == layer and row["estimator"] == "debiased" and row["control"] == task.name
    ]
    return f"CKA with its specialist in layer {layer}: {', '.join(values)}"


def _untouched_layers(run: Run) -> Sequence[str]:
    """Returns the layers below all adapters; none if models are tuned in full."""
    if models.tunes_whole_models(run.config):
        return []
    return run.architecture.state_names()[: 1 + run.config.tuning.first_layer]
