"""Findings from planted tables: a planted effect is stated, an absent one is not claimed."""

import json

import numpy as np
import pandas as pd
import pytest
from mossa_jax.findings.verdicts import statements

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.findings import find
from mossa_jax.findings.clusters import clusters_differ, rank_clusters, task_levels
from mossa_jax.findings.curves import differences, task_layer_matrix
from tests.support.planted import CLUSTERS, NO_SCORES, planted_scores, planted_table


@pytest.fixture(scope="module")
def full():
    table = planted_table(tasks=26, layers=8, held_out=6, breaks=(3, 5), mismatched=0.1)
    return table, find(table, planted_scores(table), draws=300)


def finding(analysis, title):
    return next(finding for finding in analysis["findings"] if finding["title"] == title)


def test_the_result_is_json_without_nan(full):
    text = json.dumps(full[1], allow_nan=False)
    assert json.loads(text) == full[1]
    assert 4 <= len(full[1]["findings"]) <= 7


def test_the_same_seed_gives_the_same_findings(full):
    table, analysis = full
    assert find(table.sample(frac=1, random_state=1), planted_scores(table), draws=300) == analysis


def test_planted_sections_are_stated(full):
    analysis = full[1]
    assert analysis["sections"]["transition"] == [4, 5]
    statement = finding(analysis, "Where the network changes")
    assert statement["verdict"] == "supported" and "layers 4 to 5" in statement["sentence"]


def test_curves_are_plain_quantiles(full):
    table, analysis = full
    rows = table[(table.control == table.task) & ~table.held_out & (table.layer == "6")]
    rows = rows[(rows.experimental == "tuned") & (rows.estimator == "biased")]
    key = {"experimental": "tuned", "estimator": "biased", "layer": "6"}
    row = next(r for r in analysis["curves"] if all(r[k] == v for k, v in key.items()))
    assert row["n_tasks"] == len(rows) == 20
    assert row["median"] == pytest.approx(rows.cka.median())
    assert row["q3"] == pytest.approx(rows.cka.quantile(0.75))
    empty = next(r for r in analysis["curves"] if r["layer"] == "embed")
    assert empty["n_tasks"] == 0 and empty["median"] is None


def test_clusters_are_ranked_as_planted(full):
    ranking = full[1]["clusters"]["ranking"]
    assert [row["cluster"] for row in ranking] == CLUSTERS
    assert ranking[0]["pretrained"]["mean"] == pytest.approx(0.8, abs=0.01)
    assert all(row["n_tasks"] == 4 and row["pretrained"]["low"] is not None for row in ranking)
    assert full[1]["clusters"]["differ"]["p"] < 0.01


def test_specificity_is_the_planted_gap(full):
    analysis = full[1]
    assert analysis["specificity"]["tuned"]["mean"] == pytest.approx(0.1, abs=1e-9)
    assert finding(analysis, "Own specialist against others")["verdict"] == "supported"


def test_specificity_counts_only_tasks_that_e_has_seen():
    table = planted_table(tasks=26, layers=8, held_out=10, breaks=(3, 5), mismatched=0.0)
    others = (table.control != table.task) & table.held_out
    table.loc[others, "cka"] -= 0.3  # unseen tasks alone are nearer to their own specialists
    analysis = find(table, NO_SCORES, draws=300)
    assert analysis["specificity"]["tuned"]["n_tasks"] == 16
    assert analysis["specificity"]["tuned"]["mean"] == pytest.approx(0, abs=1e-9)
    assert finding(analysis, "Own specialist against others")["verdict"] == "not supported"


def test_ability_follows_the_planted_scores(full):
    table, analysis = full
    link, means = analysis["scores"]["rank_correlation"], analysis["scores"]["means"]
    assert link["n_tasks"] == 26 and link["rho"] < -0.95
    scores = planted_scores(table)
    controls = scores[scores.model == "control"]
    assert means["control"] == pytest.approx(controls[~controls.held_out].exact_match.mean())
    assert analysis["scores"]["held_out"]["control"] == pytest.approx(controls[controls.held_out].exact_match.mean())


