"""The planted run with the paper's medians is what it says."""

import numpy as np
import pytest

from tests.support.paper_like import AT_LAYERS, FLAN, PAPER, SHAPES, results_table


@pytest.fixture(scope="module")
def own():
    table = results_table(SHAPES["paper"], np.random.default_rng(0))
    return table[(table.control == table.task) & (table.estimator == "biased")]


def test_it_has_the_sixty_names_of_the_mixture_and_the_seven_of_misc(own):
    assert own.drop_duplicates("task").held_out.value_counts().to_dict() == {False: 60, True: 7}
    assert len(FLAN) == 12 and "misc" in FLAN


@pytest.mark.parametrize("model", ["pretrained", "tuned"])
@pytest.mark.parametrize("held_out", [False, True])
def test_medians_at_every_layer_are_the_papers(own, model, held_out):
    rows = own[(own.experimental == model) & (own.held_out == held_out)]
    medians = rows.groupby("layer").cka.median()
    published = [quartiles[2] for quartiles in PAPER[model, held_out]]
    assert [medians[str(layer)] for layer in AT_LAYERS] == pytest.approx(published, abs=0.015)
