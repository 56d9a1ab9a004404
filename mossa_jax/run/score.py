"""The scoring stage: exact match of the base, E and C_t on each task's test prompts."""

from __future__ import annotations

from mossa_jax.config import TUNED
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.run.context import Run
from mossa_jax.run.models import exact_matches


def score(run: Run) -> None:
    """Scores the base, E and C_t on each task's test prompts; tasks that are scored already are left as they are."""
    tasks, unfinished = run.suite.tasks, run.unfinished("scores")
    done = len(tasks) - len(unfinished)
    progress = Progress("scores", len(tasks), done)
    for number, task in enumerate(unfinished, done + 1):
        examples = run.test_examples(task, run.score_prompts)
        with goodput.useful("score", number - 1):
            shares = exact_matches(run, [None, TUNED, task.name], examples)
        rows = [
            {"model": model, "exact_match": float(share), "n": len(examples)}
            for model, share in zip(("base", TUNED, "control"), shares, strict=True)
        ]
        run.write_part("scores", task, rows)
        progress.line(number, f"{task.name}: base {shares[0]:.2f}, E {shares[1]:.2f}, control {shares[2]:.2f}")
        run.stop.leave_if_asked()
