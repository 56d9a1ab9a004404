"""Warnings of a run: each names what it is about, and nothing is said without a cause."""

from types import SimpleNamespace

import pandas as pd

from mossa_jax.run.warnings import related_prompts, repeated_prompts, run_warnings, training_trouble
from mossa_jax.tasks.thresholds import FEW_PROMPTS


def data_of_task(bad_rows=0, rows=100, distinct=100):
    items = {"item_source": "rows", "largest_item": 1, "related": 0.0}
    return {"train": {"bad_rows": bad_rows}, "test": {"bad_rows": 0, "rows": rows, "distinct": distinct, **items}}


def run_of(pool="last", metrics=()):
    """A run with no tasks of its own: what is recorded of its data is passed beside it."""
    compare = SimpleNamespace(pool=pool)
    folder = SimpleNamespace(metrics=lambda: list(metrics))
    return SimpleNamespace(
        config=SimpleNamespace(compare=compare),
        suite=SimpleNamespace(tasks=[]),
        folder=folder,
        tuned_folder=lambda name: f"nowhere/{name}",
    )


def test_a_sound_run_has_no_warning():
    record = {"tasks": {"a": data_of_task()}, "missing": [], "history": [], "kept": {}}
    assert run_warnings(run_of(), record, FEW_PROMPTS) == []


def test_every_cause_has_its_warning():
    record = {"tasks": {"a": data_of_task(bad_rows=3), "b": data_of_task(distinct=90)}, "missing": ["c", "d"]} | {
        "history": [],
        "kept": {},
    }
    metrics = [{"model": "a", "skipped": 1}, {"model": "a", "skipped": 2}, {"stage": "data"}]
    convergence = pd.DataFrame({"task": ["a", "b"], "converged": [True, False], "reason": ["", "its loss still falls"]})
    warnings = run_warnings(run_of("all", metrics), record, FEW_PROMPTS - 1, convergence)
    words = [
        f"{FEW_PROMPTS - 1} test prompts",
        "every token is a row",
        "10 test prompts",
        "c, d",
        "task a: left out 3",
        "not converged: 1 of 2 (b: its loss still falls)",
        "not finite: 2",
    ]
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


def test_the_task_with_most_repeats_is_named():
    tasks = {"a": data_of_task(distinct=95), "b": data_of_task(rows=50, distinct=30), "c": data_of_task()}
    (warning,) = repeated_prompts(tasks)
    assert warning.startswith("25 test prompts in 2 tasks") and "most in b: 20 of 50" in warning


def test_counters_of_training_count_once_per_model():
    metrics = [{"model": "a", "spikes": 1}, {"model": "a", "spikes": 4, "skipped": 0}, {"model": "b", "spikes": 0}]
    assert training_trouble(run_of(metrics=metrics).folder) == ["model a, loss spikes: 4"]


def test_guessed_items_and_an_item_of_half_a_task_are_warned_of():
    guess = data_of_task()
    guess["test"] |= {"item_source": "guessed", "largest_item": 5, "related": 0.02}
    large = data_of_task()
    large["test"] |= {"item_source": "column", "largest_item": 50, "related": 0.3}
    first, second = related_prompts({"a": guess, "b": large, "c": data_of_task()})
    assert "1 task" in first and "a 2.00%" in first and "column `item`" in first
    assert "half or more" in second and "(b)" in second and "undefined" in second
