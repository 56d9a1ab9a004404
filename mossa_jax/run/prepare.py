"""A run's data: every split is read, checked and encoded before the first step, and recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.checked import write_json
from mossa_jax.files.write import is_whole
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes import agreement
from mossa_jax.run.basis import base_identity
from mossa_jax.run.context import Run
from mossa_jax.run.fingerprints import FINGERPRINTS, are_weights_touched, check_texts, text_fingerprints
from mossa_jax.run.record import FILE, changes, read_sound_record
from mossa_jax.run.stale import match_models
from mossa_jax.tokens.encoded import EncodedSplit
from mossa_jax.tokens.test_prompts import TestPrompts


def prepare(run: Run) -> dict[str, Any]:
    """Encodes all training rows and test prompts, and records them in data.json.

    A bad row is refused here, before anything is computed. So is a run folder whose base or prompt template changed
    since the run began, and one whose models rest on other rows, unless `Options.stale` says what becomes of them.

    Returns:
      The record: `suite` (its name), `base` (`basis.base_identity`), `fingerprints` (of the base: `run.fingerprints`),
      `template` (`Tokenizer.record`), `missing` (tasks that no source has), `history` (what `record.changes` found at
      later attempts), `kept` (`stale.match_models`) and `tasks`: name -> `cluster`, `held_out`, `source`, and for each
      of `train` and `test`: `rows`, `cut` (rows that were too long), `bad_rows` (left out), `fingerprint` (of the
      source's rows), `digest` (of the encoded ones); for `test` also those of `_prompts_record`.

    Raises:
      Refusal: 3 for bad or changed data, and whatever the sources raise.
    """
    with run.ledger.stage("data"):
        return _prepare(run)


def _prepare(run: Run) -> dict[str, Any]:
    """Encodes and records the data, within the stage that books its time."""
    # Read before anybody writes it.
    before, damage = read_sound_record(run.folder)
    suite = run.suite
    tasks: dict[str, dict[str, Any]] = {}
    # The comparison asks again for what tuning has read.
    is_read = run.has_encoded(suite.tasks)
    progress = Progress("data", len(suite.tasks), len(suite.tasks) if is_read else 0)
    for number, task in enumerate(suite.tasks, 1):
        with contextlib.nullcontext() if is_read else goodput.useful("data", number - 1):
            train, test = (run.encoded(task, split) for split in ("train", "test"))
        prompts = run.test_prompts(task)
        distinct = len(prompts)
        tasks[task.name] = {
            "cluster": task.cluster,
            "held_out": task.name in suite.held_out,
            "source": task.source,
            "train": _split_record(train),
            "test": _split_record(test) | _prompts_record(prompts),
        }
        if not is_read:
            distinct_note = f", {distinct} of them distinct" if distinct < len(test) else ""
            progress.line(number, f"{task.name}: {len(train)} training rows, {len(test)} test prompts{distinct_note}")
        run.stop.leave_if_asked()
    record: dict[str, Any] = {
        "suite": suite.name,
        "base": base_identity(run.config),
        FINGERPRINTS: text_fingerprints(run),
        "template": run.tokenizer.record,
        "missing": list(suite.missing),
        "tasks": tasks,
        "history": [],
        "kept": {},
    }
    _check_processes_agree(record)
    is_first, change = not run.is_prepared, {}
    if before is not None:
        run.tokenizer.check_record(before["template"], f"--workdir={run.folder.path}")
        _keep_base(record, before, run.config.base)
    run.record = record
    if before is not None:
        change = changes(before, record)
        kept = match_models(run, before, change, is_first)
        history = before["history"] + ([change] if change else [])
        run.record = {**record, "kept": kept, "history": history}
    elif damage:
        _make_anew(run, damage)
    as_before = ", as before" if before is not None and not change else ""
    goodput.outcome(_in_words(record) + as_before)
    if run.folder.writer and run.record != before:
        write_json(run.folder / FILE, run.record)
    agreement.wait_for_all("data")
    must_look = run.folder.writer and (are_weights_touched(run) or (before is None and bool(damage)))
    if is_first and any(agreement.agreed([must_look])):
        _ = run.model  # which compares the weights with those of the record, or else of the models, and records them
    return run.record


def _make_anew(run: Run, damage: str) -> None:
    """Lets a lost data.json be made anew, if all models of the folder rest on the rows and settings of today.

    Raises:
      Refusal: 3 if one does not.
    """
    names = [*run.experimental_names, *run.controls]
    exported = [name for name in names if run.folder.writer and is_whole(run.tuned_folder(name))]
    others = [name for name in exported if not run.is_tuned(name)]
    if all(agreement.agreed([bool(others)])):
        what = f", and {others[0]!r} rests on others" if others else ""
        raise Refusal(
            BAD_INPUT,
            f"{damage}{what}; restore {FILE} from a copy, or name a new --workdir with --from={run.folder.path}",
        )
    if run.folder.writer:
        log.warning("%s, and all %d do", damage, len(exported))


def _keep_base(record: dict[str, Any], before: Mapping[str, Any], base: str) -> None:
    """Compares the base of today with that of the run's record, and takes over what the record knows of it.

    Raises:
      Refusal: 3 if another base lies in its place.
    """
    if (known := before.get(FINGERPRINTS)) is None:
        return
    check_texts(known, record[FINGERPRINTS], base)
    record[FINGERPRINTS] = known | record[FINGERPRINTS]
    # Its name and sizes stay those that the run's models are known by: what they stand for is compared by itself.
    record["base"] = before["base"]


def _in_words(record: dict[str, Any]) -> str:
    rows = {split: sum(task[split]["rows"] for task in record["tasks"].values()) for split in ("train", "test")}
    return f"{len(record['tasks'])} tasks, {rows['train']:,} training rows, {rows['test']:,} test prompts"


def _split_record(encoded: EncodedSplit) -> dict[str, Any]:
    """Records a split: how many rows it has, how many were cut or left out, and which they are."""
    return {
        "rows": len(encoded),
        "cut": int(encoded.cut.sum()),
        "bad_rows": encoded.bad_rows,
        "fingerprint": encoded.fingerprint,
        "digest": encoded.digest,
    }


def _prompts_record(prompts: TestPrompts) -> dict[str, Any]:
    """Records test prompts after cutting: how many are `distinct` and, of these, the number of `items`, where they come
    from, the prompts of the `largest_item`, the share of `related` pairs, and the number of `templates` if known."""
    return {
        "distinct": len(prompts),
        "items": len(prompts.item_sizes),
        "item_source": prompts.item_source,
        "largest_item": int(prompts.item_sizes.max()),
        "related": prompts.related,
        "templates": prompts.template_count,
    }


def _check_processes_agree(record: dict[str, Any]) -> None:
    """Checks that all processes have the same base, prompt template and rows.

    Raises:
      Refusal: 3 if a process differs from process 0; it names the task and the split.
    """
    base = {f"config.base, {name}": value for name, value in record["base"].items() if name != "base"}
    template = {f"the template's {name}": value for name, value in record["template"].items()}
    tasks = {
        f"task {name}, {split}": f"{task[split]['rows']} rows ({task[split]['fingerprint']}, {task[split]['digest']})"
        for name, task in record["tasks"].items()
        for split in ("train", "test")
    }
    agreement.same("the data", {**base, **template, **tasks}, "give all hosts the same files, or fix tasks.sources")
