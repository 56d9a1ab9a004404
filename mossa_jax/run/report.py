"""The report stage: from the tables of the run folder to findings, figures and the page."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pandas as pd

from mossa_jax.config import TUNED, config_to_data
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files import sums
from mossa_jax.files.checked import read_json, read_table, write_json, write_table
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.findings import SCORE_COLUMNS, find
from mossa_jax.log import waiting
from mossa_jax.monitoring import goodput
from mossa_jax.processes import agreement
from mossa_jax.report import ReportInputs, remove_former_figures, write_figures, write_page
from mossa_jax.report.catalogue import all_charts
from mossa_jax.report.charts.times import time_chart
from mossa_jax.report.inputs import ANSWER_COLUMNS
from mossa_jax.run.analyse import read_tables
from mossa_jax.run.context import Run
from mossa_jax.run.exported import model_steps
from mossa_jax.run.parity import base_parity
from mossa_jax.run.record import recorded_suite
from mossa_jax.run.score import ANSWERS, SCORES
from mossa_jax.run.setup import run_setup
from mossa_jax.run.warnings import early_warnings, training_counters
from mossa_jax.tuning.curves import recorded_losses


def report(run: Run) -> dict[str, Any]:
    """Writes findings, figures and the page from the tables of the run folder.

    Returns:
      The analysis (`mossa_jax.findings.find`), with the path of the `page` and the names of all `variants` of results
      beside the first one; empty on processes that do not write.

    Raises:
      Refusal: 3 if there is no table of similarities yet.
    """
    if not run.is_prepared:
        # What was computed is shown, whatever has become of the tasks' files since.
        run.suite = recorded_suite(run.record, str(run.folder.path))
    with run.ledger.stage("report"), goodput.useful(), waiting("report", "drawing figures and writing the page"):
        return _report(run)


def _report(run: Run) -> dict[str, Any]:
    run_folder = run.folder
    table_path = run.results / "cka.parquet"
    if not all(agreement.agreed([run_folder.writer and (table_path.exists() or bool(sums.recorded(table_path)))])):
        raise Refusal(BAD_INPUT, f"{table_path} is not there yet; run launch.run first")
    run.stop.leave_if_asked()
    parity = base_parity(run)
    run.stop.leave_if_asked()
    if not run_folder.writer:
        return {}
    inputs = gather_inputs(run, read_table(table_path), parity)
    write_table(run.results / "scores.parquet", inputs.scores)
    if inputs.answers is not None:
        write_table(run.results / "answers.parquet", inputs.answers)
    write_table(run.results / "curves.parquet", inputs.curves)
    write_json(run.results / "findings.json", inputs.analysis)
    charts = all_charts(inputs)
    files = write_figures(inputs, run.figures, charts)
    # The times are those of this stage, too, with the drawing of all other figures.
    goodput.record()
    inputs = replace(inputs, times=goodput.times(run_folder.metrics()))
    if (times := time_chart(inputs)) is not None:
        charts[times.name] = times
        files += write_figures(inputs, run.figures, {times.name: times})
    remove_former_figures(run.figures, files)
    write_page(run.page, inputs, run.figures, charts)
    goodput.outcome(str(run.page))
    return {**inputs.analysis, "page": str(run.page), "variants": run.folder.variants()}


def gather_inputs(run: Run, table: pd.DataFrame, parity: pd.DataFrame | str) -> ReportInputs:
    """Gathers what the report shows from the run folder, and derives the findings; `times` is left open."""
    record = run.record
    environment = read_json(run.folder / "environment.json")
    scores = task_scores(run)
    change_path = run.results / "change.parquet"
    change = read_table(change_path) if sums.recorded(change_path) or change_path.exists() else None
    seed, draws = run.config.seed, run.config.compare.draws
    analyses = read_tables(run)
    analysis = find(
        table,
        scores,
        seed,
        draws,
        prompts=_distinct_prompts(run, record),
        change=change,
        analyses=analyses,
        warnings=early_warnings(run),
        counters=training_counters(run.folder),
    )
    return ReportInputs(
        table=table,
        change=change,
        analyses=analyses,
        analysis=analysis | {"template": record["template"]},
        scores=scores,
        answers=task_answers(run),
        curves=training_curves(run.folder),
        tasks=task_table(run, record),
        parity=parity,
        facts=_facts(run),
        setup=run_setup(run.config, record, environment, list(run.controls.values()), _steps(run)),
        config=config_to_data(run.config),
        command=environment["command"],
        versions=environment["packages"] | {"python": environment["python"]},
    )


def _distinct_prompts(run: Run, record: dict[str, Any]) -> dict[str, int] | None:
    """Returns the number of different test prompts per task; None if `n` of the results table says it."""
    if run.config.compare.pool != "all":
        return None
    # With pool `all`, `n` counts tokens.
    tests = {name: task["test"] for name, task in record["tasks"].items()}
    return {name: test.get("distinct", test["rows"]) for name, test in tests.items()}


def task_scores(run: Run) -> pd.DataFrame:
    """Joins the scores of all tasks that have them, columns `SCORE_COLUMNS`."""
    scores = run.read_parts(SCORES)
    return pd.DataFrame(columns=SCORE_COLUMNS) if scores is None else scores[SCORE_COLUMNS]


def task_answers(run: Run) -> pd.DataFrame | None:
    """Joins the example answers of all tasks that have them, columns `ANSWER_COLUMNS`; None if no task has."""
    answers = run.read_parts(ANSWERS)
    return None if answers is None else answers[ANSWER_COLUMNS]


def training_curves(run_folder: RunFolder) -> pd.DataFrame:
    """Returns the loss of tuned models: the mean since the record before, by model and step."""
    records = [record for of_model in recorded_losses(run_folder).values() for record in of_model.values()]
    curves = pd.DataFrame(records, columns=["model", "step", "loss"]).dropna()
    return curves.astype({"step": int}).reset_index(drop=True)


def task_table(run: Run, record: dict[str, Any]) -> pd.DataFrame:
    """Returns one row per task with the sizes of its data; columns as in `ReportInputs.tasks`."""
    rows = []
    for task in run.suite.tasks:
        train, test = record["tasks"][task.name]["train"], record["tasks"][task.name]["test"]
        rows.append(
            {
                "task": task.name,
                "cluster": task.cluster,
                "held_out": task.name in run.suite.held_out,
                "train_rows": train["rows"],
                "test_rows": test["rows"],
                "truncated_rows": train["cut"],
                "truncated_prompts": test["cut"],
                "steps": model_steps(run, task.name),
            }
        )
    return pd.DataFrame(rows)


def _steps(run: Run) -> dict[str, int]:
    """Returns the steps of E and of each task's specialist."""
    return {name: model_steps(run, name) for name in (TUNED, *(task.name for task in run.suite.tasks))}


def _facts(run: Run) -> dict[str, str]:
    """Returns what the head of the page says about the run."""
    config = run.config
    return {
        "name": config.name,
        "base": config.base,
        "suite": run.suite.name,
        "dtype": config.dtype,
        "date": time.strftime("%Y-%m-%d"),
    }
