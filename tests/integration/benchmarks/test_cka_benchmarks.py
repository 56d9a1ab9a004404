"""The benchmarks of CKA: each tool computes CKA, errors and verdicts follow from the values, records hold the times."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mossa_jax.benchmarks import (
    comparison_overhead,
    end_to_end,
    end_to_end_tools,
    layer_profiles,
    machine,
    measuring,
    numerical_traps,
    plain_cka,
    ready_states,
    shared_prefix,
)
from mossa_jax.benchmarks.cka_tools import Tool
from mossa_jax.benchmarks.random_models import Workload, draw_prompts
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.similarity import reference
from mossa_jax.similarity.estimators import UndefinedSimilarity


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Gives torch a single thread, because its pool and that of XLA slow each other down."""
    monkeypatch.setattr(machine, "cores", lambda: 1)


SMALL = Workload(hidden=16, layers=2, heads=2, vocab=40, prompts=12, tokens=6, batch=5, hook_batch=6, rounds=1)


@pytest.mark.slow
def test_each_tool_is_right_on_benign_states_and_the_record_is_json():
    work = ready_states.Workload(n=48, d=16, layers=2, rounds=2, batch=48, memory=False)
    record = json.loads(json.dumps(ready_states.measure(work, peak=100.0), allow_nan=False))
    present = [row for row in record["rows"] if not row["absent"]]
    assert {row["part"] for row in present} == set(ready_states.PARTS) and len(present) >= 8
    for row in present:
        assert len(row["all_seconds"]) == 2 and min(row["all_seconds"]) > 0
        assert row["ratio_lowest"] <= row["ratio"] <= row["ratio_highest"]
        # cka-pytorch adds 1e-4 inside its root, which at this scale stays below the bound.
        assert row["error"] < 1e-4, row["name"]
        assert row["share_of_peak"] == pytest.approx(row["gflop_per_s"] / 100)
    text = ready_states.table(record)
    assert all(row["name"] in text for row in record["rows"])


def test_exact_values_agree_with_the_reference():
    states = ready_states.draw_states(ready_states.Workload(n=40, d=12, layers=3))
    for name, compute in (("biased", reference.biased), ("debiased", reference.debiased)):
        expected = [[compute(x, y) for y in states[1]] for x in states[0]]
        np.testing.assert_allclose(ready_states.exact_values(states, name, True), expected, atol=1e-10)
        np.testing.assert_allclose(ready_states.exact_values(states, name, False), np.diag(expected), atol=1e-10)
        assert np.min(expected) > 0.01  # Layers share factors, so a tool that clamps at 0 is not wrong for that.


def test_the_least_work_is_that_of_the_cheaper_route():
    tall, wide = ready_states.Workload(n=1000, d=10, layers=1), ready_states.Workload(n=10, d=1000, layers=1)
    assert ready_states.least_gflop(tall, False) == pytest.approx(4 * 1000 * 10**2 / 1e9)
    assert ready_states.least_gflop(wide, False) == pytest.approx((2 * 10**2 * 1000 + 3 * 10**2) / 1e9)


def test_the_common_recipe_fails_where_it_must():
    x, y = ready_states.draw_states(ready_states.Workload(n=60, d=8, layers=1, offset=1000))[:, 0]
    assert np.abs(plain_cka.gram_float32(x, y) - reference.biased(x, y)) > 1e-3
    record = numerical_traps.measure(tools=(_tool(plain_cka.gram_float32),))
    gram = dict(zip(record["traps"], record["rows"][0]["verdicts"], strict=True))
    assert gram["offset 0 x spread"] == "P" and gram["offset 1000 x spread"] == "W"
    assert gram["scale 1e20"] == "U" and gram["a NaN row on either side"] == "U"
    assert "passed of 21" in numerical_traps.table(record)


@pytest.mark.slow
def test_ours_pass_all_traps():
    ours = {tool.name: tool for tool in numerical_traps.all_tools() if tool.name.startswith("mossa_jax")}
    rows = {row["name"]: row for row in numerical_traps.measure(tools=tuple(ours.values()))["rows"]}
    for name, row in rows.items():
        # A function of two arrays cannot report which rows it would leave out.
        expected = {"P", "R"} if name.startswith("mossa_jax cka,") else {"P"}
        assert set(row["verdicts"]) <= expected and row["verdicts"].count("R") <= 1, (name, row["verdicts"])
    assert len(rows) == 5


