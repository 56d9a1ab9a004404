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
    end_to_end_by_hand,
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
from mossa_jax.benchmarks.random_models import PRESETS, Workload, draw_prompts, write_models
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.similarity import reference
from mossa_jax.similarity.estimators import UndefinedSimilarity


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Gives torch a single thread, because its pool and that of XLA slow each other down."""
    monkeypatch.setattr(machine, "cores", lambda: 1)


SMALL = Workload(
    hidden=16, layers=2, heads=2, vocab=40, prompts=12, tokens=6, batch=5, hook_batch=6, rounds=1, new_tokens=3
)  # fmt: skip
SHARED = dataclasses.replace(SMALL, shared=9, kv_heads=1, feed_forward=24)


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


PAPER, GENERATING = "the paper's procedure, no generation", "the paper's procedure, with generation"
KEPT = "the same, shared keys and values kept"


@pytest.mark.slow
@pytest.mark.parametrize("work", [SMALL, SHARED], ids=["nothing shared", "shared ids"])
def test_all_flows_from_models_give_the_same_values(work):
    pytest.importorskip("torch")
    record = json.loads(json.dumps(end_to_end.measure(work), allow_nan=False))
    rows = {row["name"]: row for row in record["rows"]}
    prompts = draw_prompts(work)
    assert record["tokens_of_a_pass"] == sum(map(len, prompts))
    assert (KEPT in rows) == bool(work.shared)
    for name in (
        "mossa_jax", "float32 torch, sorted, no head (by hand)", *([KEPT] if work.shared else []),
        "Hugging Face loop, padded (the usual)", PAPER, GENERATING,
    ):  # fmt: skip
        assert not rows[name]["absent"], rows[name]
        errors = [error for column in rows[name]["errors"].values() for error in column]
        assert max(errors) < 1e-5, name
        assert all(len(column) == SMALL.layers + 1 for column in rows[name]["errors"].values())
    assert set(rows["mossa_jax"]["errors"]) == {"biased", "debiased"}
    assert all(row["absent"] or row["seconds"] > 0 for row in record["rows"])
    table = end_to_end.table(record)
    assert all(row["name"] in table for row in record["rows"])

    # Answers to two of twelve prompts count six times.
    scaled = [seconds + 6 * record["generation_seconds"] for seconds in rows[PAPER]["all_seconds"]]
    assert rows[GENERATING]["all_seconds"] == pytest.approx(scaled)
    assert [row["name"] for row in record["rows"] if row.get("extrapolated")] == [GENERATING]
    assert [line.split("  ")[0] for line in table.splitlines() if line.endswith("extrapolated")] == [GENERATING]
    assert "3 tokens from each of both models, timed once on the first 2 of 12 prompts" in table

    own = [len(ids) - work.shared for ids in prompts]
    assert record["own_tokens"] == [min(own), max(own)]
    # All prompts begin with BOS, which is a sixth of the ids of such short ones.
    assert record["shared_by_ours"] == (work.shared or 1)
    once = " (ours runs 9 of them once)" if work.shared else ""
    assert f"12 prompts of {work.shared} shared ids{once} and {min(own)} to {max(own)} own ids" in table
    sizes = (record["shared"], record["generated"], record["new_tokens"], record["kv_heads"], record["feed_forward"])
    assert sizes == ((9, 2, 3, 1, 24) if work.shared else (0, 2, 3, 2, 48))


def test_shared_ids_stand_at_the_head_of_every_prompt():
    prompts = draw_prompts(SHARED)
    assert prompts[0][0] == 1 and all(ids[:9] == prompts[0][:9] for ids in prompts)
    assert len({tuple(ids[9:]) for ids in prompts}) == 12
    lengths = {len(ids) - 9 for ids in prompts}
    assert min(lengths) >= 3 and max(lengths) <= 9 and len(lengths) > 1
    # Without shared ids BOS alone is the same.
    assert {ids[0] for ids in draw_prompts(SMALL)} == {1} and len({ids[1] for ids in draw_prompts(SMALL)}) > 1


@pytest.fixture(scope="module")
def torch_models(tmp_path_factory):
    """Returns two random models of `SHARED`."""
    pytest.importorskip("torch")
    return end_to_end._torch_models(write_models(SHARED, str(tmp_path_factory.mktemp("models"))))


def test_kept_keys_and_values_stand_for_the_shared_ids(torch_models):
    prompts = draw_prompts(SHARED)
    exact = end_to_end_by_hand.exact_values(torch_models, prompts)["biased"]
    # Batches of 1 are not padded; those of 5 are, and the last one is smaller.
    for batch in (1, 5):
        values = end_to_end_by_hand.kept_prefix_flow(torch_models, prompts, batch, SHARED.shared)["biased"]
        np.testing.assert_allclose(values, exact, atol=1e-5)
    own = [ids[SHARED.shared :] for ids in prompts]
    without = end_to_end_by_hand.best_flow(torch_models, own, 5)["biased"]
    assert np.abs(without - exact).max() > 1e-3


def test_every_answer_has_its_full_length(torch_models, monkeypatch):
    lengths, hooks = [], []

    def prefer_eos(module, inputs, logits):
        logits[..., 2] = 100.0
        return logits

    for model in torch_models:

        def record(ids, model=model, **settings):
            answers = type(model).generate(model, ids, **settings)
            lengths.append(answers.shape[1] - ids.shape[1])
            return answers

        monkeypatch.setattr(model, "generate", record)
        # EOS is the likeliest id everywhere, so that answers would end at once.
        hooks.append(model.lm_head.register_forward_hook(prefer_eos))
    times = end_to_end_by_hand.time_generation(torch_models, draw_prompts(SHARED)[:3], 4)
    for hook in hooks:
        hook.remove()
    assert lengths == [2, 2] + 6 * [4] and times.clock > 0 and times.cpu > 0


@pytest.mark.slow
def test_generation_can_be_left_out(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(end_to_end, "packaged_flows", lambda *_: ({}, {}))
    record = end_to_end.measure(dataclasses.replace(SMALL, generated=0))
    assert GENERATING not in [row["name"] for row in record["rows"]] and record["generation_seconds"] is None
    assert "Generation" not in end_to_end.table(record)


@pytest.mark.slow
def test_generation_that_fails_leaves_the_other_rows(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(end_to_end, "packaged_flows", lambda *_: ({}, {}))
    monkeypatch.setattr(end_to_end, "time_generation", _raise_always)
    record = end_to_end.measure(SMALL)
    rows = {row["name"]: row for row in record["rows"]}
    assert rows[GENERATING]["absent"] == "fails (ValueError: no head)" and not rows[PAPER]["absent"]
    assert "fails (ValueError: no head)" in end_to_end.table(record)


def _raise_always(*_):
    raise ValueError("no head")


def test_the_preset_has_the_sizes_of_the_published_model():
    work, published = Workload(**PRESETS["smollm2"]), PUBLISHED["smollm2-135m"]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    for name in (*names, "vocab_size", "tie_word_embeddings"):
        assert work.config()[name] == published[name], name
    prompts = draw_prompts(work)
    assert all(ids[:133] == prompts[0][:133] for ids in prompts) and work.hidden // work.heads == 64
    work.check()
    work.check_generation()


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
        (Workload(kv_heads=3), "kv_heads is 3, which does not divide 4 heads"),
        (Workload(shared=-1), "shared is -1; give at least 0"),
        (Workload(shared=4001), "shared is 4001, .* up to 96 own ones are 4097 positions, and the models have 4096"),
        (Workload(generated=-1), "generated is -1"),
        (Workload(new_tokens=0), "new_tokens is 0"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(work, words):
    with pytest.raises(Refusal, match=words) as caught:
        work.check()
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (Workload(prompts=8, generated=9), "generated is 9 of 8 prompts; give at most as many"),
        (Workload(shared=133, new_tokens=3868), r"\+ 3868 new tokens \(new_tokens\) are 4097 positions"),
    ],
)
def test_answers_that_cannot_be_measured_are_refused(work, words):
    work.check()
    with pytest.raises(Refusal, match=words) as caught:
        end_to_end.measure(work)
    assert caught.value.code == 2 and "\n" not in str(caught.value)
    dataclasses.replace(work, generated=0).check_generation()


def test_a_layer_profile_and_plain_passes_give_the_same_log_probabilities():
    record = json.loads(json.dumps(layer_profiles.measure(dataclasses.replace(SMALL, tokens=12, layers=3))))
    assert record["variants"] == 17 and record["passes"] == pytest.approx(29 / 3) and record["difference"] < 1e-5
    assert [row["name"] for row in record["rows"]] == ["profile", "plain passes"]
    assert all(row["name"] in layer_profiles.table(record) for row in record["rows"])
