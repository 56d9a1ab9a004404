"""Errors over rows and seeds, and the table of changes, on tables whose figures are known."""

import numpy as np
import pandas as pd
import pytest

from mossa_jax.run.change import change_table
from mossa_jax.run.noise import add_errors, combine, is_own
from mossa_jax.similarity.intervals import confidence_interval


def cells(seed=0, tasks=12, layers=40, row=0.02, between=0.05):
    """A table of tasks whose controls differ by seed; two seeds of each task with an even number."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(tasks):
        for layer in range(layers):
            for control in (f"t{number}", f"t{number}.seed1")[: 2 - number % 2]:
                for experimental, level in (("pretrained", 0.3), ("tuned", 0.5)):
                    cka = level + rng.normal(0, between)
                    rows.append((experimental, control, f"t{number}", str(layer), cka))
            if number % 2 == 0:
                rows.append(("control", f"t{number}.seed1", f"t{number}", str(layer), 0.8))
    table = pd.DataFrame(rows, columns=["experimental", "control", "task", "layer", "cka"])
    low, high = confidence_interval(table.cka.to_numpy(), np.full(len(table), row), 100)
    table = table.assign(low=low, high=high, units=100, error_rows=row)
    return table.assign(estimator="debiased", cluster="c", held_out=False, change_error=row)


def test_the_error_between_seeds_is_that_of_the_seeds_and_a_repetition_lies_in_the_interval():
    table = add_errors(cells())
    own = table[is_own(table) & (table.experimental == "tuned")]
    assert own.error_seeds.mean() == pytest.approx(0.05, rel=0.1)
    assert table[table.experimental == "control"].error_seeds.isna().all()
    assert share_of_seeds_inside(table) >= 0.9 > 0.6 > share_of_seeds_inside(cells())  # over rows alone


def share_of_seeds_inside(table):
    """How often the value with the second seed lies in the interval of the first one."""
    own = table[is_own(table) & (table.experimental == "tuned")]
    wide = own.assign(seed=own.control.str.endswith("seed1")).pivot(
        index=["task", "layer"], columns="seed", values=["cka", "low", "high"]
    )
    wide = wide.dropna()
    return ((wide["cka"][True] >= wide["low"][False]) & (wide["cka"][True] <= wide["high"][False])).mean()


def test_without_seeds_the_intervals_are_those_over_rows():
    table = cells()
    alone = table[table.control == table.task].reset_index(drop=True)
    after = add_errors(alone)
    assert after.error_seeds.isna().all()
    pd.testing.assert_frame_equal(after[alone.columns], alone)


def test_degrees_of_freedom_lie_between_those_of_the_parts():
    error, freedom = combine(*(np.asarray([x]) for x in (0.02, 99.0, 0.05, 6.0)), shares=2)
    assert error[0] == pytest.approx(np.sqrt(0.02**2 + 2 * 0.05**2)) and 6 <= freedom[0] < 105
    error, freedom = combine(*(np.asarray([x]) for x in (0.02, 99.0, np.nan, np.nan)), shares=2)
    assert error[0] == pytest.approx(0.02) and freedom[0] == pytest.approx(99)


def test_changes_are_tested_and_measured_by_the_ceiling():
    table = add_errors(cells(between=0.01))
    scores = pd.DataFrame({"task": ["t0", "t1"], "model": "control", "metric": "information", "low": [0.2, -0.1]})
    scores = scores.assign(value=scores.low + 0.1, high=scores.low + 0.2)
    change = change_table(table, scores, untouched=["0"])
    assert len(change) == 12 * 40 and change.change.mean() == pytest.approx(0.2, abs=0.01)
    assert change.share_of_ceiling.to_numpy() == pytest.approx((change.change / 0.8).to_numpy())
    tested = change[change.layer != "0"]
    assert change.q[change.layer == "0"].isna().all() and (tested.q < 0.05).all() and (tested.q >= tested.p).all()
    assert change.groupby("task").competent.first().loc[["t0", "t1"]].tolist() == [True, False]
    assert change.competent[change.task == "t2"].isna().all()
    null = pd.concat([cells(seed, tasks=20) for seed in range(1, 4)], keys=range(3), names=["run"]).reset_index("run")
    null["cka"] = np.where(null.experimental == "tuned", null.cka - 0.2, null.cka)
    p = np.concatenate([change_table(add_errors(run), pd.DataFrame()).p for _, run in null.groupby("run")])
    assert 0.02 < (p < 0.05).mean() < 0.06  # errors of rows are added in these tables, but make no noise
