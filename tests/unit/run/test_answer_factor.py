"""What stands for the gold answer as a factor."""

import numpy as np
import pytest

from mossa_jax.run.analyse.answer_factor import CLASS, EMBEDDING, FIRST_TOKEN, answer_labels, components, gold_answers
from mossa_jax.tokens.encoded import Encoded, EncodedSplit, in_memory


def test_answers_that_repeat_are_classes_by_all_their_tokens():
    kind, labels = answer_labels([(5, 6), (5, 7), (5, 6), (5, 7)])
    assert kind == CLASS and labels.tolist() == [0, 1, 0, 1]


def test_rare_answers_count_by_the_first_token_in_which_answers_differ():
    answers = [(9, 5, 1), (9, 5, 2), (9, 6, 3), (9, 6, 4), (9, 6)]
    kind, labels = answer_labels(answers)
    assert kind == FIRST_TOKEN and labels.tolist() == [0, 0, 1, 1, 1]


def test_answers_that_neither_repeat_nor_begin_alike_have_no_levels():
    assert answer_labels([(1, 5), (2, 5), (3, 5), (4,), (5, 5)]) is None


def test_two_prompts_per_level_on_average_are_enough():
    assert answer_labels([(1,), (1,), (1,), (2,)])[0] == CLASS
    assert answer_labels([(1, 1), (1, 1), (2, 3)]) is None


def test_gold_answers_are_those_of_the_rows_without_the_end():
    examples = in_memory([Encoded([1, 2], [7, 0]), Encoded([3], [8, 9, 0]), Encoded([4], [0])])
    nothing = np.zeros(3, np.int32)
    split = EncodedSplit(
        examples, nothing.astype(bool), nothing, nothing, "rows", 0, "", "", np.zeros((3, 2), np.uint64)
    )
    assert gold_answers(split, np.array([1, 0, 2])) == [(8, 9), (7,), ()]


def test_components_are_principal_and_as_few_as_asked_for():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 6)) @ np.diag([9, 5, 3, 1, 1, 0]) + 4
    scores = components(rows, 3)
    covariance = np.cov(rows.T, bias=True)
    np.testing.assert_allclose(np.square(scores).mean(0), np.linalg.eigvalsh(covariance)[::-1][:3])
    assert components(rows, 30).shape == (40, 5)


@pytest.mark.parametrize("name", [CLASS, FIRST_TOKEN, EMBEDDING])
def test_the_kinds_are_words_for_the_table(name):
    assert name == name.strip().lower()
