"""Where the gain sits, on planted profiles: what each layer carries, and whether the changing layers carry it."""

import json

import numpy as np
import pandas as pd
import pytest

from mossa_jax.benchmarks.planted_findings import Noise, cluster_sizes, draw_noise, planted_scores, planted_table, ramp
from mossa_jax.findings import find
from mossa_jax.findings.cells import cells_of
from mossa_jax.findings.curves import block_layers
from mossa_jax.findings.profile import find_profile, gain_evidence
from tests.support.planted_profile import planted_profile

SIZES = cluster_sizes(24, 12)
TASKS = {f"t{task:02}": f"c{cluster}" for task, cluster in enumerate(np.repeat(np.arange(12), SIZES))}
LAYERS = 8
IN_RAMP = np.array([0.02, 0.02, 0.45, 0.45, 0.02, 0.02, 0.01, 0.01])
IN_FIRST = np.array([0.7, 0.1, 0.02, 0.02, 0.04, 0.04, 0.04, 0.04])
EVENLY = np.full(LAYERS, 1 / LAYERS)


@pytest.fixture(scope="module")
def table():
    """Similarity changes in layers 3 and 4: a transition."""
    rng = np.random.default_rng(0)
    change = draw_noise(rng, SIZES, LAYERS, Noise(0.3, 0.02, 0.03)) + ramp(LAYERS, 2, 4, 0.35)
    planted = planted_table(change, SIZES, np.full((24, LAYERS), 0.55))
    names = dict(zip(planted["task"].unique(), TASKS.values(), strict=True))
    return planted.assign(cluster=planted["task"].map(names))


@pytest.fixture(scope="module")
def profile_of(table):
    """Returns the result of `find_profile` alone, by the sections of a full analysis."""
    scores = planted_scores(SIZES, np.random.default_rng(1))
    sections = {name: result["sections"] for name, result in find(table, scores, draws=100)["robustness"].items()}
    cells = cells_of(table)

    def compute(draws=500, **planted):
        return find_profile(planted_profile(TASKS, **planted), cells, sections, block_layers(cells), draws=draws)

    return compute


def finding(table, profile):
    analysis = find(table, planted_scores(SIZES, np.random.default_rng(1)), draws=100, analyses={"profile": profile})
    assert json.loads(json.dumps(analysis, allow_nan=False)) == analysis
    by_id = {each["id"]: each for each in analysis["findings"]}
    return by_id["gain"], by_id["transition"]


def test_what_a_layer_carries_is_what_was_planted(profile_of):
    result = profile_of(carried=IN_FIRST, synergy=0.3)
    assert result["measured"]
    result = result["shown"]
    assert result["measure"] == "information" and result["most"] == 1
    means = np.asarray([each["mean"] for each in result["layers"]])
    # Alone, the inner layers are worth what was planted; the first and the last share what only both directions give.
    np.testing.assert_allclose(means[1:-1], IN_FIRST[1:-1], atol=1e-12)
    assert means.sum() == pytest.approx(1) and means[0] == pytest.approx(IN_FIRST[0])
    np.testing.assert_allclose([each["mean"] for each in result["interaction"]], [0, *[-0.3] * 7, 0], atol=1e-12)
    upto = [each for each in result["curves"] if (each["model"], each["kept"]) == ("control", "upto")]
    assert len(upto) == 2 * (LAYERS + 1) and all(each["n_tasks"] == 24 for each in upto)