def test_ability_is_weak_if_the_estimators_disagree(full):
    table = full[0].copy()
    turned = (table.estimator == "biased") & (table.experimental == "pretrained")
    table.loc[turned, "cka"] = 1.0 - table.loc[turned, "cka"]
    statement = finding(find(table, planted_scores(full[0]), draws=300), "Similarity and ability")
    assert statement["verdict"] == "weak" and "opposite sign" in statement["sentence"]


def test_shared_layers_are_judged_by_their_own_change():
    """d is exactly zero in the layers below all adapters, but the fitted level is not."""
    table = planted_table(tasks=16, layers=8, held_out=0, breaks=None)
    own = (table.control == table.task) & table.layer.isin(list("12345678"))
    before, after = (table[own & (table.experimental == name)] for name in ("pretrained", "tuned"))
    steps = np.sqrt(np.clip(after.layer.astype(int).to_numpy() - 2, 0, None)) * 0.1
    table.loc[after.index, "cka"] = before.cka.to_numpy() + steps
    analysis = find(table, NO_SCORES, draws=300)
    assert analysis["sections"]["found"] and analysis["sections"]["shared"][1] <= 2
    assert abs(analysis["sections"]["before"]["level"]) > 0.003
    assert analysis["shared"]["mean"] == 0 and analysis["shared"]["n_tasks"] == 16
    assert finding(analysis, "What the first layers share")["verdict"] == "not supported"


@pytest.mark.parametrize(("moved", "wanted"), [(0.0, "supported"), (0.3, "weak")])
def test_shared_layers_below_zero_need_both_estimators(moved, wanted):
    table = planted_table(tasks=24, layers=8, held_out=0, breaks=(3, 5))
    table.loc[table.experimental == "tuned", "cka"] -= 0.05
    table.loc[(table.experimental == "tuned") & (table.estimator == "biased"), "cka"] += moved
    analysis = find(table, NO_SCORES, draws=300)
    statement = finding(analysis, "What the first layers share")
    assert statement["verdict"] == wanted and ("opposite sign" in statement["sentence"]) == (wanted == "weak")
    assert analysis["shared"]["mean"] == pytest.approx(differences(table, layers=list("123")).to_numpy().mean())


def test_a_crossing_is_stated_only_with_a_transition(full):
    assert "overtakes" in finding(full[1], "Where the network changes")["sentence"]
    analysis = find(planted_table(tasks=20, layers=8, breaks=None), NO_SCORES, draws=200)
    analysis["sections"]["crossing"] = {"layer": 3.0, "interval": [2, 4], "share_of_resamples": 0.9}
    (statement, *_) = statements(analysis)
    assert statement["verdict"] == "not supported" and "overtakes" not in statement["sentence"]


def test_clusters_that_differ_by_one_estimator_only_are_weak(full):
    table = full[0].copy()
    flat = (table.estimator == "biased") & (table.experimental == "pretrained") & table.cka.notna()
    noise = dict(zip(sorted(set(table.task)), np.random.default_rng(0).normal(size=26), strict=True))
    table.loc[flat, "cka"] = table.task[flat].map(noise)
    statement = finding(find(table, NO_SCORES, draws=300), "Which clusters pre-training already holds")
    assert statement["verdict"] == "weak" and "biased" in statement["sentence"]


def test_prompts_are_counted_if_rows_are_tokens():
    table = planted_table(tasks=20, layers=8, breaks=(3, 5)).assign(n=5000)
    analysis = find(table, NO_SCORES, draws=200, prompts=dict.fromkeys(table.task, 30))
    assert analysis["trust"]["prompts"] == {"smallest": 30, "largest": 30}
    statement = finding(analysis, "What tuning adds in the upper half")
    assert statement["verdict"] == "weak" and "30 prompts" in statement["sentence"]


def test_held_out_tasks_are_kept_out_of_the_other_findings(full):
    table, analysis = full
    assert len(analysis["unseen"]["tasks"]) == 6
    assert {row["task"] for row in analysis["unseen"]["tasks"]} == set(table.task[table.held_out])
    assert analysis["shift"]["n_tasks"] == 20


def test_few_held_out_tasks_allow_no_claim():
    table = planted_table(tasks=12, held_out=3)
    statement = finding(find(table, NO_SCORES, draws=100), "Tasks held out of the mixture")
    assert statement["verdict"] == "not supported" and "3 tasks are too few" in statement["sentence"]


