"""Several runs: differences of cells and of means against float64 by hand, planted truths, and runs that do not fit."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mossa_jax.findings.between_runs import UPPER_HALF, compare_runs, mean_differences
from mossa_jax.findings.cell_differences import cell_differences
from mossa_jax.findings.run_sizes import RUN_SEEDS, RUNS, SPECIALIST_SEEDS, differ_in_seed_alone
from mossa_jax.findings.run_tables import QUANTITIES
from tests.support.planted_runs import UNITS, planted_run, truth


@pytest.fixture(scope="module")
def runs():
    rng = np.random.default_rng(0)
    return [
        planted_run("a", rng, truth(12, 4), rank=8),
        planted_run("b", rng, truth(12, 4, 0.1), rank=16),
        planted_run("c", rng, truth(12, 4), prompts="others", rank=8, seed=1),
    ]


def pick(cells, **values):
    """The one row with these values."""
    keep = np.logical_and.reduce([cells[name] == value for name, value in values.items()])
    (row,) = cells[keep].to_dict("records")
    return row


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_cell_has_the_interval_and_p_of_rows_and_seeds_by_hand(runs, quantity):
    a, b = runs[:2]
    row = pick(cell_differences(a, b), quantity=quantity, task="t03", layer="2", estimator="debiased")
    values, variances, freedoms = [], [], []
    for run in (a, b):
        table = run.table[(run.table.estimator == "debiased") & (run.table.layer == "2")]
        wide = table.pivot_table(index=["task", "control"], columns="experimental", values="cka")
        wide["change"] = wide["tuned"] - wide["pretrained"]
        own = wide.xs("t03", level="control")[quantity].item()
        # Between two seeds, s^2 is half the squared difference; it is pooled over the twelve tasks.
        first = wide[quantity].to_numpy()[::2]
        second = wide[quantity].to_numpy()[1::2]
        values.append(own)
        variances += [0.02**2 * (2 if quantity == "change" else 1), np.mean((first - second) ** 2 / 2)]
        freedoms += [UNITS - 1, 12]
    difference, error = values[1] - values[0], np.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    half = stats.t.ppf(0.975, freedom) * error
    assert row["difference"] == pytest.approx(difference, abs=1e-12)
    assert [row["low"], row["high"]] == pytest.approx([difference - half, difference + half], abs=1e-12)
    assert row["p"] == pytest.approx(2 * stats.t.sf(abs(difference) / error, freedom), rel=1e-9)
    assert row["reference_value"] == values[0] and row["value"] == values[1] and row["same_prompts"]


def test_q_is_benjamini_and_hochbergs_over_the_blocks_of_a_quantity(runs):
    cells = cell_differences(*runs[:2])
    rows = cells[(cells.quantity == "tuned") & (cells.estimator == "biased")]
    assert np.allclose(rows.q, stats.false_discovery_control(rows.p)) and (rows.q >= rows.p).all()


def test_a_mean_over_tasks_is_that_of_clusters_by_hand(runs):
    a, b = runs[:2]
    means = mean_differences(a, b, sorted(a.prompts))
    row = pick(means, quantity="change", estimator="debiased", layers=UPPER_HALF)
    change = [run.change[run.change.estimator == "debiased"].set_index(["task", "layer"]).change for run in (a, b)]
    tasks = (change[1] - change[0]).unstack()[["3", "4"]].mean(axis=1)
    units = tasks.groupby(np.arange(12) // 2).mean()  # two tasks per cluster
    half = stats.t.ppf(0.975, 5) * units.std(ddof=1) / np.sqrt(6)
    wanted = [units.mean(), units.mean() - half, units.mean() + half]
    assert [row["mean"], row["low"], row["high"]] == pytest.approx(wanted, abs=1e-12)
    # All 2^6 sign flips: no other mean is as far from zero as that of six clusters which all rise.
    assert row["p"] == 2 / 64 and row["n_units"] == 6 and row["n_tasks"] == 12
    single = pick(means, quantity="change", estimator="debiased", layers="3")
    assert np.isnan(single["p"]) and single["low"] < single["mean"] < single["high"]


def test_the_same_run_twice_differs_nowhere_and_says_so(runs):
    a = runs[0]
    comparison = compare_runs([a, replace(a, name="again")])
    cells = comparison.cells
    assert (cells[["difference", "low", "high"]] == 0).all(axis=None) and cells[["p", "q"]].isna().all(axis=None)
    assert (comparison.means[["mean", "low", "high"]] == 0).all(axis=None)
    assert (comparison.sizes[comparison.sizes.kind == RUNS].mean_absolute == 0).all()
    assert comparison.sentences == [
        "a and again differ by 0.000 in the change (mean absolute over 12 tasks and 4 layers): no cell differs."
    ]
    assert any("equal in every cell" in note for note in comparison.notes)


def test_sizes_are_mean_absolute_differences_of_runs_and_of_seeds(runs):
    a, b, c = runs
    comparison = compare_runs(runs)
    sizes = comparison.sizes[comparison.sizes.estimator == "debiased"]
    cells = comparison.cells[(comparison.cells.estimator == "debiased") & (comparison.cells.quantity == "change")]
    for run in (b, c):
        row = pick(sizes, kind=RUNS, second=run.name, quantity="change")
        assert row["mean_absolute"] == pytest.approx(cells[cells.run == run.name].difference.abs().mean(), abs=1e-12)
    wide = a.table[a.table.estimator == "debiased"].pivot_table(
        index=["task", "layer", "control"], columns="experimental", values="cka"
    )
    change = (wide.tuned - wide.pretrained).unstack("layer").to_numpy()
    wanted = np.abs(change[::2] - change[1::2]).mean()
    assert pick(sizes, kind=SPECIALIST_SEEDS, first="a", quantity="change")["mean_absolute"] == pytest.approx(wanted)
    # c is a with another seed; b has another rank.
    assert {(row.first, row.second) for row in sizes[sizes.kind == RUN_SEEDS].itertuples()} == {("a", "c")}
    noise = pick(sizes, kind=RUN_SEEDS, quantity="change")["mean_absolute"]
    first, second = comparison.sentences
    assert f"alone (a and c, with other test prompts) by {noise:.3f}" in first and "times what seeds alone" in first
    assert second.endswith("They differ in their seed alone: this is the noise that other differences have to exceed.")


@pytest.mark.parametrize(
    ("other", "answer"),
    [
        ({"seed": 1}, True),
        ({"seed": 1, "mesh.fsdp": 8, "name": "again"}, True),
        ({"seed": 1, "tuning.rank": 16}, False),
        ({}, False),
    ],
)
def test_only_runs_with_the_same_settings_are_seeds_of_one_another(other, answer):
    first = {"seed": 0, "mesh.fsdp": 1, "name": "run", "tuning.rank": 8}
    assert differ_in_seed_alone(first, first | other, free=("mesh", "name")) is answer


def test_seeds_that_one_run_lacks_spread_as_the_others(runs):
    a, _, _ = runs
    rng = np.random.default_rng(3)
    bare = planted_run("bare", rng, truth(12, 4), control_seeds=1)
    row = pick(cell_differences(a, bare), quantity="tuned", task="t05", layer="1", estimator="debiased")
    seeds = a.table[(a.table.layer == "1") & (a.table.experimental == "tuned") & (a.table.control == "t05")]
    seed = seeds.error_seeds.iloc[0] ** 2
    parts = [(2 * seed, 12), (0.02**2, UNITS - 1), (0.02**2, UNITS - 1)]
    variance = sum(v for v, _ in parts)
    half = stats.t.ppf(0.975, variance**2 / sum(v**2 / f for v, f in parts)) * np.sqrt(variance)
    assert row["high"] - row["difference"] == pytest.approx(half, abs=1e-12)
    assert any("only a has second seeds" in note for note in compare_runs([a, bare]).notes)
    other = planted_run("other", rng, truth(12, 4), control_seeds=1)
    assert any("no specialist has a second seed" in note for note in compare_runs([bare, other]).notes)


def test_streamed_sums_give_differences_without_intervals(runs):
    a, b = runs[:2]
    bare = replace(b, table=b.table.assign(error_rows=np.nan), change=b.change.assign(error_rows=np.nan))
    comparison = compare_runs([a, bare])
    assert comparison.cells.difference.notna().all() and comparison.cells.low.isna().all()
    assert any("no intervals of cells" in note for note in comparison.notes)


def test_runs_of_other_depths_have_curves_and_means_but_no_cells(runs):
    deep = planted_run("deep", np.random.default_rng(5), truth(12, 9))
    comparison = compare_runs([runs[0], deep])
    assert comparison.cells.empty and not comparison.sentences
    assert any("4 and 9 layers, so no cells are compared" in note for note in comparison.notes)
    assert set(comparison.means.layers) == {UPPER_HALF} and comparison.means["mean"].notna().all()
    curve = comparison.curves[comparison.curves.run == "deep"]
    change = deep.change[deep.change.estimator == "debiased"]
    for layer in ("1", "9"):
        row = pick(curve, layer=layer)
        values = change[change.layer == layer].change
        assert row["relative_depth"] == pytest.approx(int(layer) / 9)
        quartiles = np.quantile(values, [0.25, 0.5, 0.75])
        assert [row["q1"], row["median"], row["q3"]] == pytest.approx(quartiles, abs=1e-12)


def renamed(run, name):
    """A run of other tasks."""
    table = run.table.assign(task="x" + run.table.task, control="x" + run.table.control)
    return replace(run, name=name, table=table, change=run.change.assign(task="x" + run.change.task), prompts={})


def test_runs_without_a_common_task_are_said_to_be_so(runs):
    comparison = compare_runs([runs[0], renamed(runs[1], "other")])
    assert comparison.tasks == [] and comparison.cells.empty and comparison.means.empty
    assert any("No task is in all of these runs" in note for note in comparison.notes)
    # Each curve is over its own run's tasks.
    assert (comparison.curves.n_tasks == 12).all() and comparison.curves["median"].notna().all()


def with_incompetent(run, names):
    return replace(run, analysis=dict(run.analysis) | {"competence": {"incompetent": list(names)}})


def test_means_rest_on_tasks_that_are_competent_in_all_runs(runs):
    a, b = with_incompetent(runs[0], ["t00"]), with_incompetent(runs[1], ["t07"])
    comparison = compare_runs([a, b])
    assert len(comparison.tasks) == 10 and not {"t00", "t07"} & set(comparison.tasks)
    assert (comparison.curves.n_tasks == 10).all() and (comparison.means.n_tasks == 10).all()
    assert set(comparison.cells.task) >= {"t00", "t07"}
    assert any("t00, t07" in note for note in comparison.notes)
    # Without any, all tasks are shown, and the reader is told.
    none = compare_runs([with_incompetent(run, run.prompts) for run in runs[:2]])
    assert len(none.tasks) == 12 and "In no shared task" in none.notes[0]


def test_a_held_out_task_is_in_the_cells_alone(runs):
    a, b = runs[:2]
    held = replace(b, table=b.table.assign(held_out=b.table.task == "t04"))
    held = replace(held, change=b.change.assign(held_out=b.change.task == "t04"))
    comparison = compare_runs([a, held])
    assert "t04" not in comparison.tasks and "t04" in set(comparison.cells.task)
    assert comparison.cells.difference.notna().all()
    assert any("1 task held out" in note and "t04" in note for note in comparison.notes)


def test_prompts_are_the_same_only_where_both_runs_say_so(runs):
    a, b, c = runs
    mixed = replace(b, prompts=dict(b.prompts) | {"t02": "others"})
    cells = cell_differences(a, mixed)
    assert set(cells[~cells.same_prompts].task) == {"t02"}
    assert not cell_differences(a, c).same_prompts.any()
    notes = compare_runs([a, mixed]).notes
    assert any("other test prompts in t02" in note for note in notes) and any("wider than need be" in n for n in notes)


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    """Rows that two runs share make intervals too wide, never too narrow; means over clusters are right either way."""
    means = [truth(12, 3), truth(12, 3, 0.05)]
    inside, of_means = {True: [], False: []}, {True: [], False: []}
    for draw in range(8):
        rng = np.random.default_rng((7, draw))
        for same in (True, False):
            shared = {model: rng.normal(size=(12, 3)) for model in means[0]} if same else None
            a, b = (planted_run(n, rng, m, shared=shared) for n, m in zip("ab", means, strict=True))
            for covered, rows in (
                (inside, cell_differences(a, b)),
                (of_means, mean_differences(a, b, sorted(a.prompts))),
            ):
                wanted = np.where(rows.quantity == "pretrained", 0.0, 0.05)
                covered[same] += ((rows.low <= wanted) & (wanted <= rows.high)).tolist()
    # 1,728 cells each, half of which repeat the other estimator's; 192 means.
    assert 0.93 < np.mean(inside[False]) < 0.97
    assert np.mean(inside[True]) > np.mean(inside[False]) + 0.005
    assert all(0.90 < np.mean(covered) < 0.99 for covered in of_means.values())


def test_an_undefined_cell_has_no_difference_and_stops_no_other(runs):
    a, b = runs[:2]
    table = b.table.copy()
    gone = (table.task == "t01") & (table.layer == "2")
    table.loc[gone, ["cka", "error_rows"]] = np.nan
    table.loc[gone, "undefined"] = "no variance"
    change = b.change.copy()
    change.loc[(change.task == "t01") & (change.layer == "2"), "change"] = np.nan
    cells = cell_differences(a, replace(b, table=table, change=change))
    is_gone = (cells.task == "t01") & (cells.layer == "2")
    assert cells[is_gone][["difference", "low", "p", "q"]].isna().all(axis=None)
    assert cells[~is_gone][["difference", "low", "p", "q"]].notna().all(axis=None)
    assert isinstance(compare_runs([a, replace(b, table=table, change=change)]).curves, pd.DataFrame)
