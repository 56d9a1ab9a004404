"""Example prompts of a task with the models' answers: which are kept, and how much of their texts.

The table has a row per example and model: `example` (1, 2, ...), `model`, `prompt`, `target`, `answer` and `exact`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

EXAMPLES = 3
"""Example prompts of a task."""
MODELS = ("base", "tuned", "control")
"""Labels of the models whose answers are kept, as in the table of scores."""
LONGEST = 2000
"""Characters that are kept of a text; of a longer one the middle is left out."""


def choose_examples(answers: Mapping[str, Sequence[str]], targets: Sequence[str]) -> list[int]:
    """Chooses the prompts of a task that show most about its models, in the order of the test rows.

    These are the first prompt that E and the specialist answer rightly and the base does not, the first that one of
    E and the specialist answers rightly and the other does not (or, without any, the first that they answer in
    different words), and the first of the rest. Where one of these is missing, the first that are left take its place.

    Args:
      answers: label of each of `MODELS` -> n answers.
      targets: n right answers.

    Returns:
      At most `EXAMPLES` indices, ascending.
    """
    right = {label: [is_exact(*pair) for pair in zip(answers[label], targets, strict=True)] for label in MODELS}
    base, tuned, control = (right[label] for label in MODELS)
    rules: tuple[Callable[[int], bool], ...] = (
        lambda row: tuned[row] and control[row] and not base[row],
        lambda row: tuned[row] != control[row],
    )
    chosen: list[int] = []
    for rule in rules:
        chosen += _first(rule, len(targets), chosen)
    if not any(rules[1](row) for row in chosen):
        chosen += _first(lambda row: answers["tuned"][row] != answers["control"][row], len(targets), chosen)
    while len(chosen) < min(EXAMPLES, len(targets)):
        chosen += _first(lambda row: True, len(targets), chosen)
    return sorted(chosen)


def _first(rule: Callable[[int], bool], rows: int, taken: Sequence[int]) -> list[int]:
    """Returns the first row that a rule holds for and that is not taken, as a list; an empty one if there is none."""
    return next(([row] for row in range(rows) if row not in taken and rule(row)), [])


def is_exact(answer: str, target: str) -> bool:
    """Returns whether an answer equals its target, apart from white space at the ends."""
    return answer.strip() == target.strip()


def example_rows(
    answers: Mapping[str, Sequence[str]], targets: Sequence[str], prompt: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Returns the rows of a task's examples.

    Args:
      answers: label of each of `MODELS` -> n answers.
      targets: n right answers.
      prompt: index -> text of the prompt.
    """
    return [
        {
            "example": number,
            "model": label,
            "prompt": cut_text(prompt(row)),
            "target": cut_text(targets[row]),
            "answer": cut_text(answers[label][row]),
            "exact": is_exact(answers[label][row], targets[row]),
        }
        for number, row in enumerate(choose_examples(answers, targets), 1)
        for label in MODELS
    ]


def cut_text(text: str, longest: int = LONGEST) -> str:
    """Leaves out the middle of a text that has more than `longest` characters, and says how many were left out."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} [… {len(text) - 2 * half:,} characters left out …] {text[-half:]}"
