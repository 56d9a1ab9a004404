"""The panel of measures in a run: its subset, its budget, and values that are those of the comparison."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.run.analyse import ANALYSES, analyse
from mossa_jax.run.analyse.measures import spread_over_items
from mossa_jax.run.analyse.measures_subset import choose_subset, comparison_operations, subset_operations
from mossa_jax.run.compare import compare
from mossa_jax.similarity.measures.panel import PANEL, VARIANTS
from tests.integration.run.test_analyses import PROMPTS, open_run, tuned_config  # noqa: F401


@pytest.fixture(scope="module")
def run(tuned_config, tmp_path_factory):  # noqa: F811
    """A run whose panel looks at every task, prompt and layer, and which makes no other analysis."""
    config = tuned_config
    before = dataclasses.replace(config.analyse)
    for analysis in ANALYSES:
        setattr(config.analyse, analysis.name, analysis.name == "measures")
    config.analyse.measures_tasks, config.analyse.measures_share = ("all",), 0.0
    run = open_run(config, tmp_path_factory.mktemp("measures") / "run")
    compare(run)
    analyse(run)
    run.folder.close()
    yield run
    config.analyse = before


def table(run, name):
    return pd.read_parquet(run.folder / f"results/{name}.parquet")


def test_the_table_has_every_measure_variant_and_pair(run):
    measures = table(run, "measures")
    layers = {str(layer) for layer in range(1, run.architecture.layers + 1)}
    assert set(measures.layer) == layers and set(measures.task) == {task.name for task in run.suite.tasks}
    assert set(measures[["measure", "variant"]].itertuples(index=False, name=None)) == {
        (measure, variant) for measure in PANEL for variant in VARIANTS
    }
    assert set(measures[measures.pool == "mean"].variant) == {"raw"}
    seeded = measures[measures.task == "task0"]
    assert {(row.experimental, row.control) for row in seeded.itertuples()} == {
        ("pretrained", "task0"),
        ("tuned", "task0"),
        ("tuned", "task0.twin"),
        ("control", "task0.seed1"),
    }
    assert not measures.duplicated(["task", "experimental", "control", "layer", "measure", "variant", "pool"]).any()


def test_its_linear_similarities_are_those_of_the_comparison(run):
    measures, cka = table(run, "measures"), table(run, "cka")
    own = measures[(measures.variant == "raw") & (measures.pool == "last") & measures.measure.str.startswith("cka_")]
    own = own.assign(estimator=own.measure.str.removeprefix("cka_"))
    both = own.merge(cka, on=["task", "experimental", "control", "layer", "estimator"])
    assert len(both) == len(own) and both.cka.notna().any()
    np.testing.assert_allclose(both["value"], both["cka"], atol=1e-5)


def test_the_other_pooling_is_that_of_a_comparison_with_it(run, tuned_config, tmp_path):  # noqa: F811
    tuned_config.compare.pool = "mean"
    try:
        other = open_run(tuned_config, tmp_path / "run")
        compare(other)
        other.folder.close()
    finally:
        tuned_config.compare.pool = "last"
    measures = table(run, "measures")
    own = measures[(measures.pool == "mean") & (measures.measure == "cka_debiased")]
    cka = table(other, "cka")
    both = own.merge(cka[cka.estimator == "debiased"], on=["task", "experimental", "control", "layer"])
    assert len(both) == len(own)
    np.testing.assert_allclose(both["value"], both["cka"], atol=1e-4)


def test_the_budget_reduces_the_subset_and_follows_from_sizes_alone(run):
    config = run.config.analyse
    assert choose_subset(run).prompts == PROMPTS and len(choose_subset(run).layers) == run.architecture.layers
    whole = choose_subset(run).share
    assert whole == subset_operations(run, PROMPTS, run.architecture.layers) / comparison_operations(run)
    try:
        config.measures_share = 2 * whole
        assert choose_subset(run).share == whole
        config.measures_share = 1e-9
        least = choose_subset(run)
        assert least.share <= whole and least == choose_subset(run)
        config.measures_layers = 2
        assert choose_subset(run).layers == (1, run.architecture.layers)
        config.measures_tasks = ("nothing",)
        with pytest.raises(Refusal, match="measures_tasks"):
            choose_subset(run)
    finally:
        config.measures_share, config.measures_layers, config.measures_tasks = 0.0, 8, ("all",)


def test_related_rows_come_last():
    items = np.array([3, 3, 1, 3, 2, 1])
    np.testing.assert_array_equal(spread_over_items(items), [0, 2, 4, 1, 5, 3])
