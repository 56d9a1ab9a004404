"""Measures of answers, against counts by hand and the library's own tokens."""

import numpy as np
import pytest

from mossa_jax.function.measures import exact_match, majority, rouge_l, score_rows

ITEMS = np.arange(4)


def test_exact_match_ignores_white_space_at_the_ends_and_nothing_else():
    assert exact_match(["yes", " no\n", "No", "a  b"], ["yes ", "no", "no", "a b"], ITEMS).value == 0.5


def test_the_majority_answer_is_right_as_often_as_it_stands_there():
    assert majority(["b", "a", "a ", "c"], ITEMS).value == 0.5
    assert majority(["b", "a", "c", "d"], ITEMS).value == 0.25


def test_rouge_l_is_the_librarys_and_keeps_letters_beyond_ascii():
    library = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    answers, targets = ["the big_red mill, 7 boats", "a", "", "x y z"], ["The mill (7 old boats)", "b", "c", "x z"]
    wanted = [library.score(target, answer)["rougeL"].fmeasure for target, answer in zip(targets, answers, strict=True)]
    assert rouge_l(answers, targets, ITEMS).value == pytest.approx(np.mean(wanted)) and 0 < np.mean(wanted) < 1
    # By words of ASCII alone, the first pair would be 0 and the second equal.
    assert rouge_l(["мельница у реки", "é"], ["мельница стоит у реки", "ü"], np.arange(2)).value == pytest.approx(3 / 7)
    assert rouge_l(["-"], ["-"], np.zeros(1, int)).value == 1


def test_rows_name_model_metric_and_interval():
    (row,) = score_rows("base", {"exact_match": exact_match(["a"] * 4, ["a"] * 4, ITEMS)}, 4)
    assert list(row) == ["model", "metric", "value", "low", "high", "n"]
    assert (row["model"], row["metric"], row["value"], row["n"]) == ("base", "exact_match", 1.0, 4)
