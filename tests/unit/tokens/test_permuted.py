"""Answers that are permuted over the prompts of their task."""

import numpy as np
import pytest

from mossa_jax.tokens.permuted import draw_answers


@pytest.mark.parametrize("templates", [[-1] * 7, [0, 0, 1, 1, 1, 2], [0, 1, 2], [0, 0, 0, 1], [0, 0, 1, 2, 2, 3]])
def test_no_row_keeps_its_answer_and_none_is_lost(templates):
    order = draw_answers(np.asarray(templates), (1, 5))
    assert sorted(order) == list(range(len(templates))) and (order != np.arange(len(templates))).all()
    assert (draw_answers(np.asarray(templates), (1, 5)) == order).all()


def test_answers_stay_within_their_template():
    templates = np.repeat([3, 1, 2], 20)
    order = draw_answers(templates, (0,))
    assert (templates[order] == templates).all() and (draw_answers(templates, (1,)) != order).any()
