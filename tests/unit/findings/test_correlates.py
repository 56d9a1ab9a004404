"""What goes with similarity over tasks: the paper's printed correlations planted and found, SciPy, and null tasks."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mossa_jax.findings.competence import CONTROL, INFORMATION
from mossa_jax.findings.correlates import CHANGE, CORRELATES, correlation, find_correlates

# Figure 6 of the paper, layers 1 to 32.
PRINTED = {
    (
        "flesch_kincaid",
        "pretrained",
    ): "-.03 .01 .10 -.04 -.09 .02 -.06 -.03 -.09 -.11 -.14 -.18 .06 .11 .16 .15 .13 .11 "
    ".11 .09 .07 .06 .06 .05 .05 .06 .07 .07 .06 .06 .02 -.04",
    ("flesch_kincaid", "tuned"): ".17 .26 .25 -.03 .02 .07 -.01 -.04 .04 .11 .15 .23 .33 .28 .38 .39 .43 .42 .42 .43 "
    ".41 .40 .40 .39 .40 .40 .39 .40 .39 .37 .35 .26",
    ("coleman_liau", "pretrained"): "-.22 .06 .16 .05 -.01 .06 .00 .01 -.08 -.16 -.22 -.28 .01 .08 .12 .10 .09 .07 .08 "
    ".07 .05 .04 .04 .03 .03 .03 .04 .04 .04 .04 .04 -.01",
    ("coleman_liau", "tuned"): ".17 .30 .21 -.03 .07 -.07 -.09 -.10 .01 .14 .19 .27 .32 .29 .41 .41 .44 .44 .44 .45 "
    ".43 .42 .41 .40 .40 .39 .39 .39 .39 .39 .39 .39",
    (
        "training_rows",
        "pretrained",
    ): ".46 .13 -.02 -.05 .05 .06 .05 .10 .18 .26 .30 .34 .15 .07 .04 .06 .06 .07 .05 .04 "
    ".02 .02 .02 .01 .01 .02 .02 .02 .01 .00 -.05 -.11",
    ("training_rows", "tuned"): ".00 -.02 .03 .09 .11 .43 .33 .20 .15 .00 -.03 -.09 -.12 -.14 -.19 -.18 -.16 -.16 -.15 "
    "-.14 -.14 -.13 -.13 -.13 -.12 -.10 -.11 -.10 -.11 -.12 -.14 -.27",
}
SIZES = [10, 6, 5, 5, 4, 4, 4, 4, 4, 5, 5, 4]
NAMES = [f"task{i:02d}" for i in range(sum(SIZES))]
CLUSTERS = np.repeat([f"cluster{i:02d}" for i in range(len(SIZES))], SIZES)


def results(values):
    """Returns a results table with `values[experimental]` [tasks, layers] as CKA with each task's own control."""
    frames = [
        pd.DataFrame(
            {
                "experimental": experimental,
                "control": task,
                "task": task,
                "cluster": cluster,
                "held_out": False,
                "layer": [str(layer + 1) for layer in range(matrix.shape[1])],
                "estimator": estimator,
                "cka": matrix[row],
                "n": 100,
                "undefined": "",
            }
        )
        for experimental, matrix in values.items()
        for estimator in ("debiased", "biased")
        for row, (task, cluster) in enumerate(zip(NAMES, CLUSTERS, strict=True))
    ]
    return pd.concat(frames, ignore_index=True)


NO_SCORES = pd.DataFrame(columns="task cluster held_out model metric value low high n".split())


def figures_of_tasks(seed=0):
    """Returns the three figures of each task; they are uncorrelated in the sample and have mean 0."""
    draws = np.random.default_rng(seed).normal(size=(len(NAMES), len(CORRELATES)))
    basis, _ = np.linalg.qr(np.column_stack([np.ones(len(NAMES)), draws]))
    return pd.DataFrame(basis[:, 1:], columns=list(CORRELATES)).assign(task=NAMES)


def test_the_papers_printed_correlations_are_found_where_they_are_planted():
    tasks = figures_of_tasks()
    basis = tasks[list(CORRELATES)].to_numpy()
    rng = np.random.default_rng(1)
    values = {}
    for experimental in ("pretrained", "tuned"):
        matrix = np.zeros((len(NAMES), 32))
        for layer in range(32):
            r = [float(PRINTED[correlate, experimental].split()[layer]) for correlate in CORRELATES]
            rest = rng.normal(size=len(NAMES))
            rest -= rest.mean()
            rest -= basis @ (basis.T @ rest)
            # A unit vector with exactly these cosines to the three unit vectors of the basis.
            planted = basis @ r + np.sqrt(1 - np.square(r).sum()) * rest / np.linalg.norm(rest)
            matrix[:, layer] = 0.7 + 0.2 * planted
        values[experimental] = matrix
    found = find_correlates(results(values), NO_SCORES, tasks)
    for (correlate, experimental), text in PRINTED.items():
        rows = found[(found.correlate == correlate) & (found.experimental == experimental)]
        for estimator in ("debiased", "biased"):
            own = rows[rows.estimator == estimator].set_index("layer")["r"]
            expected = [float(r) for r in text.split()]
            np.testing.assert_allclose([own[str(layer)] for layer in range(1, 33)], expected, atol=1e-9)
    assert (found.n_tasks == 60).all() and (found.n_units == 12).all()


