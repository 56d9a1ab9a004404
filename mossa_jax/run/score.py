"""The scoring stage: what the base, E, C_t and their repetitions make of each task's test prompts.

Beside the scores of a task, a few of its prompts are kept with the answers of the base, E and the specialist
(`function.examples`).
"""

from __future__ import annotations

import statistics

from mossa_jax.function import examples, information, measures
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes import agreement
from mossa_jax.run.cards import add_scores
from mossa_jax.run.context import Run
from mossa_jax.run.models import ask
from mossa_jax.run.parts import PartKind
from mossa_jax.tasks import Task


def _settings(run: Run) -> dict[str, int]:
    return {"prompts": run.config.tuning.score_prompts, "tokens": run.config.tuning.score_tokens}


SCORES = PartKind("scores", models=lambda run, task: run.scored_models(task).values(), settings=_settings)
"""The scores of a task's models."""
ANSWERS = PartKind(
    "answers",
    models=lambda run, task: [run.scored_models(task)[label] for label in examples.MODELS],
    settings=_settings,
)
"""The answers of a task's models to a few of its prompts. Runs of versions that kept none have scores alone."""

_SHOWN = {"base": "base", "tuned": "E", "control": "specialist"}
_SELDOM = 0.05  # exact match below which the base is said to answer seldom


def score(run: Run) -> None:
    """Scores the models of each task on its test prompts; tasks that are scored already are left as they are."""
    tasks, unfinished = run.suite.tasks, _unfinished(run)
    done = len(tasks) - len(unfinished)
    progress = Progress("scores", len(tasks), done)
    for number, task in enumerate(unfinished, done + 1):
        with goodput.useful("score", number - 1):
            rows, answers = score_task(run, task)
        # Scores come last: a task that has them has its answers, too.
        run.write_part(ANSWERS, task, answers)
        run.write_part(SCORES, task, rows)
        progress.line(number, f"{task.name}: {_summary(rows)}")
        run.stop.leave_if_asked()
    # The cards tell the scores of the first results; a variant has others.
    if run.folder.writer and not run.folder.variant and (scores := run.read_parts(SCORES)) is not None:
        add_scores(run, scores)
    if unfinished:
        goodput.outcome(_averages(run))


def _unfinished(run: Run) -> list[Task]:
    """Returns the tasks that lack their scores, or whose answers are damaged; all processes call this together."""
    is_damaged = agreement.agreed([run.folder.writer and _has_damaged_answers(run, task) for task in run.suite.tasks])
    damaged = {task.name for task, flag in zip(run.suite.tasks, is_damaged, strict=True) if flag}
    unscored = {task.name for task in run.unfinished(SCORES)}
    return [task for task in run.suite.tasks if task.name in damaged | unscored]


def _has_damaged_answers(run: Run, task: Task) -> bool:
    # Answers that are whole in `options.take_from` are taken over, as scores are.
    return not run.has_part(ANSWERS, task) and run.part(ANSWERS, task).damage() is not None


def score_task(run: Run, task: Task) -> tuple[list[measures.Row], list[measures.Row]]:
    """Scores the models of a task (`Run.scored_models`) and the most frequent answer.

    Returns:
      Rows of `measures.score_rows`, model after model, and those of `examples.example_rows`.
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
    rows += measures.score_rows(measures.MAJORITY, {measures.EXACT_MATCH: measures.majority(targets, items)}, n)
    texts_of = dict(zip(labels, answers.texts, strict=False))
    shown = examples.example_rows(
        texts_of, targets, lambda row: run.tokenizer.prompt_text(encoded.examples.prompt(row).tolist())
    )
    return rows, shown


def _averages(run: Run) -> str:
    """Says what the models reach on average over tasks; "" in processes that do not write the table."""
    if not run.folder.writer:
        return ""
    parts = [run.read_part(SCORES, task) for task in run.suite.tasks]
    mean = {}
    for label in _SHOWN:
        rows = [part[(part.model == label) & (part.metric == measures.EXACT_MATCH)] for part in parts]
        mean[label] = statistics.fmean(value for part in rows for value in part.value)
    text = f"{len(parts)} tasks, exact match {', '.join(f'{_SHOWN[label]} {mean[label]:.2f}' for label in _SHOWN)}"
    # Nobody who sees 0.00 should look for a mistake.
    return text + (" (an untuned base seldom answers word for word)" if mean["base"] < _SELDOM else "")


def _summary(rows: list[measures.Row]) -> str:
    """Says what the base, E and the control reach."""
    value = {row["model"]: row["value"] for row in rows if row["metric"] == measures.EXACT_MATCH}
    return f"exact match {', '.join(f'{name} {value[label]:.2f}' for label, name in _SHOWN.items())}"
