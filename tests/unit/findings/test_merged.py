"""The mean of the specialists beside E: where they part, and what both know of the answers."""

import numpy as np
import pandas as pd
import pytest

from mossa_jax.findings.merged import find_merged

LAYERS = ("embed", "1", "2", "3", "4", "final_norm")
GAPS = (0.0, 0.0, 0.2, 0.3, 0.4, 0.4)


def tables(clusters=8):
    rng = np.random.default_rng(0)
    cells, merged, scores = [], [], []
    for task in range(clusters + 1):
        place = {"task": f"t{task}", "cluster": f"c{task}", "held_out": task == clusters}
        for layer, gap in zip(LAYERS, GAPS, strict=True):
            gap = gap + rng.normal(0, 0.02)
            for estimator in ("debiased", "biased"):
                cells.append(
                    {
                        **place, "layer": layer, "estimator": estimator, "cka": 0.3, "tuned": 0.3 + gap,
                        "pretrained": 0.2, "cka_tuned": 0.5, "difference": gap, "update_cosine_tuned": 0.1,
                        "update_cosine_control": 0.2, "update_size_tuned": 0.25,
                    }
                )  # fmt: skip
        for metric in ("information", "answer_nll"):
            merged.append(
                {**place, "model": "merged", "metric": metric, "value": 1.0 + task, "low": 0, "high": 9, "n": 8}
            )
            for model, value in (("base", 0.5), ("tuned", 3.0 + task), ("control", 5.0 + task)):
                scores.append({**place, "model": model, "metric": metric, "value": value, "low": 0, "high": 9, "n": 8})
    return pd.DataFrame(cells), pd.DataFrame(merged), pd.DataFrame(scores)


def test_the_layer_from_which_on_e_is_more_than_the_mean():
    found = find_merged(*tables(), [])
    assert found["layers"] == list(LAYERS) and found["half"] == ["3", "4"]
    assert found["apart_from"] == "2"
    assert found["upper"]["difference"]["mean"] == pytest.approx(0.35, abs=0.02)
    assert found["upper"]["difference"]["p"] == pytest.approx(2**-7)
    assert found["upper"]["cka"]["mean"] == pytest.approx(0.3) and found["n_tasks"] == 8


def test_without_a_difference_e_parts_from_the_mean_nowhere():
    cells, merged, scores = tables()
    cells["difference"] = np.where(cells.task.isin(["t0", "t1", "t2", "t3"]), 0.1, -0.1)
    found = find_merged(cells, merged, scores, [])
    assert found["apart_from"] is None and found["upper"]["difference"]["p"] > 0.5


def test_information_stands_beside_that_of_the_other_models():
    found = find_merged(*tables(), ["t7"])
    rows = found["information"].set_index("task")
    assert list(rows.index) == [f"t{task}" for task in range(7)]
    assert rows.loc["t2", ["base", "merged", "tuned", "control"]].tolist() == [0.5, 3.0, 5.0, 7.0]
    assert found["scored"]["difference"]["mean"] == pytest.approx(2.0)
    assert found["scored"]["merged"]["n_units"] == 7


@pytest.mark.parametrize("is_empty", [True, False])
def test_without_scores_similarities_are_still_compared(is_empty):
    cells, merged, scores = tables()
    found = find_merged(cells, merged[:0] if is_empty else None, scores, [])
    assert found["information"].empty and found["scored"]["merged"]["n_tasks"] == 0
    assert found["apart_from"] == "2"
