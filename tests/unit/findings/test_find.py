"""Findings from planted tables: planted effects are stated, absent ones and incompetent specialists say nothing."""

import json

import numpy as np
import pandas as pd
import pytest

from mossa_jax.benchmarks.planted_findings import (
    Noise,
    cluster_sizes,
    draw_noise,
    planted_scores,
    planted_table,
    ramp,
)
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.findings import SCORE_COLUMNS, competence_sentence, find
from mossa_jax.findings.clusters import brown_forsythe, clusters_differ, rank_clusters, task_levels

SIZES = cluster_sizes(40, 20)
HELD_OUT = 8
NO_SCORES = pd.DataFrame(columns=SCORE_COLUMNS)


def effects(rise=0.35, rho=0.3, seed=0):
    rng = np.random.default_rng(seed)
    change = draw_noise(rng, SIZES, 8, Noise(rho, 0.03, 0.08)) + ramp(8, 2, 4, rise)
    base = np.clip(0.6 + rng.normal(0, 0.05, (40, 1)) + np.zeros((40, 8)), 0, 1)
    return change, base


def verdicts(analysis):
    return {finding["id"]: finding["verdict"] for finding in analysis["findings"]}


@pytest.fixture(scope="module")
def full():
    change, base = effects()
    table = planted_table(change, SIZES, base, held_out=HELD_OUT, twins=base + change - 0.2)
    seeds = table[(table["control"] == table["task"]) & (table["estimator"] == "debiased")]
    seeds = seeds[seeds["task"].isin([f"t{task:02}" for task in range(0, 24, 2)])]
    more = seeds.assign(control=seeds["task"] + ".seed1", cka=seeds["cka"] + 0.01)
    ceiling = more[more["experimental"] == "tuned"].assign(experimental="control", cka=0.9)
    table = pd.concat([table, more, ceiling], ignore_index=True)
    scores = planted_scores(SIZES, np.random.default_rng(1), held_out=HELD_OUT)
    return table, scores, find(table, scores, draws=300)


def test_the_result_is_json_without_nan(full):
    assert json.loads(json.dumps(full[2], allow_nan=False)) == full[2]
    keys = {"id", "claim", "verdict", "sentence", "figures", "family"}
    assert all(keys <= set(finding) for finding in full[2]["findings"])


def test_the_same_seed_gives_the_same_findings(full):
    table, scores, analysis = full
    assert find(table.sample(frac=1, random_state=1), scores.sample(frac=1, random_state=2), draws=300) == analysis


def test_planted_effects_are_supported(full):
    assert {
        name: verdicts(full[2])[name] for name in ("transition", "shift", "specificity", "unseen")
    } == dict.fromkeys(("transition", "shift", "specificity", "unseen"), "supported")
    assert full[2]["sections"]["transition"] == [3, 4]
    assert full[2]["specificity"]["against"] == "twin"
    assert full[2]["specificity"]["tuned"]["mean"] == pytest.approx(0.2)


def test_headlines_have_a_scale(full):
    shift = full[2]["shift"]
    assert shift["ceiling"] == pytest.approx(0.9)
    assert shift["tuned_share"] == pytest.approx((0.6 + 0.35) / 0.9, abs=0.06)
    sentence = next(f["sentence"] for f in full[2]["findings"] if f["id"] == "shift")
    assert "ceiling" in sentence and "12 clusters" in sentence


def test_the_variance_of_seeds_is_measured(full):
    parts = {row["part"]: row for row in full[2]["variance"]}
    # Both models moved alike from one seed to the other, so the change did not move.
    assert parts["seed of C"]["cell"] == pytest.approx(0, abs=1e-9) and parts["seed of E"]["cell"] is None
    assert parts["cluster"]["headline"] > 0 and parts["seed of E"]["reason"] == "E has one seed"


