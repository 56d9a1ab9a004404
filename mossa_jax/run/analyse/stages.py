"""The stages of the analyses: each continues where it stopped, and its unit of finished work is a task's part.

An analysis of states gets them from the comparison, task by task, while they are on the devices. One that is asked for
after the comparison has them computed again, once for all analyses that need them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mossa_jax.files import sums
from mossa_jax.files.checked import read_table, write_table
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes import agreement
from mossa_jax.run import models
from mossa_jax.run.analyse.analysis import Analysis, TaskStates
from mossa_jax.run.context import Run
from mossa_jax.run.lineup import line_up
from mossa_jax.similarity.engine import KEPT
from mossa_jax.tasks import Task


def wanted(run: Run, analyses: Sequence[Analysis]) -> list[Analysis]:
    """Returns the analyses that this run makes: those that are asked for, and have tasks and states to look at."""
    chosen = [analysis for analysis in analyses if analysis.is_wanted(run) and analysis.tasks(run)]
    return [analysis for analysis in chosen if not analysis.needs_states or run.config.compare.pool != "all"]


def check(run: Run, analyses: Sequence[Analysis]) -> None:
    """Reads which tasks each analysis looks at, so that a word that names none is refused before anything is tuned.

    Raises:
      Refusal: 2 for a name that is no task or cluster.
    """
    for analysis in analyses:
        if analysis.is_wanted(run):
            analysis.tasks(run)


def announce(run: Run, analyses: Sequence[Analysis]) -> None:
    """Says what each analysis with work to do costs."""
    for analysis in analyses:
        if analysis.is_wanted(run) and not analysis.tasks(run):
            log.info("%s: left out, since it needs %s", analysis.name, analysis.needs or "tasks")
        elif analysis.is_wanted(run) and analysis.needs_states and run.config.compare.pool == "all":
            log.info("%s: left out, since compare.pool='all' keeps no states", analysis.name)
    names = []
    for analysis in wanted(run, analyses):
        missing = run.without_part(analysis.parts, analysis.tasks(run))
        if missing:
            names.append(analysis.name)
            log.debug("%s, %d of %d tasks to do: %s", analysis.name, len(missing), len(analysis.tasks(run)),
                      analysis.price(run))  # fmt: skip
    if names:
        log.info("compare: CKA of every layer, and beside it or after it: %s (config.analyse)", ", ".join(names))


def task_states(run: Run, task: Task, names: Sequence[str | None], most: int | None = None) -> TaskStates:
    """Computes the states of models over a task's prompts.

    Args:
      run: the run that tuned the models.
      task: whose prompts are read.
      names: of models; None is the base.
      most: only so many prompts, the first ones; all by default.
    """
    prompts = run.test_prompts(task)
    shapes = run.pass_shapes
    if most is not None:
        prompts, shapes = prompts.first(most), run.sample_shapes
    ids: list = prompts.ids  # NumPy arrays, which stand for sequences of ids
    return TaskStates(tuple(names), models.model_states(run, names, ids, shapes=shapes), prompts)


def analyse_states(run: Run, task: Task, states: TaskStates, analyses: Sequence[Analysis]) -> None:
    """Makes the parts of a task that analyses of states still lack."""
    for analysis in wanted(run, analyses):
        if analysis.needs_states and _is_missing(run, analysis, task):
            with run.ledger.stage(analysis.name), goodput.useful():
                run.write_part(analysis.parts, task, analysis.rows(run, task, states))
                goodput.record()


def _is_missing(run: Run, analysis: Analysis, task: Task) -> bool:
    names = {each.name for each in analysis.tasks(run)}
    return task.name in names and bool(run.without_part(analysis.parts, [task]))


def analyse(run: Run, analyses: Sequence[Analysis]) -> None:
    """Makes all parts that are missing, and the tables.

    Raises:
      Refusal: 3 if a model is not tuned yet, or was tuned with another prompt template.
    """
    chosen = wanted(run, analyses)
    _states_of_finished_tasks(run, [analysis for analysis in chosen if analysis.needs_states])
    for analysis in chosen:
        with run.ledger.stage(analysis.name):
            if not analysis.needs_states:
                _make_parts(run, analysis)
            with goodput.useful():
                _write_tables(run, analysis)
    agreement.wait_for_all("analyses")


def _states_of_finished_tasks(run: Run, analyses: Sequence[Analysis]) -> None:
    """Computes the states of tasks once more, for analyses that were not made during the comparison."""
    tasks = [task for task in run.suite.tasks if any(_is_missing(run, analysis, task) for analysis in analyses)]
    if not tasks:
        return
    names = ", ".join(analysis.name for analysis in analyses)
    log.info("states: computed once more for %d tasks, for %s", len(tasks), names)
    progress = Progress("states", len(tasks))
    with run.ledger.stage("states"):
        most = None if engine_of(run) == KEPT else run.config.analyse.prompts
        for number, task in enumerate(tasks, 1):
            with goodput.useful():
                states = task_states(run, task, line_up(run, task).names, most)
            analyse_states(run, task, states, analyses)
            progress.line(number, task.name)
            run.stop.leave_if_asked()


def engine_of(run: Run) -> str:
    """Chooses the engine for the task with the most models and prompts, so that all tasks of a run use the same one."""
    lineup = max((line_up(run, task).lineup for task in run.suite.tasks), key=lambda each: each.models)
    prompts = max(len(run.encoded(task, "test")) for task in run.suite.tasks)
    return models.choose_engine(run, lineup.models, prompts, lineup.pairs)


def _make_parts(run: Run, analysis: Analysis) -> None:
    tasks = analysis.tasks(run)
    missing = run.without_part(analysis.parts, tasks)
    done = len(tasks) - len(missing)
    progress = Progress(analysis.name, len(tasks), done)
    for number, task in enumerate(missing, done + 1):
        with goodput.useful(analysis.name, number - 1):
            rows = analysis.rows(run, task, None)
        run.write_part(analysis.parts, task, rows)
        progress.line(number, task.name)
        run.stop.leave_if_asked()


def _write_tables(run: Run, analysis: Analysis) -> None:
    if run.folder.writer:
        parts = pd.concat([run.read_part(analysis.parts, task) for task in analysis.tasks(run)], ignore_index=True)
        for name, table in analysis.tables(run, parts).items():
            write_table(run.results / f"{name}.parquet", table)


def read_tables(run: Run, analyses: Sequence[Analysis]) -> Mapping[str, pd.DataFrame]:
    """Reads the tables of the analyses that this run makes, as far as they exist (writer only).

    Raises:
      Refusal: 3 for one that is not as it was written.
    """
    names = [name for analysis in wanted(run, analyses) for name in analysis.table_names]
    paths = {name: run.results / f"{name}.parquet" for name in names}
    return {name: read_table(path) for name, path in paths.items() if sums.recorded(path) or path.exists()}