def _tool(function) -> Tool:
    return Tool("a function", "biased", lambda states, batch: lambda: np.array([function(*states[:, 0])]))


def _raise(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "truth", "verdict"),
    [
        (lambda: np.array([0.5 + 9e-6]), 0.5, "P"),
        (lambda: np.array([0.5 + 2e-5]), 0.5, "W"),
        (lambda: np.array([1.0]), None, "W"),
        (lambda: np.array([np.nan]), None, "P"),
        (lambda: np.array([np.nan]), 0.5, "U"),
        (_raise(UndefinedSimilarity("no variance")), None, "P"),
        (_raise(UndefinedSimilarity("no variance")), 0.5, "U"),
        (_raise(Refusal(BAD_INPUT, "not finite")), 0.5, "R"),
        (_raise(ValueError("not symmetric")), 0.5, "R"),
        (_raise(AssertionError("NaN")), 0.5, "C"),
        (_raise(AssertionError("NaN")), None, "P"),
    ],
)
def test_verdicts(run, truth, verdict):
    assert numerical_traps.judge(run, truth)[0] == verdict


def test_tools_that_are_not_installed_are_listed_with_the_way_to_install_them():
    absent = dataclasses.replace(_tool(plain_cka.gram_float32), package="no-such-distribution")
    assert absent.reason_absent() == "not installed (pip install no-such-distribution)"
    record = numerical_traps.measure(tools=(absent,))
    assert "a function: not installed" in numerical_traps.table(record)


@pytest.mark.slow
def test_all_flows_from_models_give_the_same_values():
    pytest.importorskip("torch")
    record = json.loads(json.dumps(end_to_end.measure(SMALL), allow_nan=False))
    rows = {row["name"]: row for row in record["rows"]}
    assert record["tokens_of_a_pass"] == sum(map(len, draw_prompts(SMALL)))
    for name in (
        "mossa_jax", "float32 torch, sorted, no head (by hand)", "Hugging Face loop, padded (the usual)",
        "the paper's procedure, no generation",
    ):  # fmt: skip
        assert not rows[name]["absent"], rows[name]
        errors = [error for column in rows[name]["errors"].values() for error in column]
        assert max(errors) < 1e-5, name
        assert all(len(column) == SMALL.layers + 1 for column in rows[name]["errors"].values())
    assert set(rows["mossa_jax"]["errors"]) == {"biased", "debiased"}
    assert all(row["absent"] or row["seconds"] > 0 for row in record["rows"])
    assert all(row["name"] in end_to_end.table(record) for row in record["rows"])


def test_hooks_that_a_tool_leaves_behind_are_removed():
    torch = pytest.importorskip("torch")
    model, calls = torch.nn.Linear(2, 2), []
    model.register_forward_hook(lambda *_: calls.append("own"))
    with end_to_end_tools.hooks_restored([model]):
        model.register_forward_hook(lambda *_: calls.append("left"))
        model(torch.zeros(1, 2))
    model(torch.zeros(1, 2))
    assert calls == ["own", "left", "own"]


@pytest.mark.slow
def test_a_shared_prefix_gives_the_same_states_as_repeated_ids():
    record = json.loads(json.dumps(shared_prefix.measure(SMALL)))
    assert record["difference"] < 1e-5 and [row["name"] for row in record["rows"]] == ["once", "in every prompt"]
    assert record["rows"][0]["prompts_per_s"] == pytest.approx(SMALL.prompts / record["rows"][0]["seconds"])
    assert "in every prompt" in shared_prefix.table(record)


@pytest.mark.parametrize(
    "pool",
    ["all", *(pytest.param(pool, marks=pytest.mark.slow) for pool in comparison_overhead.POOLS if pool != "all")],
)
def test_overhead_is_measured_over_the_same_prompts_both_ways(pool):
    row = comparison_overhead.measure_row(SMALL, pool, 1)
    assert row["prompts"] == SMALL.prompts and row["added_lowest"] <= row["added"] <= row["added_highest"]
    assert row["added"] == pytest.approx(row["together_seconds"] / row["forward_seconds"] - 1)
    record = {**dataclasses.asdict(SMALL), "virtual": True, "rows": [row | {"throughput": 1.0}]}
    assert pool in comparison_overhead.table(record)


