"""Findings from planted tables: what is planted is said, what is absent is not claimed."""

import json

import numpy as np
import pandas as pd
import pytest
from planted import CLUSTERS, planted_scores, planted_table

from mossa_jax.findings import find
from mossa_jax.findings.clusters import clusters_differ, rank_clusters, task_levels
from mossa_jax.findings.curves import differences, task_layer_matrix
from mossa_jax.rundir import Refusal

NO_SCORES = pd.DataFrame(columns=["task", "cluster", "held_out", "model", "exact_match", "n"])


@pytest.fixture(scope="module")
def full():
    table = planted_table(tasks=26, layers=8, held_out=6, breaks=(3, 5), mismatched=0.1)
    return table, find(table, planted_scores(table), draws=300)


def verdict(found, title):
    return next(item for item in found["findings"] if item["title"] == title)


def test_json_without_nan(full):
    text = json.dumps(full[1], allow_nan=False)
    assert json.loads(text) == full[1]
    assert 4 <= len(full[1]["findings"]) <= 7


def test_same_seed_same_findings(full):
    table, found = full
    assert find(table.sample(frac=1, random_state=1), planted_scores(table), draws=300) == found


def test_planted_sections_are_said(full):
    found = full[1]
    assert found["sections"]["transition"] == [4, 5]
    said = verdict(found, "Where the network changes")
    assert said["verdict"] == "supported" and "layers 4 to 5" in said["sentence"]


def test_curves_are_plain_quantiles(full):
    table, found = full
    rows = table[(table.control == table.task) & ~table.held_out & (table.layer == "6")]
    rows = rows[(rows.experimental == "tuned") & (rows.estimator == "biased")]
    key = {"experimental": "tuned", "estimator": "biased", "layer": "6"}
    row = next(r for r in found["curves"] if all(r[k] == v for k, v in key.items()))
    assert row["n_tasks"] == len(rows) == 20
    assert row["median"] == pytest.approx(rows.cka.median())
    assert row["q3"] == pytest.approx(rows.cka.quantile(0.75))
    empty = next(r for r in found["curves"] if r["layer"] == "embed")
    assert empty["n_tasks"] == 0 and empty["median"] is None


def test_clusters_are_ranked_as_planted(full):
    ranking = full[1]["clusters"]["ranking"]
    assert [row["cluster"] for row in ranking] == CLUSTERS
    assert ranking[0]["pretrained"]["mean"] == pytest.approx(0.8, abs=0.01)
    assert all(row["n_tasks"] == 4 and row["pretrained"]["low"] is not None for row in ranking)
    assert full[1]["clusters"]["differ"]["p"] < 0.01


def test_specificity_is_the_planted_gap(full):
    found = full[1]
    assert found["specificity"]["tuned"]["mean"] == pytest.approx(0.1, abs=1e-9)
    assert verdict(found, "Own specialist against others")["verdict"] == "supported"


def test_ability_follows_the_plant(full):
    link = full[1]["scores"]["rank_correlation"]
    assert link["n_tasks"] == 26 and link["rho"] < -0.95


def test_held_out_tasks_are_kept_apart(full):
    table, found = full
    assert len(found["unseen"]["tasks"]) == 6
    assert {row["task"] for row in found["unseen"]["tasks"]} == set(table.task[table.held_out])
    assert found["shift"]["n_tasks"] == 20


def test_few_held_out_tasks_are_no_claim():
    table = planted_table(tasks=12, held_out=3)
    said = verdict(find(table, NO_SCORES, draws=100), "Tasks held out of the mixture")
    assert said["verdict"] == "not supported" and "3 tasks are too few" in said["sentence"]


def test_absent_parts_are_not_measured():
    found = find(planted_table(held_out=0), NO_SCORES, draws=100)
    for title in ("Tasks held out of the mixture", "Own specialist against others", "Similarity and ability"):
        assert verdict(found, title)["verdict"] == "not measured"


def test_no_effect_is_not_supported():
    found = find(planted_table(tasks=20, layers=8, breaks=None), NO_SCORES, draws=200)
    assert verdict(found, "Where the network changes")["verdict"] == "not supported"
    assert found["sections"]["transition"] is None


def test_estimators_that_disagree_in_sign_weaken_a_headline():
    table = planted_table(tasks=16, layers=8, held_out=0, breaks=(3, 5))
    tuned_biased = (table.experimental == "tuned") & (table.estimator == "biased")
    table.loc[tuned_biased, "cka"] -= 0.6
    said = verdict(find(table, NO_SCORES, draws=200), "What tuning adds in the upper half")
    assert said["verdict"] == "weak" and "opposite sign" in said["sentence"]


def test_undefined_rows_count_for_nothing_even_with_a_number():
    table = planted_table()
    victim = (table.task == "task103_planted") & (table.layer == "4")
    table.loc[victim, ["undefined", "cka"]] = ["fewer than 4 finite rows", 99.0]
    assert np.isnan(task_layer_matrix(table, "tuned").loc["task103_planted", "4"])
    assert np.isnan(differences(table).loc["task103_planted", "4"])
    reasons = {row["reason"]: row["cells"] for row in find(table, NO_SCORES, draws=50)["trust"]["reasons"]}
    assert reasons == {"no variance": 48, "fewer than 4 finite rows": 4}


def test_everything_undefined_is_survived():
    table = planted_table(tasks=6, layers=4, held_out=1).assign(cka=np.nan, undefined="not finite")
    found = find(table, NO_SCORES, draws=50)
    assert {item["verdict"] for item in found["findings"]} <= {"not supported", "not measured"}


def test_two_tasks_and_no_interval():
    table = planted_table(tasks=2, layers=4, held_out=0)
    ranking = find(table, NO_SCORES, draws=50)["clusters"]["ranking"]
    assert ranking[0]["pretrained"]["low"] is None and "too few" in ranking[0]["reason"]


def test_few_prompts_weaken():
    table = planted_table(tasks=20, layers=8, breaks=(3, 5)).assign(n=30)
    said = verdict(find(table, NO_SCORES, draws=200), "What tuning adds in the upper half")
    assert said["verdict"] == "weak" and "30 prompts" in said["sentence"]


def test_clusters_without_difference_are_rarely_called_different():
    rng = np.random.default_rng(0)
    false = 0
    for seed in range(60):
        levels = pd.DataFrame({"cluster": np.repeat(list("abcde"), 4), "pretrained": rng.normal(size=20)})
        false += clusters_differ(levels, "pretrained", seed, 200)["p"] <= 0.05
    assert false <= 8


def test_change_uses_the_layers_where_both_are_defined():
    table = planted_table(tasks=5, layers=4, held_out=0, breaks=(1, 3))
    gone = (table.task == "task100_planted") & (table.layer == "2") & (table.experimental == "tuned")
    table.loc[gone, "cka"] = np.nan
    levels = task_levels(table, ["1", "2", "3", "4"])
    expected = differences(table, layers=["1", "3", "4"]).loc["task100_planted"].mean()
    assert levels.loc["task100_planted", "change"] == pytest.approx(expected)
    assert len(rank_clusters(levels, draws=20)) == 5


def test_a_table_of_another_shape_is_refused():
    with pytest.raises(Refusal) as refused:
        find(planted_table().drop(columns="q"), NO_SCORES)
    assert refused.value.code == 3 and "'q'" in str(refused.value)
    table = planted_table()
    with pytest.raises(Refusal):
        find(table[table.layer == "embed"], NO_SCORES)
