"""The scoring stage: what the base, E, C_t and their repetitions make of each task's test prompts."""

from __future__ import annotations

from mossa_jax.function import information, measures
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.run.cards import add_scores
from mossa_jax.run.context import Run
from mossa_jax.run.models import ask
from mossa_jax.run.parts import PartKind
from mossa_jax.tasks import Task

SCORES = PartKind(
    "scores",
    models=lambda run, task: run.scored_models(task).values(),
    settings=lambda run: {"prompts": run.config.tuning.score_prompts, "tokens": run.config.tuning.score_tokens},
)
"""The scores of a task's models."""

_SHOWN = {"base": "base", "tuned": "E", "control": "control"}


def score(run: Run) -> None:
    """Scores the models of each task on its test prompts; tasks that are scored already are left as they are."""
    tasks, unfinished = run.suite.tasks, run.unfinished(SCORES)
    done = len(tasks) - len(unfinished)
    progress = Progress("scores", len(tasks), done)
    for number, task in enumerate(unfinished, done + 1):
        with goodput.useful("score", number - 1):
            rows = score_task(run, task)
        run.write_part(SCORES, task, rows)
        progress.line(number, f"{task.name}: {_summary(rows)}")
        run.stop.leave_if_asked()
    if run.folder.writer:
        import pandas as pd

        add_scores(run, pd.concat([run.read_part("scores", task) for task in tasks], ignore_index=True))


def score_task(run: Run, task: Task) -> list[measures.Row]:
    """Scores the models of a task (`Run.scored_models`) and the most frequent answer.

    Returns:
      Rows of `measures.score_rows`, model after model.
    """
    labels, pairs, encoded = run.scored_models(task), run.answer_pairs(task), run.encoded(task, "test")
    items, n = pairs.items, len(pairs.items)
    targets = [example.targets for example in run.test_examples(task, n)]
    answers = ask(run, run.scored_names(task), pairs, [encoded.examples.prompt(row) for row in range(n)])
    rows: list[measures.Row] = []
    # Models that only fill a place come last, without a label.
    for label, texts, likelihoods in zip(labels, answers.texts, answers.likelihoods, strict=False):
        estimates = {
            measures.EXACT_MATCH: measures.exact_match(texts, targets, items),
            measures.ROUGE_L: measures.rouge_l(texts, targets, items),
            measures.ANSWER_NLL: information.answer_nll(pairs, likelihoods),
            measures.INFORMATION: information.information(pairs, likelihoods),
        }
        rows += measures.score_rows(label, estimates, n)
    return rows + measures.score_rows(measures.MAJORITY, {measures.EXACT_MATCH: measures.majority(targets, items)}, n)


def _summary(rows: list[measures.Row]) -> str:
    """Says what the base, E and the control reach: exact match, and information in nats."""
    value = {(row["model"], row["metric"]): row["value"] for row in rows}
    models = [
        f"{name} {value[label, measures.EXACT_MATCH]:.2f} ({value[label, measures.INFORMATION]:.2f} nats)"
        for label, name in _SHOWN.items()
    ]
    return f"exact match (information): {', '.join(models)}"
