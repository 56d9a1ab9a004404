"""The rule of the panel of measures, on planted tables: when other measures share a finding and when they do not."""

import numpy as np
import pandas as pd
import pytest

from mossa_jax.benchmarks.planted_findings import planted_scores, planted_table, ramp
from mossa_jax.findings import find
from mossa_jax.findings.claims import Evidence
from mossa_jax.findings.robustness import add_to_evidence, find_robustness

SIZES, LAYERS = (1,) * 12, 8
SUBSET = (1, 2, 4, 6, 8)
MEASURES = ("cka_debiased", "cka_biased", "procrustes", "rsa", "mutual_knn", "cknna")
VIEWS = (("last", "raw"), ("last", "standardised"), ("last", "top_removed"), ("mean", "raw"))
NO_SCORES = planted_scores(SIZES, np.random.default_rng(0)).head(0)


def planted_change(seed=0):
    """[T, L]: a rise over layers 3 and 4, larger in some tasks than in others."""
    rng = np.random.default_rng(seed)
    rise = ramp(LAYERS, 2, 4, 0.4) * rng.uniform(0.6, 1.4, (len(SIZES), 1))
    return rise + 0.02 * rng.normal(size=(len(SIZES), LAYERS))


def measures_table(change, members, held_out=0):
    """The table `results/measures`, each member with `members(pool, variant, measure, change [T, K])` as its change."""
    columns = [layer - 1 for layer in SUBSET]
    rows = []
    for pool, variant in VIEWS:
        for measure in MEASURES:
            own = members(pool, variant, measure, change[:, columns])
            for kind, control, values in (
                ("pretrained", "", np.zeros_like(own)),
                ("tuned", "", own),
                ("tuned", ".twin", own - 0.2),
            ):
                if control and pool == "mean":
                    continue
                for task in range(len(SIZES)):
                    for k, layer in enumerate(SUBSET):
                        rows.append(
                            {
                                "task": f"t{task:02}",
                                "cluster": f"c{task:02}",
                                "held_out": task >= len(SIZES) - held_out,
                                "experimental": kind,
                                "control": f"t{task:02}{control}",
                                "layer": str(layer),
                                "measure": measure,
                                "variant": variant,
                                "pool": pool,
                                "value": 0.5 + values[task, k],
                                "n": 200,
                                "undefined": "",
                            }
                        )
    return pd.DataFrame(rows)


def as_cka(pool, variant, measure, change):
    return change


def analyse(members, held_out=0):
    """All findings of a run with these members."""
    change = planted_change()
    table = planted_table(change, SIZES, held_out=held_out, twins=np.full(change.shape, 0.55) + change - 0.2)
    analyses = {"measures": measures_table(change, members, held_out)}
    return find(table, NO_SCORES, draws=100, analyses=analyses)


@pytest.fixture(scope="module")
def agreeing():
    """The findings of a run whose measures all show what CKA shows."""
    return analyse(as_cka)


def panel_of(members, analysis):
    return find_robustness(measures_table(planted_change(), members), analysis, [])


def verdict(analysis, name):
    return next(each for each in analysis["findings"] if each["id"] == name)


def test_measures_that_show_the_same_leave_all_verdicts_as_they_are(agreeing):
    analysis = agreeing
    for name in ("transition", "shift", "specificity"):
        assert verdict(analysis, name)["verdict"] == "supported", name
        assert analysis["panel"]["findings"][name]["shared"]
    assert "unseen" not in analysis["panel"]["findings"]
    assert analysis["panel"]["layers"] == [str(layer) for layer in SUBSET]


def test_one_view_that_does_not_share_a_finding_is_a_reservation():
    def reversed_without_top(pool, variant, measure, change):
        return -change if variant == "top_removed" else change

    analysis = analyse(reversed_without_top)
    for name in ("transition", "shift"):
        assert verdict(analysis, name)["verdict"] == "undecided"
        assert "not shared by: states without their top component (0 of 6" in verdict(analysis, name)["sentence"]
    # What E holds of the own specialist and not of the twin is the same in this view.
    assert verdict(analysis, "specificity")["verdict"] == "supported"


