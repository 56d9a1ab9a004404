"""The results table as matrices: pandas' own pivot says the same, and the order of the rows does not matter."""

import numpy as np
import pandas as pd
import pytest

from mossa_jax.benchmarks.planted_findings import planted_table
from mossa_jax.findings.cells import KINDS, OTHER, OWN, SEED, TWIN, cells_of, kind_of_control
from mossa_jax.findings.controls import kind_matrix
from mossa_jax.findings.curves import clusters_of, curve_rows, layer_order, task_layer_matrix


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    own = planted_table(rng.normal(0, 0.1, (6, 3)), (2, 1, 3), held_out=1)
    others = [
        own.assign(control=own["task"].map(lambda task, step=step: f"t{(int(task[1:]) + step) % 6:02}"))
        for step in (1, 2, 3)
    ]
    seeds, twins = (own.assign(control=own["task"] + suffix) for suffix in (".seed1", ".twin"))
    ends = [own[own["layer"] == "1"].assign(layer=layer) for layer in ("embed", "final_norm")]
    table = pd.concat([own, *others, seeds, twins, *ends], ignore_index=True)
    table["cka"] = rng.random(len(table))
    holes = rng.random(len(table)) < 0.1
    table.loc[holes, ["cka", "undefined"]] = [np.nan, "no variance in a"]
    return table.sample(frac=1, random_state=1)


def pivot(rows, tasks, layers):
    rows = rows[rows["undefined"] == ""]
    return rows.pivot_table(index="task", columns="layer", values="cka").reindex(index=tasks, columns=layers)


@pytest.mark.parametrize("kind", [OWN, OTHER, SEED, TWIN])
@pytest.mark.parametrize("experimental", ["pretrained", "tuned"])
def test_cells_are_the_means_over_controls_of_a_kind(table, kind, experimental):
    tasks, layers = ["t04", "t00", "absent", "t05"], ["embed", "3", "9", "final_norm"]
    kinds = [kind_of_control(control, task) for control, task in zip(table["control"], table["task"], strict=True)]
    keep = (np.array(kinds) == kind) & (table["experimental"] == experimental) & (table["estimator"] == "biased")
    expected = pivot(table[keep], tasks, layers)
    pd.testing.assert_frame_equal(
        kind_matrix(table, experimental, kind, layers, tasks, "biased"),
        expected,
        check_index_type=False,
        check_column_type=False,
        rtol=1e-14,
    )


@pytest.mark.parametrize("held_out", [False, True, None])
def test_tasks_come_by_cluster_and_layers_in_network_order(table, held_out):
    matrix = task_layer_matrix(table, "tuned", "debiased", held_out)
    tasks = {False: ["t00", "t01", "t02"], True: ["t03", "t04", "t05"]}
    assert list(matrix.index) == tasks.get(held_out, tasks[False] + tasks[True])
    assert list(matrix.columns) == layer_order(table) == ["embed", "1", "2", "3", "final_norm"]
    pd.testing.assert_frame_equal(matrix, task_layer_matrix(cells_of(table), "tuned", "debiased", held_out))


def test_an_undefined_task_keeps_its_row(table):
    table.loc[table["task"] == "t01", "undefined"] = "no variance in a"
    matrix = task_layer_matrix(table, "pretrained")
    assert "t01" in matrix.index and matrix.loc["t01"].isna().all()


def test_the_order_of_the_rows_changes_no_bit(table):
    cells, shuffled = cells_of(table), cells_of(table.sample(frac=1, random_state=7))
    assert cells.tasks == shuffled.tasks and clusters_of(cells) == clusters_of(shuffled) == clusters_of(table)
    for key, values in cells.values.items():
        np.testing.assert_array_equal(values, shuffled.values[key])
        np.testing.assert_array_equal(cells.is_present[key], shuffled.is_present[key])


def test_tasks_can_be_left_out(table):
    cells = cells_of(table).without(["t01", "t04"])
    pd.testing.assert_frame_equal(
        task_layer_matrix(cells, "tuned", held_out=None),
        task_layer_matrix(table[~table["task"].isin(["t01", "t04"])], "tuned", held_out=None),
    )
    assert not cells_of(table).without(cells_of(table).tasks).tasks


def test_controls_have_kinds():
    names = ["a", "a.seed1", "a.twin", "b", "tuned"]
    assert [kind_of_control(name, "a") for name in names] == list(KINDS)


def test_quartiles_leave_out_undefined_tasks(table):
    rows = {
        row["layer"]: row
        for row in curve_rows(table)
        if (row["experimental"], row["estimator"]) == ("tuned", "debiased")
    }
    matrix = task_layer_matrix(table, "tuned")
    for layer in matrix.columns:
        values = matrix[layer].dropna()
        expected = [values.quantile(level) for level in (0.25, 0.5, 0.75)]
        assert [rows[layer][key] for key in ("q1", "median", "q3")] == pytest.approx(expected, nan_ok=True)
        assert rows[layer]["n_tasks"] == len(values)
