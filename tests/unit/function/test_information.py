"""Swaps of answers, and the information of models whose answers are drawn by a known rule."""

import numpy as np
import pytest

from mossa_jax.function.information import AnswerPairs, draw_swaps, information
from mossa_jax.tokens.encoded import Encoded, in_memory


def pairs_of(items, swaps):
    return AnswerPairs(in_memory([Encoded([1], [2])] * len(items) * (1 + len(swaps))), swaps, np.asarray(items))


@pytest.mark.parametrize(
    "items", [range(50), np.repeat(range(20), 3), [0] * 20 + list(range(1, 31)), np.arange(40) % 2, range(5), range(2)]
)
def test_swaps_are_bijections_that_leave_the_item(items):
    items = np.asarray(items)
    swaps = draw_swaps(items, (3,))
    assert len(swaps) in (1, 2, 4) and len(np.unique(swaps, axis=0)) == len(swaps)
    for swap in swaps:
        assert sorted(swap) == list(range(len(items)))
        assert (items[swap] != items).all()
    if len(items) > 10 and np.bincount(items).max() < 10:
        assert len(swaps) == 4 and not np.array_equal(swaps, draw_swaps(items, (4,)))
    assert np.array_equal(swaps, draw_swaps(items, (3,)))


def test_an_item_of_most_prompts_is_left_where_that_is_possible():
    items = np.asarray([0] * 7 + [1, 2, 3])
    (swap,) = draw_swaps(items, (0,))
    assert (swap != np.arange(10)).all() and (items[swap] == items).sum() <= 4
    assert draw_swaps(np.asarray([0]), (0,)).shape == (0, 1)
    assert np.isnan(information(pairs_of([0], draw_swaps(np.asarray([0]), (0,))), np.zeros(1))).all()


@pytest.mark.parametrize("count", [30, 37])
def test_a_model_that_ignores_its_prompts_has_exactly_none(count):
    rng = np.random.default_rng(count)
    swaps = draw_swaps(np.arange(count), (1,))
    answers = rng.lognormal(0, 3, count)
    likelihoods = -np.concatenate([answers, *answers[swaps]])
    value, low, high = information(pairs_of(range(count), swaps), likelihoods)
    assert value == 0 and low < 0 < high


def classifier(rng, count, strength):
    """Log probabilities [n, 4] of classes with unequal shares, and the true class; evidence of `strength`."""
    classes = rng.choice(4, count, p=[0.5, 0.25, 0.15, 0.1])
    scores = rng.normal(size=(count, 4)) + np.log([0.5, 0.25, 0.15, 0.1])
    scores[np.arange(count), classes] += strength
    return scores - np.log(np.exp(scores).sum(1, keepdims=True)), classes


@pytest.mark.parametrize("strength", [0.0, 0.7, 3.0])
def test_the_interval_covers_the_truth(strength):
    """The truth is the mean over the pairs of very many prompts; the naive interval of differences has 0.89 at 3.0."""
    rng = np.random.default_rng(5)
    many, classes = classifier(rng, 200_000, strength)
    swapped = many @ np.bincount(classes) / len(classes)
    truth = (many[np.arange(len(many)), classes] - swapped).mean()
    covered = []
    for draw in range(300):
        items = np.repeat(np.arange(40), 2)  # two wordings of each of 40 rows
        table, classes = (np.repeat(part, 2, axis=0) for part in classifier(rng, 40, strength))
        swaps = draw_swaps(items, (draw,))
        own = table[np.arange(80), classes]
        others = [table[np.arange(80), classes[swap]] for swap in swaps]
        _, low, high = information(pairs_of(items, swaps), np.concatenate([own, *others]))
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.92