@pytest.mark.parametrize("dissenters, shares", [(2, True), (3, False)])
def test_a_view_needs_two_thirds_of_its_measures(dissenters, shares, agreeing):
    def some_reversed(pool, variant, measure, change):
        is_reversed = variant == "standardised" and measure in MEASURES[-dissenters:]
        return -0.1 * change if is_reversed else change

    views = panel_of(some_reversed, agreeing)["findings"]["shift"]["views"]
    (view,) = (view for view in views if view["view"] == "standardised")
    assert view["agree"] == 6 - dissenters and view["shares"] == shares


def test_a_mean_that_a_few_units_carry_does_not_agree(agreeing):
    def few_units(pool, variant, measure, change):
        return np.where(np.arange(len(SIZES))[:, None] < 7, change, -0.1 * change) if pool == "mean" else change

    members = panel_of(few_units, agreeing)["findings"]["shift"]["members"]
    carried = [member for member in members if member["view"] == "mean"]
    assert all(member["mean"] > 0.1 and member["units"] == 7 and not member["agrees"] for member in carried)


def test_the_same_sign_at_other_places_is_not_the_same_finding(agreeing):
    def elsewhere(pool, variant, measure, change):
        rng = np.random.default_rng(len(measure))
        return 0.2 + 0.05 * rng.normal(size=change.shape) if variant == "standardised" else change

    shift = panel_of(elsewhere, agreeing)["findings"]["shift"]
    (view,) = (v for v in shift["views"] if v["view"] == "standardised")
    assert view["agree"] == 6 and view["correlation"] < 0.5 and not view["shares"] and not shift["shared"]


def test_held_out_tasks_are_held_against_the_finding_on_unseen_tasks_alone():
    def unseen_reversed(pool, variant, measure, change):
        return np.where(np.arange(len(SIZES))[:, None] >= 6, -change, change)

    findings = analyse(unseen_reversed, held_out=6)["panel"]["findings"]
    assert findings["shift"]["shared"] and not findings["unseen"]["shared"]
    assert findings["shift"]["n_tasks"] == findings["unseen"]["n_tasks"] == 6


def test_incompetent_tasks_are_left_out(agreeing):
    panel = find_robustness(measures_table(planted_change(), as_cka), agreeing, ["t00", "t05"])
    assert len(panel["tasks"]) == 10 and panel["findings"]["shift"]["n_units"] == 10


def test_values_of_the_panel_are_means_over_units(agreeing):
    change, analysis = planted_change(), agreeing
    (member,) = (
        m for m in analysis["panel"]["findings"]["shift"]["members"] if (m["view"], m["measure"]) == ("raw", "rsa")
    )
    upper = [layer - 1 for layer in SUBSET if layer > 4]
    assert member["mean"] == pytest.approx(change[:, upper].mean())
    (by_layer,) = (c for c in analysis["panel"]["changes"] if (c["view"], c["measure"]) == ("raw", "rsa"))
    np.testing.assert_allclose(by_layer["mean"], change[:, [layer - 1 for layer in SUBSET]].mean(0))
    before, after = change[:, [0, 1]].mean(), change[:, [3, 5, 7]].mean()
    (member,) = (
        m for m in analysis["panel"]["findings"]["transition"]["members"] if (m["view"], m["measure"]) == ("raw", "rsa")
    )
    assert member["mean"] == pytest.approx(after - before)


def test_without_the_panel_nothing_is_said():
    panel = find_robustness(None, {}, [])
    evidence = {"shift": Evidence("As it was.")}
    add_to_evidence(evidence, panel)
    assert not panel["measured"] and evidence["shift"].sentence == "As it was."


def test_undefined_cells_are_left_out(agreeing):
    change = planted_change()
    table = measures_table(change, as_cka)
    table.loc[(table.measure == "rsa") & (table.task == "t03"), "value"] = np.nan
    members = find_robustness(table, agreeing, [])["findings"]["shift"]["members"]
    assert {member["n_units"] for member in members if member["measure"] == "rsa"} == {11}
    table.loc[table.measure == "rsa", "value"] = np.nan
    members = find_robustness(table, agreeing, [])["findings"]["shift"]["members"]
    assert "rsa" not in {member["measure"] for member in members}
