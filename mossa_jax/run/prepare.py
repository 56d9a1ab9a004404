"""A run's data: every split read, checked and encoded before the first step, and a record of what it was."""

from __future__ import annotations

import json
from typing import Any

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.names import digest
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import write_json
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes import agreement
from mossa_jax.run.context import Run

_FILE = "data.json"


def prepare(run: Run) -> dict[str, Any]:
    """Encodes all training rows and test prompts, and records in data.json what they were; returns the record.

    A bad row is refused here, before anything is computed; so is a folder whose data or prompt template changed since
    the run began.

    Returns:
      `template` (`Tokenizer.record`), `missing` (tasks that no source has) and `tasks`: name -> `source`, and for
      `train` and `test` each `rows`, `cut` (rows that were too long), `bad_rows` (left out), `fingerprint`; for `test`
      also `distinct`, its different prompts after cutting.

    Raises:
      Refusal: 3 for bad or changed data, and what the sources raise.
    """
    with run.ledger.stage("data"):
        return _prepare(run)


def _prepare(run: Run) -> dict[str, Any]:
    suite, tasks = run.suite, {}
    if suite.missing:
        log.warning("no source has %s: the run goes on without them", ", ".join(suite.missing))
    progress = Progress("data", len(suite.tasks))
    for number, task in enumerate(suite.tasks, 1):
        with goodput.useful("data", number - 1):
            splits = {split: run.encoded(task, split) for split in ("train", "test")}
        tasks[task.name] = {"source": task.source} | {
            split: {
                "rows": len(found),
                "cut": int(found.cut.sum()),
                "bad_rows": found.bad_rows,
                "fingerprint": found.fingerprint,
            }
            for split, found in splits.items()
        }
        distinct = tasks[task.name]["test"]["distinct"] = len(run.test_prompts(task))
        repeats = f", {distinct} of them different" if distinct < len(splits["test"]) else ""
        counts = f"{len(splits['train'])} training rows, {len(splits['test'])} test prompts{repeats}"
        progress.line(number, f"{task.name}: {counts}")
        run.stop.leave_if_asked()
    record = {"template": run.tokenizer.record, "missing": list(suite.missing), "tasks": tasks}
    _check_alike(record)
    before = read_record(run.folder)
    if before is not None:
        run.tokenizer.check_record(before["template"], f"--workdir={run.folder.path}")
        _check_rows(before, record)
    elif run.folder.writer:
        write_json(run.folder / _FILE, record)
    agreement.wait_for_all("data")
    return record


def _check_alike(record: dict[str, Any]) -> None:
    """Refuses, with code 3, processes that read other rows or have another prompt template than process 0."""
    prints = [[name, task["train"]["fingerprint"], task["test"]["fingerprint"]]
              for name, task in record["tasks"].items()]  # fmt: skip
    ours = int(digest([record["template"], prints])[:15], 16)
    found = agreement.everywhere(ours)
    unlike = [process for process, theirs in enumerate(found) if theirs != found[0]]
    if unlike:
        raise Refusal(
            BAD_INPUT,
            f"process {unlike[0]} of {len(found)} reads other rows, or has another prompt template, than process 0; "
            "give all hosts the same files (a shared tasks.folder, a revision in tasks.sources)",
        )


def read_record(run_folder: RunFolder) -> dict[str, Any] | None:
    """The record that `prepare` left in a run folder, if it did."""
    path = run_folder / _FILE
    return json.loads(path.read_text()) if path.exists() else None


def _check_rows(before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, task in now["tasks"].items():
        for split in ("train", "test"):
            if task[split]["fingerprint"] != before["tasks"][name][split]["fingerprint"]:
                raise Refusal(
                    BAD_INPUT,
                    f"task {name!r}: its {split} rows in {task['source'] or 'the suite'} changed since this run began; "
                    "restore them, or name a new --workdir",
                )
