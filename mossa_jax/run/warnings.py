"""The warnings of a run: those of its data and settings, said before its first step and kept, and what training left.

Those of scores and convergence are found with the findings (`findings.warnings`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mossa_jax.config import TUNED
from mossa_jax.files.checked import damage, read_json, write_json
from mossa_jax.files.metrics import lines_in_words
from mossa_jax.files.names import digest
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.sums import recorded
from mossa_jax.findings.warnings import (
    RunWarning,
    data_warnings,
    history_warnings,
    in_order,
    pooling_warnings,
    record_warnings,
)
from mossa_jax.llama.files.base import base_can_share_prefix
from mossa_jax.log import log
from mossa_jax.run.context import Run
from mossa_jax.run.exported import model_about
from mossa_jax.tasks.mixture import mixture_counts
from mossa_jax.tuning.curves import recorded_losses
from mossa_jax.tuning.data_figures import data_table, task_figures
from mossa_jax.tuning.windows import ends_window

_FILE = "warnings.json"

# Lines at the start of a run: more would hide the first ones.
_LINES = 8


def announce(run: Run, record: dict[str, Any]) -> None:
    """Says what would spoil the result, before the first step, and keeps it: a line per kind, without notes.

    It rests on encoded rows, which are read from the cache, and takes a few seconds for FLAN 2021; on the same rows it
    is not looked for again.

    Args:
      run: the run.
      record: of its data (`prepare`).
    """
    if not run.folder.writer:
        return
    rows = {task.name: record["tasks"][task.name]["train"]["rows"] for task in run.suite.tasks}
    mixture = mixture_counts(run.suite, rows, run.config.tasks)
    left_out = [asdict(left) for left in run.suite.left_out]
    rests_on = digest(
        [record["template"], record["missing"], record["tasks"], list(run.suite.held_out), mixture, left_out]
    )
    if _kept(run).get("rests_on") != rests_on:
        warnings = [warning.record() for warning in _data_warnings(run)]
        write_json(run.folder / _FILE, {"rests_on": rests_on, "warnings": warnings})
    lines = [warning.line for warning in early_warnings(run) if not warning.about.is_note]
    shown = lines if len(lines) <= _LINES else lines[: _LINES - 1]
    for line in shown:
        log.warning("%s", line)
    if len(lines) > len(shown):
        log.warning("warning: and %d more, which launch.tasks shows, and the page", len(lines) - len(shown))


def early_warnings(run: Run) -> list[RunWarning]:
    """Returns the warnings of data and settings, notes last (writer only).

    Those of the data are read from the run folder, so that the page can be written where the data are not at hand; a
    folder that has none has them looked for now.
    """
    kept = _kept(run)
    warnings = [RunWarning.of_record(each) for each in kept["warnings"]] if kept else _data_warnings(run)
    mixture = model_about(run, TUNED).get("mixture", {})
    return in_order(
        [
            *warnings,
            *pooling_warnings(run.config.compare.pool),
            *history_warnings(run.record, list(mixture)),
            *record_warnings(lost_records(run)),
        ]
    )


def lost_records(run: Run) -> list[str]:
    """Says which lines of metrics.jsonl are damaged, and which points of the curves of tuned models it lacks."""
    damaged, losses = run.folder.recorded_metrics()[1], recorded_losses(run.folder)
    lost = [f"{lines_in_words(damaged)} damaged in metrics.jsonl"] if damaged else []
    gaps = {}
    for name in (*run.experimental_names, *run.controls):
        about = model_about(run, name)
        if about:
            total, length = about["steps"], about["tuning"]["log_every"]
            ends = [step for step in range(1, total + 1) if ends_window(step, length, total)]
            gaps[name] = sum(step not in losses.get(name, ()) for step in ends)
    gaps = {name: count for name, count in gaps.items() if count}
    if gaps:
        models = f"{len(gaps)} models, first {next(iter(gaps))!r}" if len(gaps) > 1 else repr(next(iter(gaps)))
        lost.append(f"{sum(gaps.values())} points of the curves of {models}")
    return lost


def _kept(run: Run) -> dict[str, Any]:
    path = run.folder / _FILE
    if run.is_prepared and (what := damage(path)) is not None:
        log.warning("%s: made anew", what)
        return {}
    return read_json(path) if path.exists() or recorded(path) else {}


def _data_warnings(run: Run) -> list[RunWarning]:
    """Measures the data and returns what is to be said of them."""
    suite, sharing = run.suite, base_can_share_prefix(run.config)
    figures = {}
    for task in suite.tasks:
        train, test = (run.encoded(task, split) for split in ("train", "test"))
        figures[task.name] = task_figures(task, task.name in suite.held_out, train, test, run.config, sharing)
    table, _, cost = data_table(figures, suite, run.config, sharing)
    return data_warnings(table, suite, cost.steps)


def training_counters(run_folder: RunFolder) -> dict[str, dict[str, float]]:
    """Returns how many updates each model skipped, how often its loss jumped, and its steps.

    Returns:
      Model -> `skipped`, `spikes` and `steps`, each the highest that was recorded.
    """
    counters = {}
    for model, records in recorded_losses(run_folder).items():
        counts = {name: max(record.get(name, 0) for record in records.values()) for name in ("skipped", "spikes")}
        counters[model] = {**counts, "steps": max(records)}
    return counters