def random_results(seed=2):
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(size=(len(NAMES), 4)) for name in ("pretrained", "tuned")}


def test_figures_of_a_cell_are_those_of_scipy():
    values, tasks = random_results(), figures_of_tasks()
    found = find_correlates(results(values), NO_SCORES, tasks)
    matrices = values | {CHANGE: values["tuned"] - values["pretrained"]}
    for row in found[found.estimator == "debiased"].itertuples():
        x, y = matrices[row.experimental][:, int(row.layer) - 1], tasks[row.correlate].to_numpy()
        assert row.r == pytest.approx(stats.pearsonr(x, y).statistic)
        assert row.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
        assert row.low < row.r < row.high
    for _, rows in found.groupby(["experimental", "correlate", "estimator"]):
        np.testing.assert_allclose(rows["q"], stats.false_discovery_control(rows["p"]))


def test_tasks_held_out_or_without_a_competent_specialist_do_not_count():
    values = random_results()
    table = results(values)
    table.loc[table.task == "task00", "held_out"] = True
    scores = pd.DataFrame(
        [
            {"task": task, "cluster": "", "held_out": False, "model": CONTROL, "metric": INFORMATION, "value": 1.0,
             "low": low, "high": 2.0, "n": 9}
            for task, low in (("task01", -0.5), ("task02", 0.5))
        ]
    )  # fmt: skip
    tasks = figures_of_tasks()
    found = find_correlates(table, scores, tasks)
    assert (found.n_tasks == 58).all() and found.competent_only.all()
    row = found[(found.experimental == "tuned") & (found.layer == "2")].iloc[0]
    expected = stats.pearsonr(values["tuned"][2:, 1], tasks[row.correlate].to_numpy()[2:]).statistic
    assert row.r == pytest.approx(expected)


def test_without_competent_specialists_all_tasks_of_the_mixture_count():
    table = results(random_results())
    table.loc[table.task == "task00", "held_out"] = True
    row = {"cluster": "", "held_out": False, "model": CONTROL, "metric": INFORMATION, "value": 0.1, "high": 1.0, "n": 9}
    scores = pd.DataFrame([{**row, "task": task, "low": -0.5} for task in NAMES[4:]])
    found = find_correlates(table, scores, figures_of_tasks())
    assert (found.n_tasks == 59).all() and not found.competent_only.any()


def test_interval_is_the_jackknife_over_clusters_and_p_flips_whole_clusters():
    rng = np.random.default_rng(3)
    clusters = [f"c{i}" for i in (0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 6)]
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    cell = correlation(x, y, clusters)
    names = sorted(set(clusters))
    z = []
    for name in names:
        keep = np.array(clusters) != name
        z.append(np.arctanh(np.corrcoef(x[keep], y[keep])[0, 1]))
    error = np.sqrt(6 / 7 * np.square(np.array(z) - np.mean(z)).sum())
    half = stats.t.ppf(0.975, 6) * error
    centre = np.arctanh(np.corrcoef(x, y)[0, 1])
    assert (cell["low"], cell["high"]) == pytest.approx((np.tanh(centre - half), np.tanh(centre + half)))
    # Each flip turns the residuals of whole clusters around, and the correlation's numerator is computed anew.
    reached = 0
    covariance = abs(np.sum((x - x.mean()) * (y - y.mean())))
    for code in range(2**7):
        signs = np.array([1 - 2 * (code >> names.index(name) & 1) for name in clusters])
        reached += abs(np.sum((x - x.mean()) * signs * (y - y.mean()))) >= covariance - 1e-12
    assert cell["p"] == pytest.approx(reached / 2**7)


def test_few_clusters_and_constant_figures_say_so():
    x = np.arange(10.0)
    y = x + np.random.default_rng(0).normal(size=10)
    same = correlation(x, np.full(10, 512.0), list("aabbccddee"))
    assert np.isnan(same["r"]) and same["undefined"] == "the same value for all tasks"
    assert correlation(x[:3], y[:3], list("abc"))["undefined"] == "3 tasks; at least 4 are needed"
    two = correlation(x, y, list("aaaaabbbbb"))
    assert np.isfinite(two["r"]) and np.isnan([two["low"], two["p"]]).all() and two["undefined"] == ""
    five = correlation(x, y, list("aabbccddee"))
    assert np.isfinite(five["low"]) and np.isnan(five["p"])
    holes = correlation(np.append(x, np.nan), np.append(y, 1.0), [*"aabbccddee", "f"])
    assert holes["n_tasks"] == 10 and holes["r"] == five["r"]


def test_intervals_cover_and_tests_keep_their_level_over_clusters():
    """Tasks of a cluster share half of their variance; intervals that count tasks cover 83 % here."""
    rng = np.random.default_rng(4)
    codes = np.repeat(np.arange(12), SIZES)
    covered = significant = 0
    runs = 400
    for _ in range(runs):
        x, y = (rng.normal(size=12)[codes] + rng.normal(size=60) for _ in range(2))
        cell = correlation(x, y, list(CLUSTERS))
        covered += cell["low"] <= 0 <= cell["high"]
        significant += cell["p"] <= 0.05
    assert 0.91 < covered / runs < 0.98
    assert significant / runs < 0.09
