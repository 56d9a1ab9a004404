"""The warnings of a run: those of its data and settings, said before its first step and kept, and what training left.

Those of scores and convergence are found with the findings (`findings.warnings`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from mossa_jax.config import TUNED
from mossa_jax.files.names import digest
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import write_json
from mossa_jax.findings.warnings import RunWarning, data_warnings, history_warnings, in_order, pooling_warnings
from mossa_jax.llama.files.base import base_can_share_prefix
from mossa_jax.llama.files.peft import read_about
from mossa_jax.log import log
from mossa_jax.run.context import Run
from mossa_jax.tasks.mixture import mixture_counts
from mossa_jax.tuning.data_figures import data_table, task_figures

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
    mixture = read_about(run.tuned_folder(TUNED)).get("mixture", {})
    return in_order(
        [*warnings, *pooling_warnings(run.config.compare.pool), *history_warnings(run.record, list(mixture))]
    )


def _kept(run: Run) -> dict[str, Any]:
    path = run.folder / _FILE
    return json.loads(path.read_text()) if path.exists() else {}


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
    counters: dict[str, dict[str, float]] = {}
    for record in filter(lambda record: "model" in record, run_folder.metrics()):
        counts = counters.setdefault(record["model"], {"skipped": 0, "spikes": 0, "steps": 0})
        for name, value in (("skipped", "skipped"), ("spikes", "spikes"), ("steps", "step")):
            counts[name] = max(counts[name], record.get(value, 0))
    return counters