def test_intervals_are_over_clusters(profile_of):
    profile = planted_profile(TASKS, IN_RAMP, noise=0.05)
    rows = profile[(profile.model == "tuned") & (profile.kept == "upto") & (profile.layer == 3)]
    units = rows.groupby("cluster")["share_of_information"].mean()
    result = profile_of(carried=IN_RAMP, noise=0.05)
    (row,) = (
        each
        for each in result["shown"]["curves"]
        if (each["measure"], each["model"], each["kept"], each["layer"]) == ("information", "tuned", "upto", 3)
    )
    from scipy.stats import t

    half = t.ppf(0.975, 11) * units.std(ddof=1) / 12**0.5
    ends = (units.mean(), units.mean() - half, units.mean() + half)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("carried", "verdict"), [(IN_RAMP, "supported"), (IN_FIRST, "contradicted"), (EVENLY, "undecided")]
)
def test_the_claim_is_judged_by_what_the_transition_carries(table, carried, verdict):
    gain, transition = finding(table, planted_profile(TASKS, carried, noise=0.1))
    assert gain["verdict"] == verdict and gain["family"] == "exploratory"
    figures = gain["figures"]["by_change"]
    assert figures["rise"]["layers"] == [3, 4] and figures["top"]["layers"] == [3, 4]
    assert figures["rise"]["carried"]["mean"] == pytest.approx(carried[2:4].sum(), abs=0.06)
    # The finding on the sections quotes it.
    share = f"{round(100 * figures['rise']['carried']['mean'])} %"
    assert "the transition (layers 3 to 4, 25 % of all layers) carries" in transition["sentence"]
    assert share in transition["sentence"] and share in gain["sentence"]


def test_two_ways_of_naming_the_layers_must_agree(profile_of):
    """The ramp and the layers with the largest rise point apart: then nothing is shown, however small either p is."""
    result = profile_of(carried=IN_RAMP, noise=0.02)
    for parts in result["by_change"].values():
        parts["top"]["excess"] |= {"mean": -parts["top"]["excess"]["mean"]}
    evidence = gain_evidence(result)
    assert evidence.p == 1 and "opposite answers" in evidence.sentence
    agreed = gain_evidence(profile_of(carried=IN_RAMP, noise=0.02))
    assert agreed.p < 0.001 and agreed.direction == 1 and not agreed.reservations


def test_without_profiles_the_claim_is_not_measured(table):
    undefined = dict.fromkeys(("share_of_gain", "share_of_information"), np.nan)
    for profile in (pd.DataFrame(), planted_profile(TASKS, IN_RAMP).assign(**undefined)):
        gain, transition = finding(table, profile)
        assert gain["verdict"] == "not measured" and "By function" not in transition["sentence"]


def test_few_clusters_carry_no_test(table):
    few = {task: cluster for task, cluster in TASKS.items() if cluster in ("c0", "c1", "c2")}
    gain, _ = finding(table, planted_profile(few, IN_RAMP, noise=0.05))
    assert gain["verdict"] == "too few" and "3 clusters" in gain["sentence"]


def test_tasks_without_a_gain_and_incompetent_ones_are_left_out(table):
    profile = planted_profile(TASKS, IN_RAMP, noise=0.02)
    profile.loc[profile["task"] == "t00", "share_of_information"] = np.nan
    scores = planted_scores(SIZES, np.random.default_rng(1))
    useless = (scores["task"] == "t05") & (scores["model"] == "control") & (scores["metric"] == "information")
    scores.loc[useless, ["value", "low", "high"]] = [0.0, -0.1, 0.1]
    tasks = find(table, scores, draws=100, analyses={"profile": profile})["profile"]["shown"]["tasks"]
    assert tasks == sorted(set(TASKS) - {"t00", "t05"}, key=tasks.index) and len(tasks) == 22


def test_without_information_shares_are_of_the_likelihood(profile_of):
    result = profile_of(carried=IN_RAMP, information=False)
    assert result["shown"]["measure"] == "answer_nll"
    assert "likelihood" in gain_evidence(result).sentence


def test_few_depths_are_interpolated(profile_of):
    result = profile_of(carried=np.repeat([0.3, 0.1, 0.08, 0.02], 2), cuts=4)
    np.testing.assert_allclose(
        [each["mean"] for each in result["shown"]["layers"]], np.repeat([0.3, 0.1, 0.08, 0.02], 2), atol=1e-12
    )


@pytest.mark.slow
def test_gains_that_have_nothing_to_do_with_the_change_are_rarely_called_so(profile_of):
    """Each cluster's gain sits in random layers: the chance of p <= 0.05 is at most that."""
    rng, hits, runs = np.random.default_rng(5), 0, 60
    for _ in range(runs):
        carried = rng.dirichlet(np.ones(LAYERS), 12)[np.repeat(np.arange(12), SIZES)]
        hits += gain_evidence(profile_of(carried=carried)).p <= 0.05
    # Binomial(60, 0.05) exceeds 8 with probability 0.003.
    assert hits <= 8