def test_absent_data_is_not_measured():
    analysis = find(planted_table(held_out=0), NO_SCORES, draws=100)
    for title in ("Tasks held out of the mixture", "Own specialist against others", "Similarity and ability"):
        assert finding(analysis, title)["verdict"] == "not measured"


def test_no_effect_is_not_supported():
    analysis = find(planted_table(tasks=20, layers=8, breaks=None), NO_SCORES, draws=200)
    assert finding(analysis, "Where the network changes")["verdict"] == "not supported"
    assert analysis["sections"]["transition"] is None


def test_estimators_that_disagree_in_sign_weaken_a_headline():
    table = planted_table(tasks=16, layers=8, held_out=0, breaks=(3, 5))
    tuned_biased = (table.experimental == "tuned") & (table.estimator == "biased")
    table.loc[tuned_biased, "cka"] -= 0.6
    statement = finding(find(table, NO_SCORES, draws=200), "What tuning adds in the upper half")
    assert statement["verdict"] == "weak" and "opposite sign" in statement["sentence"]


def test_undefined_rows_do_not_count_even_if_they_hold_a_number():
    table = planted_table()
    victim = (table.task == "task103_planted") & (table.layer == "4")
    table.loc[victim, ["undefined", "cka"]] = ["fewer than 4 finite rows", 99.0]
    assert np.isnan(task_layer_matrix(table, "tuned").loc["task103_planted", "4"])
    assert np.isnan(differences(table).loc["task103_planted", "4"])
    reasons = {row["reason"]: row["cells"] for row in find(table, NO_SCORES, draws=50)["trust"]["reasons"]}
    assert reasons == {"no variance": 48, "fewer than 4 finite rows": 4}


def test_a_table_with_nothing_defined_gives_no_claim():
    table = planted_table(tasks=6, layers=4, held_out=1).assign(cka=np.nan, undefined="not finite")
    analysis = find(table, NO_SCORES, draws=50)
    assert {finding["verdict"] for finding in analysis["findings"]} <= {"not supported", "not measured"}


def test_two_tasks_give_no_interval():
    table = planted_table(tasks=2, layers=4, held_out=0)
    ranking = find(table, NO_SCORES, draws=50)["clusters"]["ranking"]
    assert ranking[0]["pretrained"]["low"] is None and "too few" in ranking[0]["reason"]


def test_few_prompts_weaken_a_finding():
    table = planted_table(tasks=20, layers=8, breaks=(3, 5)).assign(n=30)
    statement = finding(find(table, NO_SCORES, draws=200), "What tuning adds in the upper half")
    assert statement["verdict"] == "weak" and "30 prompts" in statement["sentence"]


def test_clusters_without_difference_are_rarely_called_different():
    rng = np.random.default_rng(0)
    false = 0
    for seed in range(60):
        levels = pd.DataFrame({"cluster": np.repeat(list("abcde"), 4), "pretrained": rng.normal(size=20)})
        false += clusters_differ(levels, "pretrained", seed, 200)["p"] <= 0.05
    assert false <= 8


def test_change_averages_over_layers_where_both_models_are_defined():
    table = planted_table(tasks=5, layers=4, held_out=0, breaks=(1, 3))
    gone = (table.task == "task100_planted") & (table.layer == "2") & (table.experimental == "tuned")
    table.loc[gone, "cka"] = np.nan
    levels = task_levels(table, ["1", "2", "3", "4"])
    expected = differences(table, layers=["1", "3", "4"]).loc["task100_planted"].mean()
    assert levels.loc["task100_planted", "change"] == pytest.approx(expected)
    assert len(rank_clusters(levels, draws=20)) == 5


def test_a_table_without_a_column_or_a_block_layer_is_refused():
    with pytest.raises(Refusal) as refused:
        find(planted_table().drop(columns="q"), NO_SCORES)
    assert refused.value.code == BAD_INPUT and "'q'" in str(refused.value)
    table = planted_table()
    with pytest.raises(Refusal):
        find(table[table.layer == "embed"], NO_SCORES)