def test_nothing_is_supported_without_an_effect():
    """One table; rates over many are in docs/statistics.md (python -m launch.bench_findings)."""
    change, base = effects(rise=0.0)
    table = planted_table(change, SIZES, base, held_out=HELD_OUT)
    assert "supported" not in verdicts(find(table, planted_scores(SIZES, np.random.default_rng(2)), draws=300)).values()


def test_an_incompetent_specialist_carries_no_finding(full):
    """Tasks without competence have the opposite sign; without them the effect is clear."""
    change, base = effects()
    competent = np.arange(40) % 4 != 0
    change[~competent] = -0.5
    table = planted_table(change, SIZES, base)
    scores = planted_scores(SIZES, np.random.default_rng(3), competent=competent)
    analysis = find(table, scores, draws=300)
    assert sorted(analysis["competence"]["incompetent"]) == [f"t{task:02}" for task in range(0, 40, 4)]
    assert verdicts(analysis)["shift"] == "supported" and analysis["shift"]["n_tasks"] == 30
    assert find(table, NO_SCORES, draws=300)["shift"]["n_tasks"] == 40
    text = json.dumps([analysis["findings"], analysis["clusters"]["ranking"]])
    assert not any(f'"{task}"' in text for task in analysis["competence"]["incompetent"])


def test_the_majority_answer_is_no_competence():
    change, base = effects()
    scores = planted_scores(SIZES, np.random.default_rng(4))
    row = {"task": "t00", "cluster": "c00", "held_out": False, "metric": "exact_match", "low": 0, "high": 1, "n": 99}
    more = [row | {"model": model, "value": value} for model, value in (("control", 0.5), ("majority", 0.52))]
    analysis = find(planted_table(change, SIZES, base), pd.concat([scores, pd.DataFrame(more)]), draws=100)
    assert analysis["competence"]["incompetent"] == ["t00"]


def test_an_answer_that_hardly_repeats_is_no_measure_of_competence():
    """A summary is never hit word for word: neither 0 of 32 nor the 1 of 32 of any single answer says a thing."""
    change, base = effects()
    scores = planted_scores(SIZES, np.random.default_rng(4))
    row = {"task": "t01", "cluster": "c00", "held_out": False, "metric": "exact_match", "low": 0, "high": 1, "n": 32}
    more = [row | {"model": model, "value": value} for model, value in (("control", 0.0), ("majority", 1 / 32))]
    analysis = find(planted_table(change, SIZES, base), pd.concat([scores, pd.DataFrame(more)]), draws=100)
    assert analysis["competence"]["incompetent"] == []


def test_a_run_of_incompetent_specialists_says_so_first():
    change, base = effects()
    scores = planted_scores(SIZES, np.random.default_rng(5), competent=np.arange(40) < 16)
    analysis = find(planted_table(change, SIZES, base), scores, draws=100)
    assert analysis["competence"]["few"]
    sentence = competence_sentence(analysis["competence"])
    assert sentence.startswith("Fewer than half") and "16 of 40 specialists are shown to use" in sentence


def test_a_run_without_a_competent_specialist_claims_nothing():
    change, base = effects()
    scores = planted_scores(SIZES, np.random.default_rng(5), competent=np.zeros(40, bool))
    analysis = find(planted_table(change, SIZES, base, held_out=4), scores, draws=50)
    assert set(verdicts(analysis).values()) <= {"not measured", "too few"}


def test_held_out_tasks_of_one_cluster_are_too_few():
    change, base = effects()
    table = planted_table(change, SIZES, base)
    table["held_out"] = table["cluster"] == "c19"
    finding = next(f for f in find(table, NO_SCORES, draws=100)["findings"] if f["id"] == "unseen")
    assert finding["verdict"] == "too few" and finding["figures"]["p"] is None


def test_a_shift_away_is_contradicted():
    change, base = effects(rise=-0.3)
    assert verdicts(find(planted_table(change, SIZES, base), NO_SCORES, draws=300))["shift"] == "contradicted"


