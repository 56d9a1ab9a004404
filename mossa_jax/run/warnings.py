"""What a reader of the page should know before trusting it: few prompts or steps, pooling, data left out, training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mossa_jax.config import TUNED
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.files.peft import read_about
from mossa_jax.run.context import Run
from mossa_jax.run.record import data_notes
from mossa_jax.tasks.items import GUESSED
from mossa_jax.tasks.thresholds import FEW_PROMPTS, FEW_STEPS, LARGE_ITEM

if TYPE_CHECKING:
    import pandas as pd

_POOLING = {
    "all": "every token is a row: tokens with which all prompts begin (BOS, a template) are equal rows, and raise the "
    "similarity of any two models",
    "mean": "the mean over tokens includes BOS: where its state is far larger than the others, the lengths of the "
    "prompts alone make models similar",
}
"""Pooling -> its trap."""

_TRAINING = {
    "skipped": "updates skipped because loss or gradient was not finite",
    "spikes": "loss spikes",
}
"""Counter in metrics.jsonl -> what it counts."""

_MAX_NAMES = 5


def run_warnings(
    run: Run, record: dict[str, Any], smallest: float, convergence: pd.DataFrame | None = None
) -> list[str]:
    """Returns the warnings of a run, one sentence each.

    Args:
      run: the run.
      record: of its data (`read_record`).
      smallest: number of test prompts of the smallest task.
      convergence: the table `results/convergence`; None without snapshots.
    """
    warnings = []
    if smallest < FEW_PROMPTS:
        warnings.append(
            f"the smallest task has {smallest} test prompts; with fewer than {FEW_PROMPTS} every interval is wide"
        )
    warnings += data_notes(record, list(read_about(run.tuned_folder(TUNED)).get("mixture", [])))
    warnings += few_steps(run)
    if run.config.compare.pool in _POOLING:
        warnings.append(_POOLING[run.config.compare.pool])
    warnings += repeated_prompts(record["tasks"])
    warnings += related_prompts(record["tasks"])
    if record["missing"]:
        warnings.append(f"tasks left out because no source has them: {', '.join(record['missing'])}")
    for name, task in record["tasks"].items():
        bad_rows = task["train"]["bad_rows"] + task["test"]["bad_rows"]
        if bad_rows:
            warnings.append(f"task {name}: left out {_count(bad_rows, 'unusable row')}")
    return warnings + unconverged_models(convergence) + training_trouble(run.folder)


def unconverged_models(table: pd.DataFrame | None) -> list[str]:
    """Warns of models that had not converged, where snapshots tell."""
    if table is None:
        return []
    late = table[~table["converged"].astype(bool)]
    shown = "; ".join(
        f"{task}: {reason}" for task, reason in zip(late["task"][:_MAX_NAMES], late["reason"], strict=False)
    )
    more = "; ..." if len(late) > _MAX_NAMES else ""
    return [f"models that have not converged: {len(late)} of {len(table)} ({shown}{more})"] if len(late) else []


def few_steps(run: Run) -> list[str]:
    """Warns of specialists that took few steps."""
    steps = {task.name: read_about(run.tuned_folder(task.name))["steps"] for task in run.suite.tasks}
    few = [name for name, count in steps.items() if count < FEW_STEPS]
    if not few:
        return []
    shown = ", ".join(few[:_MAX_NAMES]) + (", ..." if len(few) > _MAX_NAMES else "")
    return [
        f"specialists that took fewer than {FEW_STEPS} steps: {len(few)} ({shown}); few steps leave a "
        "specialist near the pre-trained model, so a high pre-trained CKA means little there"
    ]


def repeated_prompts(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """Warns of test prompts that repeat others of their task.

    Args:
      tasks: of the record of data: task -> `test` with `rows` and `distinct`.
    """
    tests = {name: task["test"] for name, task in tasks.items()}
    repeats = {name: test["rows"] - test.get("distinct", test["rows"]) for name, test in tests.items()}
    repeats = {name: count for name, count in repeats.items() if count}
    if not repeats:
        return []
    worst = max(repeats, key=lambda name: repeats[name])
    return [
        f"{_count(sum(repeats.values()), 'test prompt')} in {_count(len(repeats), 'task')} repeat others after cutting "
        f"and count once in similarities (most in {worst}: {repeats[worst]} of {tests[worst]['rows']})"
    ]


def related_prompts(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """Warns of test prompts whose items were guessed, and of items that are most of a task.

    Args:
      tasks: of the record of data: task -> `test` with `distinct`, `item_source`, `largest_item` and `related`.
    """
    tests = {name: task["test"] for name, task in tasks.items()}
    guessed = {name: test["related"] for name, test in tests.items() if test["item_source"] == GUESSED}
    warnings = []
    if guessed:
        worst = sorted(guessed, key=lambda name: -guessed[name])
        shown = ", ".join(f"{name} {guessed[name]:.2%}" for name in worst[:_MAX_NAMES])
        warnings.append(
            f"items were guessed in {_count(len(guessed), 'task')} from long texts that prompts share (related pairs: "
            f"{shown}{', ...' if len(worst) > _MAX_NAMES else ''}); intervals and the debiased estimator treat these "
            "as one item; name the column `item` to say so yourself"
        )
    large = [name for name, test in tests.items() if test["largest_item"] >= LARGE_ITEM * max(test["distinct"], 2)]
    if large:
        warnings.append(
            f"an item holds half or more of the test prompts of {_count(len(large), 'task')} "
            f"({', '.join(large[:_MAX_NAMES])}{', ...' if len(large) > _MAX_NAMES else ''}); debiased CKA is undefined "
            "there"
        )
    return warnings


def training_trouble(run_folder: RunFolder) -> list[str]:
    """Warns of what went wrong in training and was overcome, per model."""
    counts: dict[tuple[str, str], int] = {}
    for record in filter(lambda record: "model" in record, run_folder.metrics()):
        for counter in _TRAINING:
            key = record["model"], counter
            counts[key] = max(counts.get(key, 0), record.get(counter, 0))
    return [f"model {model}, {_TRAINING[counter]}: {count}" for (model, counter), count in counts.items() if count]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
