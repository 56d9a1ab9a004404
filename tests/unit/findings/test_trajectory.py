"""When layers settle and which models have not converged, on paths whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mossa_jax.findings.claims import Evidence
from mossa_jax.findings.trajectory import (
    FLOOR,
    convergence_summary,
    depth_trend,
    find_convergence,
    find_settling,
    loss_trend,
    settling_by_layer,
)

SHARES = (0.0, 0.125, 0.25, 0.5)


def path(values, task="a", model="control", layer="1", ceiling=np.nan, cluster="x"):
    """Returns the rows of one layer of one model."""
    return pd.DataFrame(
        {
            "task": task, "cluster": cluster, "held_out": False, "model": model, "layer": layer, "ceiling": ceiling,
            "share_of_steps": SHARES, "step": [int(80 * share) for share in SHARES], "cka": values,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "ceiling", "settled"),
    [
        ((0.2, 0.6, 0.9, 0.99), 0.85, 0.25),
        ((0.2, 0.9, 0.8, 0.99), 0.85, 0.5),  # it leaves again, so the first crossing does not count
        ((0.9, 0.9, 0.9, 0.9), 0.85, 0.0),
        ((0.2, 0.6, 0.7, 0.8), 0.85, 1.0),
        ((0.2, 0.6, 0.9, 0.96), np.nan, 0.5),  # without a ceiling the mark is 0.95
        ((1.0, 1 - 3e-8, 1.0, 1.0), 1.0, 0.0),  # the embedding, up to rounding
        ((0.2, np.nan, 0.9, 0.99), 0.85, np.nan),
    ],
)
def test_a_layer_settles_at_the_first_snapshot_from_which_it_stays(values, ceiling, settled):
    (row,) = find_settling(path(values, ceiling=ceiling).sample(frac=1, random_state=0)).to_dict("records")
    assert row["settled"] == pytest.approx(settled, nan_ok=True)
    assert row["threshold"] == (FLOOR if np.isnan(ceiling) else ceiling)
    assert row["against"] == ("fixed" if np.isnan(ceiling) else "ceiling") and row["last"] == values[-1]


def settled(shares, **columns):
    return pd.DataFrame([{"model": "control", "layer": "1", "settled": share, **columns} for share in shares])


def test_clusters_count_once_in_the_mean_and_its_interval():
    parts = [settled([0.45, 0.5, 0.4], cluster="big"), settled([0.35], cluster="b"), settled([0.4], cluster="c")]
    table = pd.concat(parts).assign(task=[f"t{number}" for number in range(5)])
    (row,) = settling_by_layer(table, "control", ["1"]).to_dict("records")
    interval = stats.t.interval(0.95, 2, loc=0.4, scale=stats.sem([0.45, 0.35, 0.4]))
    assert row["settled"] == pytest.approx(0.4) and row["tasks"] == 5
    assert (row["low"], row["high"]) == pytest.approx(interval)
    (row,) = settling_by_layer(table, "control", ["1"], left_out=["t0", "t1", "t2", "t3"]).to_dict("records")
    assert row["settled"] == pytest.approx(0.4) and row["tasks"] == 1 and np.isnan(row["low"])
    wide = pd.concat([settled([0.0], cluster="a"), settled([1.0], cluster="b"), settled([0.5], cluster="c")])
    (row,) = settling_by_layer(wide.assign(task=["a", "b", "c"]), "control", ["1"]).to_dict("records")
    assert (row["low"], row["high"]) == (0.0, 1.0)  # shares have bounds, which a t interval does not know


def test_the_trend_with_depth_has_the_sign_that_was_planted():
    rng = np.random.default_rng(0)

    def table(direction):
        rows = []
        for task in range(8):
            shares = np.sort(rng.choice([0.0625, 0.125, 0.25, 0.5], 6))[::direction]
            rows += [
                {"task": f"t{task}", "cluster": f"c{task}", "model": "control", "layer": str(at + 1), "settled": share}
                for at, share in enumerate(shares)
            ]
        return pd.DataFrame(rows)

    up, down = depth_trend(table(1), "control"), depth_trend(table(-1), "control")
    assert up["low"] > 0 and down["high"] < 0 and up["tasks"] == 8
    flat = table(1).assign(settled=0.25)
    assert depth_trend(flat, "control")["tasks"] == 0 and np.isnan(depth_trend(flat, "control")["mean"])


def test_a_falling_loss_is_seen_and_noise_and_nothing_are_not():
    steps = np.arange(10, 161, 10)
    rng = np.random.default_rng(1)
    noise = 0.02 * rng.standard_normal(len(steps))
    falling = loss_trend(steps, 2 - steps / 200 + noise, 160)
    half = steps > 80
    line = stats.linregress(steps[half], (2 - steps / 200 + noise)[half])
    assert falling["loss_falls"] and falling["loss_fall"] == pytest.approx(-40 * line.slope)
    width = stats.t.ppf(0.975, half.sum() - 2) * line.stderr * 40
    assert falling["loss_fall_low"] == pytest.approx(-40 * line.slope - width)
    assert falling["loss"] == pytest.approx(line.intercept + 160 * line.slope)
    assert not loss_trend(steps, 1 + 20 * noise, 160)["loss_falls"]
    assert not loss_trend(steps, 0.004 - steps / 1e5, 160)["loss_falls"]  # by half of it, which is nothing
    assert not loss_trend(steps, 1 + steps / 200, 160)["loss_falls"]
    few = loss_trend([100, 120, 160], [3.0, 2.0, 1.0], 160)
    assert not few["loss_falls"] and np.isnan(few["loss_fall"])


def tables():
    """Two specialists and E, three layers: `late` moves to its end in two of them, E in all on one of two tasks."""
    moving, still = (0.2, 0.3, 0.5, 0.6), (0.2, 0.9, 0.9, 0.9)
    trajectory = pd.concat(
        [
            *(path(moving if layer < 3 else still, "late", layer=str(layer), ceiling=0.8) for layer in (1, 2, 3)),
            *(path(moving if layer < 2 else still, "done", layer=str(layer), ceiling=0.8) for layer in (1, 2, 3)),
            *(path(moving, "late", "tuned", layer=str(layer), ceiling=0.8) for layer in (1, 2, 3)),
            *(path(still, "done", "tuned", layer=str(layer), ceiling=0.8) for layer in (1, 2, 3)),
            path(moving, "done", layer="embed", ceiling=0.8),
        ]
    )
    flat = loss_trend(range(0, 160, 10), [1.0] * 16, 160)
    falling = loss_trend(range(0, 160, 10), np.linspace(3, 1, 16), 160)
    models = [
        ("tuned", "tuned", flat),
        ("late", "control", flat),
        ("done", "control", flat),
        ("far", "control", falling),
    ]
    losses = pd.DataFrame(
        [{"task": task, "cluster": "x", "held_out": False, "model": model, "steps": 160, **trend}
         for task, model, trend in models]
    )  # fmt: skip
    return find_settling(trajectory), trajectory, losses


def test_models_that_still_move_or_learn_are_named_with_the_reason():
    table = find_convergence(*tables()).set_index("task")
    assert table.converged.to_dict() == {"tuned": True, "late": False, "done": True, "far": False}
    assert table.loc["late", "reason"] == "2 of 3 layers still move after 50% of the steps"
    assert table.loc["far", "reason"].startswith("the loss still falls") and table.loc["far", "layers"] == 0
    assert table.loc["tuned", ["layers", "moving"]].tolist() == [6, 3]  # half of them is not most of them


def test_findings_say_which_specialists_had_not_converged():
    table = find_convergence(*tables())
    summary = convergence_summary({"convergence": table})
    assert summary["specialists"] == 3 and summary["unconverged"] == ["late", "far"] and summary["tuned"] == ""
    assert convergence_summary({"convergence": table}, ["late", "far"])["unconverged"] == []
    assert convergence_summary({}) is None and convergence_summary(None) is None
    two = pd.concat([table, table[table.model == "tuned"].assign(task="tuned.seed1")])
    assert convergence_summary({"convergence": two})["tuned"] == ""


def test_a_qualification_changes_what_is_said_and_not_what_is_measured():
    evidence, absent = Evidence("Nearer by 0.1.", p=0.01), Evidence("No data.", is_measured=False)
    for each in (evidence, absent):
        each.qualify("One had not converged.")
        each.qualify("")
    assert evidence.sentence == "Nearer by 0.1. One had not converged." and evidence.p == 0.01
    assert not evidence.reservations and absent.sentence == "No data."