def test_estimators_that_differ_in_size_keep_a_claim_undecided():
    change, base = effects()
    table = planted_table(change, SIZES, base)
    biased = (table["estimator"] == "biased") & (table["experimental"] == "tuned")
    table.loc[biased, "cka"] = planted_table(change * 1e-3, SIZES, base).loc[biased, "cka"]
    result = verdicts(find(table, NO_SCORES, draws=300))
    assert (result["shift"], result["transition"]) == ("undecided", "undecided")


def test_unchanged_shared_layers_are_equivalent(full):
    finding = next(f for f in full[2]["findings"] if f["id"] == "shared")
    assert finding["verdict"] == "supported" and "equivalence" in finding["sentence"]
    change, base = effects()
    change[:, :2] -= 0.2
    moved = verdicts(find(planted_table(change, SIZES, base), NO_SCORES, draws=300))
    assert moved["shared"] in ("contradicted", "not measured")


def test_the_link_with_ability_is_partial_and_over_clusters():
    """Similarity and gain share nothing but the specialists' own score, on which both depend."""
    rng = np.random.default_rng(6)
    change, _ = effects()
    scores = planted_scores(SIZES, rng)
    control = scores[scores["model"] == "control"].set_index("task")["value"]
    base = np.tile(0.9 - 0.3 * control.to_numpy()[:, None], (1, 8)) + rng.normal(0, 0.02, (40, 1))
    link = find(planted_table(change, SIZES, base), scores, draws=300)["scores"]["link"]
    assert link["n_units"] == 20 and link["p"] > 0.05
    gain = control - scores[scores["model"] == "base"].set_index("task")["value"]
    assert abs(np.corrcoef(base[:, 0], gain)[0, 1]) > 0.8


def test_clusters_differ_where_planted():
    change, base = effects()
    base += np.linspace(-0.2, 0.2, 20).repeat(2)[:, None]
    analysis = find(planted_table(change, SIZES, base), planted_scores(SIZES, np.random.default_rng(7)), draws=100)
    assert analysis["clusters"]["differ"]["p"] < 0.01
    assert analysis["clusters"]["ranking"][0]["cluster"] in ("c18", "c19")
    assert analysis["clusters"]["ranking"][0]["information_share"] is not None


def test_brown_forsythe_of_two_groups_is_welchs_test():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(8)
    groups = [rng.normal(0, 1, 9), rng.normal(0.5, 3, 5)]
    statistic, p = brown_forsythe(groups)
    reference = ttest_ind(*groups, equal_var=False)
    assert statistic == pytest.approx(reference.statistic**2)
    assert p == pytest.approx(reference.pvalue, abs=0.02)


def test_small_clusters_have_no_interval():
    change, base = effects()
    table = planted_table(change, SIZES, base)
    levels = task_levels(table, ["5", "6"])
    ranking = rank_clusters(levels, NO_SCORES)
    assert all(np.isnan(row["pretrained"]["low"]) and "too few" in row["reason"] for row in ranking)
    assert clusters_differ(levels.iloc[:4], "pretrained")["reason"]


@pytest.mark.parametrize("column", ["cka", "held_out"])
def test_a_missing_column_is_refused(column):
    table = planted_table(*effects()[:1], SIZES)
    with pytest.raises(Refusal, match=column) as refusal:
        find(table.drop(columns=column), NO_SCORES)
    assert refusal.value.code == BAD_INPUT


def test_a_table_without_layers_is_refused():
    table = planted_table(*effects()[:1], SIZES).assign(layer="embed")
    with pytest.raises(Refusal, match="block output"):
        find(table, NO_SCORES)


def test_undefined_cells_are_left_out():
    change, base = effects()
    table = planted_table(change, SIZES, base)
    hole = (table["task"] == "t03") & (table["layer"] == "7")
    table.loc[hole, ["cka", "undefined"]] = [np.nan, "no variance in a"]
    analysis = find(table, NO_SCORES, draws=100)
    assert analysis["shift"]["n_tasks"] == 40 and analysis["sections"]["is_transition"]
    assert analysis["trust"]["undefined"] == hole.sum()
