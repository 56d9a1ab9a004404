"""Measures of a task's answers, as rows of the table of scores.

A row is `model, metric, value, low, high, n`: a mean over n prompts with its 95 % interval over items.

References:
  Lin 2004, "ROUGE: a package for automatic evaluation of summaries", for `rouge_l`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mossa_jax.function.estimates import Estimate, mean, share
from mossa_jax.function.examples import is_exact

EXACT_MATCH, ROUGE_L, ANSWER_NLL, INFORMATION = "exact_match", "rouge_l", "answer_nll", "information"
METRICS = (EXACT_MATCH, ROUGE_L, ANSWER_NLL, INFORMATION)
MAJORITY = "majority"
"""What the column `model` says of the most frequent answer, which is no model; it has an exact match only."""

Row = dict[str, Any]


def exact_match(answers: Sequence[str], targets: Sequence[str], items: Int[np.ndarray, " n"]) -> Estimate:
    """Estimates the share of answers that equal their targets, apart from white space at the ends."""
    hits = [is_exact(answer, target) for answer, target in zip(answers, targets, strict=True)]
    return share(np.asarray(hits, float), items)


def majority(targets: Sequence[str], items: Int[np.ndarray, " n"]) -> Estimate:
    """Estimates the exact match of the most frequent target; of equally frequent ones the first."""
    (answer, _), *_ = Counter(target.strip() for target in targets).most_common(1)
    return exact_match([answer] * len(targets), targets, items)


def rouge_l(answers: Sequence[str], targets: Sequence[str], items: Int[np.ndarray, " n"]) -> Estimate:
    """Estimates the mean F score of the longest common subsequence of words, 1 for answers that match exactly."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    # Equal texts without a word, such as "-", have no F score.
    scores = [
        1.0 if is_exact(answer, target) else float(scorer.score(target, answer)["rougeL"].fmeasure)
        for answer, target in zip(answers, targets, strict=True)
    ]
    return mean(np.asarray(scores), items)


class _Words:
    """Splits a text into words: as the library does by itself, but for letters beyond ASCII, which it drops."""

    def tokenize(self, text: str) -> list[str]:
        """Returns the words of a text in lower case."""
        return re.findall(r"[^\W_]+", text.lower())


def score_rows(model: str, estimates: Mapping[str, Estimate], prompts: int) -> list[Row]:
    """Returns the rows of a model.

    Args:
      model: its label in the table.
      estimates: metric -> its mean and interval.
      prompts: n.
    """
    return [{"model": model, "metric": metric, **each._asdict(), "n": prompts} for metric, each in estimates.items()]
