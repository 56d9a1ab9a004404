"""The benchmark measures what it says: every contestant computes CKA of the drawn states."""

import json

import numpy as np
import pytest

from mossa_jax.rundir import Refusal
from mossa_jax.similarity import benchmark, reference


def test_record_is_json_and_every_contestant_is_right_on_benign_data():
    work = benchmark.Workload(n=48, d=16, layers=2, rounds=2)
    record = json.loads(json.dumps(benchmark.measure(work)))
    assert record["n"] == 48 and record["rows"][0]["ratio"] == 1
    assert len(record["rows"]) >= 5
    for row in record["rows"]:
        assert len(row["all_seconds"]) == 2 and min(row["all_seconds"]) > 0
        assert row["error"] < 1e-4, row["name"]
    assert all(row["name"] in benchmark.table(record) for row in record["rows"])


def test_oracles_agree_with_the_reference_and_the_common_recipe_fails_under_an_offset():
    x, y = benchmark.draw(benchmark.Workload(n=60, d=8, layers=1, offset=1000))[:, 0]
    assert benchmark.feature_float64(x, y) == pytest.approx(reference.biased(x, y), abs=1e-9)
    assert benchmark.debiased_float64(x, y) == pytest.approx(reference.debiased(x, y), abs=1e-9)
    assert np.abs(benchmark.gram_float32(x, y) - reference.biased(x, y)) > 1e-3


def test_sizes_that_cannot_be_measured_are_refused():
    with pytest.raises(Refusal, match="n is 3") as raised:
        benchmark.measure(benchmark.Workload(n=3))
    assert raised.value.code == 2
