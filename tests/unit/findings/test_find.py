"""Findings from planted tables: what is planted is said, what is absent is not claimed."""

import json

import numpy as np
import pandas as pd
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.findings import find
from mossa_jax.findings.clusters import clusters_differ, rank_clusters, task_levels
from mossa_jax.findings.curves import differences, task_layer_matrix
from mossa_jax.findings.verdicts import statements
from tests.support.planted import CLUSTERS, planted_scores, planted_table

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


def test_specificity_is_of_tasks_that_e_has_seen():
    table = planted_table(tasks=26, layers=8, held_out=10, breaks=(3, 5), mismatched=0.0)
    others = (table.control != table.task) & table.held_out
    table.loc[others, "cka"] -= 0.3  # unseen tasks alone are nearer to their own specialists
    found = find(table, NO_SCORES, draws=300)
    assert found["specificity"]["tuned"]["n_tasks"] == 16
    assert found["specificity"]["tuned"]["mean"] == pytest.approx(0, abs=1e-9)
    assert verdict(found, "Own specialist against others")["verdict"] == "not supported"


def test_ability_follows_the_plant(full):
    table, found = full
    link, means = found["scores"]["rank_correlation"], found["scores"]["means"]
    assert link["n_tasks"] == 26 and link["rho"] < -0.95
    scores = planted_scores(table)
    controls = scores[scores.model == "control"]
    assert means["control"] == pytest.approx(controls[~controls.held_out].exact_match.mean())
    assert found["scores"]["held_out"]["control"] == pytest.approx(controls[controls.held_out].exact_match.mean())


def test_ability_is_weak_where_the_estimators_disagree(full):
    table = full[0].copy()
    turned = (table.estimator == "biased") & (table.experimental == "pretrained")
    table.loc[turned, "cka"] = 1.0 - table.loc[turned, "cka"]
    said = verdict(find(table, planted_scores(full[0]), draws=300), "Similarity and ability")
    assert said["verdict"] == "weak" and "opposite sign" in said["sentence"]


def test_shared_layers_are_judged_by_their_own_change():
    """d is exactly zero in the layers below all adapters; a fitted level is not."""
    table = planted_table(tasks=16, layers=8, held_out=0, breaks=None)
    own = (table.control == table.task) & table.layer.isin(list("12345678"))
    before, after = (table[own & (table.experimental == name)] for name in ("pretrained", "tuned"))
    steps = np.sqrt(np.clip(after.layer.astype(int).to_numpy() - 2, 0, None)) * 0.1
    table.loc[after.index, "cka"] = before.cka.to_numpy() + steps
    found = find(table, NO_SCORES, draws=300)
    assert found["sections"]["found"] and found["sections"]["shared"][1] <= 2
    assert abs(found["sections"]["before"]["level"]) > 0.003
    assert found["shared"]["mean"] == 0 and found["shared"]["n_tasks"] == 16
    assert verdict(found, "What the first layers share")["verdict"] == "not supported"


@pytest.mark.parametrize(("moved", "wanted"), [(0.0, "supported"), (0.3, "weak")])
def test_shared_layers_below_zero_need_both_estimators(moved, wanted):
    table = planted_table(tasks=24, layers=8, held_out=0, breaks=(3, 5))
    table.loc[table.experimental == "tuned", "cka"] -= 0.05
    table.loc[(table.experimental == "tuned") & (table.estimator == "biased"), "cka"] += moved
    found = find(table, NO_SCORES, draws=300)
    said = verdict(found, "What the first layers share")
    assert said["verdict"] == wanted and ("opposite sign" in said["sentence"]) == (wanted == "weak")
    assert found["shared"]["mean"] == pytest.approx(differences(table, layers=list("123")).to_numpy().mean())


def test_a_crossing_is_told_only_behind_a_transition(full):
    assert "overtakes" in verdict(full[1], "Where the network changes")["sentence"]
    found = find(planted_table(tasks=20, layers=8, breaks=None), NO_SCORES, draws=200)
    found["sections"]["crossing"] = {"layer": 3.0, "interval": [2, 4], "share_of_resamples": 0.9}
    (said, *_) = statements(found)
    assert said["verdict"] == "not supported" and "overtakes" not in said["sentence"]


def test_clusters_that_differ_by_one_estimator_alone_are_weak(full):
    table = full[0].copy()
    flat = (table.estimator == "biased") & (table.experimental == "pretrained") & table.cka.notna()
    noise = dict(zip(sorted(set(table.task)), np.random.default_rng(0).normal(size=26), strict=True))
    table.loc[flat, "cka"] = table.task[flat].map(noise)
    said = verdict(find(table, NO_SCORES, draws=300), "Which clusters pre-training already holds")
    assert said["verdict"] == "weak" and "biased" in said["sentence"]


def test_prompts_are_counted_where_rows_are_tokens():
    table = planted_table(tasks=20, layers=8, breaks=(3, 5)).assign(n=5000)
    found = find(table, NO_SCORES, draws=200, prompts=dict.fromkeys(table.task, 30))
    assert found["trust"]["prompts"] == {"smallest": 30, "largest": 30}
    said = verdict(found, "What tuning adds in the upper half")
    assert said["verdict"] == "weak" and "30 prompts" in said["sentence"]


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
