"""How well clusters and templates are told apart: planted clusters, tasks, templates, items, and nothing at all."""

import numpy as np
import pandas as pd
import pytest

from mossa_jax.findings.separation import CLUSTER, ITEM, NEIGHBOURS, PROBE, TASK, TEMPLATE, Sample, separation_rows

TASKS, PROMPTS, WIDTH = 16, 12, 24
CLUSTERS = np.repeat([f"cluster{i}" for i in range(6)], [4, 3, 3, 2, 2, 2])


def planted(cluster=0.0, task=0.0, template=0.0, item=0.0, seed=0):
    """Rows [192, 24] of 16 tasks in 6 clusters, with 3 templates; pairs of rows are of one item. Noise has size 1."""
    rng = np.random.default_rng(seed)
    of_cluster = {name: cluster * rng.normal(size=WIDTH) for name in np.unique(CLUSTERS)}
    points, tasks, clusters, templates, items = [], [], [], [], []
    for number, name in enumerate(CLUSTERS):
        own_templates = rng.permutation(np.arange(PROMPTS) % 3)
        own_items = np.arange(PROMPTS) // 2
        rows = of_cluster[name] + task * rng.normal(size=WIDTH) + rng.normal(size=(PROMPTS, WIDTH))
        rows += template * rng.normal(size=(3, WIDTH))[own_templates]
        rows += item * rng.normal(size=(PROMPTS // 2, WIDTH))[own_items]
        points.append(rows)
        tasks += [f"task{number}"] * PROMPTS
        clusters += [name] * PROMPTS
        templates += list(own_templates)
        items += list(own_items)
    return np.concatenate(points), Sample(*(np.array(column) for column in (tasks, clusters, templates, items)))


def measure(points, sample):
    return {(row["label"], row["left_out"], row["method"]): row for row in separation_rows(points, sample, seed=0)}


@pytest.mark.parametrize("method", [NEIGHBOURS, PROBE])
def test_clusters_are_recognised_across_tasks(method):
    rows = measure(*planted(cluster=2.0))
    for left_out in (ITEM, TASK):
        row = rows[CLUSTER, left_out, method]
        assert row["value"] > 0.9 and row["units"] == 6 and row["low"] <= row["value"] <= row["high"] <= 1
    assert rows[CLUSTER, TASK, method]["p"] == pytest.approx(1 / 51)
    assert rows[CLUSTER, ITEM, method]["chance"] == pytest.approx(1 / 6)
    assert 0.03 < rows[CLUSTER, TASK, method]["chance"] < 0.3


def test_clusters_of_unrelated_tasks_are_recognised_by_their_tasks_alone():
    runs = [measure(*planted(task=2.0, seed=seed)) for seed in range(20)]
    for method in (NEIGHBOURS, PROBE):
        assert np.mean([run[CLUSTER, ITEM, method]["value"] for run in runs]) > 0.9
        across = [run[CLUSTER, TASK, method] for run in runs]
        value, chance = (np.mean([row[name] for row in across]) for name in ("value", "chance"))
        assert abs(value - chance) < 0.06
        assert np.mean([row["p"] <= 0.1 for row in across]) <= 0.25


@pytest.mark.parametrize("method", [NEIGHBOURS, PROBE])
def test_templates_are_recognised_within_tasks(method):
    plain, marked = measure(*planted(task=2.0)), measure(*planted(task=2.0, template=2.0))
    assert marked[TEMPLATE, ITEM, method]["value"] > 0.9
    assert marked[TEMPLATE, ITEM, method]["p"] == pytest.approx(1 / 51)
    assert marked[TEMPLATE, ITEM, method]["chance"] == pytest.approx(1 / 3, abs=0.1)
    assert plain[TEMPLATE, ITEM, method]["value"] == pytest.approx(1 / 3, abs=0.12)


def test_rows_of_one_item_do_not_recognise_each_other():
    points, sample = planted(item=4.0)
    # Both rows of an item have one template, so that it would give the template away.
    sample = Sample(sample.tasks, sample.clusters, sample.items % 3, sample.items)
    assert measure(points, sample)[TEMPLATE, ITEM, NEIGHBOURS]["value"] < 0.5
    alone = Sample(sample.tasks, sample.clusters, sample.templates, np.tile(np.arange(PROMPTS), TASKS))
    assert measure(points, alone)[TEMPLATE, ITEM, NEIGHBOURS]["value"] > 0.9


def test_each_cluster_counts_once():
    points, sample = planted(cluster=2.0)
    # The largest cluster loses its mark: a third of its rows would weigh on the mean if rows counted.
    largest = sample.clusters == "cluster0"
    points[largest] = 40 * np.random.default_rng(1).normal(size=(largest.sum(), WIDTH))
    value = measure(points, sample)[CLUSTER, ITEM, NEIGHBOURS]["value"]
    assert 5 / 6 - 0.05 < value < 5 / 6 + 0.1


def test_a_cluster_of_one_task_does_not_count_once_its_task_is_left_out():
    points, sample = planted(cluster=2.0)
    rows = sample.tasks != "task15"
    assert measure(points[rows], sample.take(rows))[CLUSTER, TASK, NEIGHBOURS]["units"] == 5
    assert measure(points[rows], sample.take(rows))[CLUSTER, ITEM, NEIGHBOURS]["units"] == 6


def test_rows_that_are_not_finite_are_left_out():
    points, sample = planted(cluster=2.0)
    spoilt = points.copy()
    spoilt[[3, 50]] = np.nan
    keep = np.isfinite(spoilt).all(1)
    rows, expected = separation_rows(spoilt, sample, 0), separation_rows(points[keep], sample.take(keep), 0)
    pd.testing.assert_frame_equal(pd.DataFrame(rows), pd.DataFrame(expected), check_exact=True)


def test_states_without_variance_and_suites_without_clusters_have_no_accuracy():
    points, sample = planted()
    for row in separation_rows(np.full_like(points, 3.0), sample, 0):
        assert np.isnan([row["value"], row["low"], row["chance"], row["p"]]).all() and row["units"] == 0
    without = Sample(sample.tasks, np.full(len(points), ""), np.full(len(points), -1), sample.items)
    assert all(np.isnan(row["value"]) for row in separation_rows(points, without, 0))