@pytest.mark.slow
def test_virtual_devices_and_memory_are_measured_in_processes_of_their_own():
    record = comparison_overhead.measure(SMALL, (1, 2))
    assert [(row["pool"], row["devices"], row["prompts"]) for row in record["rows"]] == [
        (pool, count, 12 * count) for pool in comparison_overhead.POOLS for count in (1, 2)
    ]  # fmt: skip
    work = ready_states.Workload(n=64, d=16, layers=1, rounds=1)
    rows = ready_states.measure(work, 1.0)["rows"]
    assert all(row["absent"] or row["extra_peak_bytes"] is not None for row in rows)


def test_unknown_poolings_are_refused():
    with pytest.raises(Refusal, match="pools=last,first: give some of last, mean, all"):
        comparison_overhead.measure(SMALL, pools=["last", "first"])


def test_the_extra_peak_is_the_memory_that_a_call_allocates():
    extra = measuring.extra_peak_bytes(lambda: np.ones(50_000_000 // 8))
    if extra is None:
        pytest.skip("this system does not report its peak memory")
    assert 45e6 < extra < 70e6


def test_each_run_is_timed_in_each_round_and_ratios_are_round_by_round():
    order = []
    times = measuring.time_in_turns({name: lambda name=name: order.append(name) for name in "abc"}, 3, rest=0)
    assert "".join(order) == "abcbcacab" and all(len(rounds) == 3 for rounds in times.values())
    times = [measuring.Times(clock, 2 * clock) for clock in (2.0, 9.0, 4.0)]
    base = [measuring.Times(clock, 1.0) for clock in (1.0, 3.0, 4.0)]
    summary = measuring.summarize(times, base)
    ratios = (summary["ratio"], summary["ratio_lowest"], summary["ratio_highest"])
    assert summary["seconds"] == 4.0 and ratios == (2.0, 1.0, 3.0)
    assert (summary["cpu_seconds"], summary["cpu_ratio"], summary["cpu_ratio_highest"]) == (8.0, 8.0, 18.0)


def test_the_clock_and_the_cpu_are_read_before_and_after_a_run(monkeypatch):
    monkeypatch.setattr(measuring.time, "perf_counter", iter([10.0, 13.0]).__next__)
    monkeypatch.setattr(measuring.time, "process_time", iter([5.0, 5.5]).__next__)
    assert measuring.time_in_turns({"run": lambda: None}, 1, rest=0) == {"run": [measuring.Times(3.0, 0.5)]}


@pytest.mark.slow
def test_the_saved_record_is_the_one_that_is_printed(tmp_path, root):
    out = tmp_path / "record.json"
    done = subprocess.run(
        [sys.executable, "-m", "launch.bench_cka", "--parts=states", "--n=16", "--d=4", "--layers=1", "--rounds=1",
         "--nomemory", "--batch=16", f"--out={out}"],
        cwd=root, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["gflop_per_s_peak"]["best"] > 0 and record["versions"]["jax"] and record["load_before"] >= 0
    assert ready_states.table(record["states"]) in done.stdout
    assert set(record) & {"states", "traps", "models", "prefix", "overhead"} == {"states"}


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (ready_states.Workload(n=3), "n is 3"),
        (ready_states.Workload(rounds=0), "rounds is 0"),
        (Workload(prompts=3), "prompts is 3"),
        (Workload(hidden=30, heads=4), "hidden is 30"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(work, words):
    with pytest.raises(Refusal, match=words) as caught:
        work.check()
    assert caught.value.code == 2


def test_a_layer_profile_and_plain_passes_give_the_same_log_probabilities():
    record = json.loads(json.dumps(layer_profiles.measure(dataclasses.replace(SMALL, tokens=12, layers=3))))
    assert record["variants"] == 17 and record["passes"] == pytest.approx(29 / 3) and record["difference"] < 1e-5
    assert [row["name"] for row in record["rows"]] == ["profile", "plain passes"]
    assert all(row["name"] in layer_profiles.table(record) for row in record["rows"])
