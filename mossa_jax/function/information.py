"""What a model knows of a task: how much a prompt tells it about its own answer.

`information` is the mean over prompts i of log p(a_i | x_i) - log p(a_s(i) | x_i), in nats, where s draws another
prompt's answer. A model that ignores its prompts has 0, however well it knows the answers' form and frequencies; a
model that uses them as the task asks has more, also where its likeliest answer is still wrong. If p were the true
distribution, this would be the sum of the mutual information and the lautum information of prompt and answer.

Shape letters: n prompts, K swaps, A models.

References:
  Palomar and Verdu 2008, "Lautum information", IEEE Transactions on Information Theory 54.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mossa_jax.function.estimates import Estimate, mean
from mossa_jax.function.estimates import ratio as ratio_of_sums
from mossa_jax.tokens.encoded import Encoded, Examples, in_memory
from mossa_jax.tokens.tokenizer import Tokenizer, cut_pair, cut_prompt

SWAPS = 4
"""Other answers that each prompt is asked about. A power of two, so that a mean over them is exact."""


@dataclass(frozen=True)
class AnswerPairs:
    """The pairs of prompt and answer that a task's models are asked about.

    Attributes:
      pairs: n pairs of prompt and own answer, then n for each of the K swaps.
      swaps: [K, n] int64, whose answer each prompt gets; each row is a bijection.
      items: [n] int32, the same for prompts that belong together.
    """

    pairs: Examples
    swaps: Int[np.ndarray, "K n"]
    items: Int[np.ndarray, " n"]

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Ids of each prompt's own answer, EOS included."""
        return self.pairs.answer_lengths[: len(self.items)]


def draw_swaps(items: Int[np.ndarray, " n"], seed: Sequence[int], count: int = SWAPS) -> Int[np.ndarray, "K n"]:
    """Draws bijections of prompts without fixed points and, where possible, without pairs of one item.

    Prompts are put on a circle, those of an item side by side, and each swap turns it by a step of its own.

    Args:
      items: the same number for prompts of one item.
      seed: of the draw.
      count: bijections, at most; fewer where there are fewer prompts.

    Returns:
      [K, n] int64; K is a power of two, 0 for a single prompt.
    """
    rng = np.random.default_rng(list(seed))
    _, index, sizes = np.unique(items, return_inverse=True, return_counts=True)
    n, largest = len(items), int(sizes.max())
    # Items in a random order, and the prompts of each in a random order: place on the circle -> prompt.
    circle = np.lexsort((rng.random(n), rng.random(len(sizes))[index]))
    # A turn by at least the largest item, both ways round, leaves no prompt within its own.
    steps = np.arange(largest, n - largest + 1)
    if not len(steps):
        # One item holds more than half of the prompts, and some of its pairs cannot be avoided.
        steps = np.arange(n // 2, n // 2 + 1) if n > 1 else steps
    kept = 1 << (min(count, len(steps)).bit_length() - 1) if len(steps) else 0
    chosen = rng.choice(steps, kept, replace=False)
    swaps = np.zeros((kept, n), np.int64)
    for row, step in enumerate(chosen):
        swaps[row, circle] = circle[(np.arange(n) + step) % n]
    return swaps


def make_pairs(
    tokenizer: Tokenizer,
    examples: Examples,
    items: Int[np.ndarray, " n"],
    *,
    max_tokens: int,
    truncation: str,
    seed: Sequence[int],
    swaps: int = SWAPS,
) -> AnswerPairs:
    """Pairs prompts with their own answers and with those of other prompts, at most `max_tokens` ids each.

    A prompt is cut once, for the longest answer that it gets: it is the same in all of its pairs.

    Args:
      tokenizer: of the prompts, for its template's head.
      examples: the task's test prompts with their answers.
      items: the same number for prompts of one item.
      max_tokens: the most ids of a pair.
      truncation: which end of a prompt is cut, as in `tokens.tokenizer.cut_prompt`.
      seed: of the swaps.
      swaps: other answers that each prompt is asked about, at most; a power of two.
    """
    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    for index in range(len(examples)):
        prompt, ids = examples.prompt(index).tolist(), examples.gather(np.asarray([index])).tolist()
        prompts.append(prompt)
        answers.append(cut_pair(tokenizer, prompt, ids[len(prompt) :], max_tokens, truncation)[1])
    others = draw_swaps(items, seed, swaps)
    lengths = np.asarray([len(ids) for ids in answers])
    longest = np.max([lengths, *lengths[others]], axis=0)
    prompts = [
        cut_prompt(tokenizer, ids, max_tokens - int(most), truncation)
        for ids, most in zip(prompts, longest, strict=True)
    ]
    sources = [np.arange(len(prompts)), *others]
    pairs = [Encoded(prompts[i], answers[j]) for source in sources for i, j in enumerate(source)]
    return AnswerPairs(in_memory(pairs), others, items)


def answer_nll(pairs: AnswerPairs, likelihoods: Float[np.ndarray, " pairs"]) -> Estimate:
    """Estimates a model's mean negative log likelihood over the ids of the own answers, in nats per id.

    Args:
      pairs: the pairs.
      likelihoods: one model's log probability of each of them.
    """
    return ratio_of_sums(-likelihoods[: len(pairs.items)], pairs.lengths.astype(float), pairs.items)


def information(pairs: AnswerPairs, likelihoods: Float[np.ndarray, " pairs"]) -> Estimate:
    """Estimates a model's information about a task, in nats per prompt.

    Args:
      pairs: the pairs.
      likelihoods: one model's log probability of each of them.
    """
    n, swaps = len(pairs.items), pairs.swaps
    if not len(swaps):
        return Estimate(math.nan, math.nan, math.nan)
    own, others = likelihoods[:n], likelihoods[n:].reshape(len(swaps), n)  # [n], [K, n]
    # Sums without rounding: where log p does not depend on the prompt, both are sums of the same numbers.
    value = (math.fsum(own) - math.fsum(others.ravel()) / len(swaps)) / n
    interval = mean(_influence(own, others, swaps), pairs.items)
    half = interval.high - interval.value
    return Estimate(value, value - half, value + half)


def _influence(
    own: Float[np.ndarray, " n"], others: Float[np.ndarray, "K n"], swaps: Int[np.ndarray, "K n"]
) -> Float[np.ndarray, " n"]:
    """Returns what each prompt, with its answer, adds to the information: its part as prompt and as answer.

    Two prompts that were swapped share an answer, so the differences of own and other answer are not independent; their
    ordinary interval held the truth in 63 to 92 % of simulated tasks with 4 to 8 swaps. Each prompt's influence counts
    the answer too. A bijection adds nothing of what a prompt or an answer brings by itself, so the part of `others`
    that is a sum of the two is taken out first; otherwise chance partners would widen the interval.

    Args:
      own: log probability of each prompt's own answer.
      others: of the answer of each swap.
      swaps: whose answer that is.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import lsqr

    count, n = others.shape
    places, centre = np.arange(count * n), others.mean()
    columns = np.concatenate([np.tile(np.arange(n), count), n + swaps.ravel()])
    design = csr_matrix((np.ones(2 * count * n), (np.tile(places, 2), columns)))
    # A little ridge: few swaps determine the parts of a prompt and of an answer badly.
    of_prompt, of_answer = np.split(lsqr(design, others.ravel() - centre, damp=1.0)[0], 2)
    rest = others - centre - of_prompt - of_answer[swaps]
    rest_of_answer = np.zeros(n)
    for swap, row in zip(swaps, rest, strict=True):
        rest_of_answer[swap] += row / count
    return own - of_prompt - of_answer - rest.mean(axis=0) - rest_of_answer
